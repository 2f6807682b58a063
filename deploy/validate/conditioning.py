"""Whether a failed proof is of the network's own making: it turns rounding errors into other answers on that input.

Owns that question and the line where it begins. Eager runs once more with each value rounded once more; where that
alone moves its answers as far as the artifact's are off, no order of sums is right there. Runs in a child. Called by
locate.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from deploy.convert.explain import traced_line

_RUNS = 3
_SHARE = 0.25  # of the artifact's error that rounding has to explain
_LOST = 1e-3  # of a value's size: what is off by more has no more than three digits left


@dataclass(frozen=True, slots=True, kw_only=True)
class Rounding:
    """How far eager's outputs move with each value rounded once more, and where the first value is lost to it."""

    moves: tuple[float, ...]
    place: str


@dataclass(frozen=True, slots=True, kw_only=True)
class _Value:
    operator: str
    stack: str
    array: np.ndarray


def rounding_of(eager: Any, inputs: Sequence[np.ndarray]) -> Rounding | None:
    """What one more rounding of each value does to the module's answers; None where it cannot be run so."""
    try:
        plain, outputs = _run(eager, inputs, seed=None)
        moves, place = [0.0] * len(outputs), ""
        for seed in range(_RUNS):
            rounded, others = _run(eager, inputs, seed=seed)
            moves = [max(move, _apart(one, other)) for move, one, other in zip(moves, outputs, others, strict=True)]
            place = place or _first_lost(plain, rounded)
    except (RuntimeError, ValueError, IndexError, TypeError):  # values that are rounded may be places
        return None
    return Rounding(moves=tuple(moves), place=place)


def explains(rounding: Rounding, errors: Sequence[float], allowed: Sequence[float]) -> bool:
    """Whether rounding alone moves each output that is off by more than is allowed about as far as it is off."""
    wrong = [(move, error) for move, error, most in zip(rounding.moves, errors, allowed, strict=True) if error > most]
    return bool(wrong) and all(move >= _SHARE * error for move, error in wrong)


def _apart(one: np.ndarray, other: np.ndarray) -> float:
    gap = np.abs(one.astype(np.float64) - other.astype(np.float64))
    return float(np.nan_to_num(gap).max(initial=0.0))


def _first_lost(plain: Sequence[_Value], rounded: Sequence[_Value]) -> str:
    for value, other in zip(plain, rounded, strict=False):
        if value.array.shape != other.array.shape:
            return ""
        if _apart(value.array, other.array) > _LOST * float(np.abs(np.nan_to_num(value.array)).max(initial=0.0)):
            return f"{value.operator}{traced_line(value.stack)}"
    return ""


def _run(module: Any, inputs: Sequence[np.ndarray], *, seed: int | None) -> tuple[list[_Value], list[np.ndarray]]:
    """Every value and the outputs, each float moved by up to one epsilon of itself where there is a `seed`."""
    import traceback

    import torch
    from torch.utils import _pytree
    from torch.utils._python_dispatch import TorchDispatchMode

    generator = None if seed is None else torch.Generator().manual_seed(seed)
    values: list[_Value] = []

    def kept(function: Any, tensor: Any) -> Any:
        if not isinstance(tensor, torch.Tensor) or not tensor.is_floating_point():
            return tensor
        if generator is not None:
            noise = torch.rand(tensor.shape, generator=generator) * 2 - 1
            tensor = tensor + tensor * noise.to(tensor.dtype) * torch.finfo(tensor.dtype).eps
        stack = "" if generator is not None else "".join(traceback.format_stack())
        values.append(_Value(operator=str(function), stack=stack, array=tensor.detach().numpy()))
        return tensor

    class Rounded(TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            result = func(*args, **(kwargs or {}))
            # Those compute nothing, or write into what others hold.
            if func.is_view or func._schema.is_mutable:
                return result
            return _pytree.tree_map(lambda tensor: kept(func, tensor), result)

    tensors = [torch.from_numpy(np.ascontiguousarray(array)) for array in inputs]
    with torch.no_grad(), Rounded():  # type: ignore[no-untyped-call]
        result = module(*tensors)
    leaves = [leaf for leaf in _pytree.tree_leaves(result) if isinstance(leaf, torch.Tensor)]
    return values, [leaf.detach().numpy() for leaf in leaves]
