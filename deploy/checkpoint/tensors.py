"""Whether a set of tensors can be weights at all: dense, present, of a usable dtype, and finite.

Owns these refusals and the dtype that a checkpoint is said to have. Knows no architecture.
Called by load.
"""

from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING

from deploy.checkpoint.sniff import SAVE_WHOLE
from deploy.errors import UsageError

if TYPE_CHECKING:
    from torch import Tensor

_REAL_PARTS = (
    "keep them as real numbers, torch.view_as_real(weight) in the file and torch.view_as_complex(weight) in the forward"
)
FLOATS = ("float32", "float16", "bfloat16", "float64")


def dtype_name(tensor: "Tensor") -> str:
    """The dtype without `torch.`, as the spec writes it."""
    return str(tensor.dtype).removeprefix("torch.")


def check_usable(tensors: Mapping[str, "Tensor"]) -> None:
    """Raises UsageError for a tensor that is sparse, quantized, complex, an exotic float, a piece, or without data."""
    import torch

    for name, tensor in tensors.items():
        if tensor.device.type == "meta":
            raise UsageError(
                f"weight {name!r} has a shape but no data (it was saved from the meta device)",
                fix="save the checkpoint after the weights were loaded",
            )
        if type(tensor).__name__ == "DTensor":
            raise UsageError(
                f"weight {name!r} is a DTensor: the piece that one rank had", expected="whole tensors", fix=SAVE_WHOLE
            )
        if tensor.is_quantized:
            raise UsageError(
                f"weight {name!r} is quantized",
                expected="float weights: neither format carries the modules that torch quantizes eagerly",
                fix="save the float weights that these were made from, before `convert`",
            )
        if tensor.layout != torch.strided:
            raise UsageError(f"weight {name!r} is sparse", expected="dense tensors", fix="save the dense float weights")
        if tensor.is_complex() or (tensor.is_floating_point() and dtype_name(tensor) not in FLOATS):
            raise UsageError(
                f"weight {name!r} is {dtype_name(tensor)}",
                expected=f"weights of dtype {', '.join(FLOATS)}",
                fix=_REAL_PARTS if tensor.is_complex() else "convert the weights before saving them",
            )


def check_floats(tensors: Mapping[str, "Tensor"], floats: set[str]) -> None:
    """Raises UsageError if a tensor named in `floats` holds integers: the architecture computes with it."""
    wrong = [name for name in tensors if name in floats and not tensors[name].is_floating_point()]
    if wrong:
        more = f" and {len(wrong) - 1} more" if len(wrong) > 1 else ""
        raise UsageError(
            f"weight {wrong[0]!r}{more} is {dtype_name(tensors[wrong[0]])}",
            expected=f"weights of dtype {', '.join(FLOATS)}",
            fix="save the float weights; deployctl quantizes by itself where that is asked for",
        )


def check_finite(tensors: Mapping[str, "Tensor"], *, masks: Collection[str] = ()) -> None:
    """Raises UsageError if any element is NaN or infinite, with the first such tensor and the counts.

    Minus infinity is no fault in the `masks`: what training does not change may be added to scores to rule them out.
    """
    with _one_thread():
        broken = [name for name, tensor in tensors.items() if not _is_finite(tensor, mask=name in masks)]
    if not broken:
        return
    first = tensors[broken[0]]
    nan, inf = int(first.isnan().sum()), int(first.isinf().sum())
    others = f"; {len(broken) - 1} other tensors have some too" if len(broken) > 1 else ""
    raise UsageError(
        f"weight {broken[0]!r} has {nan} NaN and {inf} infinite values of {first.numel()}{others}",
        expected="finite weights",
        fix="take a checkpoint from before training diverged",
    )


def check_variances(tensors: Mapping[str, "Tensor"]) -> None:
    """Raises UsageError for a batch norm's variance below zero, whose root makes every answer NaN."""
    for name, tensor in tensors.items():
        if name.rpartition(".")[2] == "running_var" and bool((tensor < 0).any()):
            raise UsageError(
                f"weight {name!r} has {int((tensor < 0).sum())} negative values of {tensor.numel()}",
                expected="variances, which are 0 or more",
                fix="save the state_dict as training left it; differences or averages of weights may not be weights",
            )


def main_dtype(tensors: Mapping[str, "Tensor"]) -> str:
    """The floating dtype of most elements. Raises UsageError if no tensor is floating."""
    counts: Counter[str] = Counter()
    for tensor in tensors.values():
        if tensor.is_floating_point():
            counts[dtype_name(tensor)] += tensor.numel()
    if not counts:
        raise UsageError("no tensor of the file is floating-point", expected=f"weights of dtype {', '.join(FLOATS)}")
    return counts.most_common(1)[0][0]


@contextmanager
def _one_thread() -> Iterator[None]:
    """One thread reads at memory speed; several cost barriers, and the digest is being taken on another core."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _is_finite(tensor: "Tensor", *, mask: bool) -> bool:
    import torch

    if not tensor.is_floating_point():
        return True
    # One pass at memory speed: a NaN or an infinity survives a sum. A sum that overflows by itself is looked at again.
    if bool(torch.isfinite(tensor.sum())) or bool(torch.isfinite(tensor).all()):
        return True
    return mask and bool((torch.isfinite(tensor) | torch.isneginf(tensor)).all())
