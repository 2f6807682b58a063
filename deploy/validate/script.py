"""A TorchScript archive run in this process, and what it gives: its outputs are known only by running it.

Owns the calls into torch.jit. Made inside a `deploy.processes.Worker`. Called by as_is.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from deploy.checkpoint.torchscript import load_script
from deploy.convert.traced import seeded_inputs
from deploy.errors import UsageError
from deploy.processes import own_peak_memory
from deploy.spec import BATCH, Dim, Spec, TensorSpec, decision_axis_of

_TAKES = "an archive that takes these shapes, and any batch up to --max-batch"
_CHECK = "check --input-shape; where it was traced for a batch of 1, use --max-batch 1 or trace it anew"


class ScriptModel:
    """An archive. It is code: check its digest before making one."""

    def __init__(self, path: Path, *, threads: int) -> None:
        import torch

        torch.set_num_threads(threads)
        self._module = load_script(path)

    def run(self, inputs: Sequence[np.ndarray]) -> list[np.ndarray]:
        """The outputs for one batch. Raises UsageError where it fails, or gives what Triton cannot hand out."""
        import torch

        with torch.inference_mode():
            try:
                found: Any = self._module(*(torch.from_numpy(np.ascontiguousarray(array)) for array in inputs))
            except (RuntimeError, torch.jit.Error) as error:  # the last line is the operator's own
                shapes, said = (
                    ", ".join(str(list(array.shape)) for array in inputs),
                    str(error).strip().splitlines()[-1],
                )
                training = "when training" in said
                raise UsageError(
                    f"the archive fails on inputs of shape {shapes}: {said}",
                    expected="an archive for inference, saved in eval mode" if training else _TAKES,
                    fix="call model.eval() before torch.jit.script or trace, and save it again" if training else _CHECK,
                ) from error
        outputs = [found] if isinstance(found, torch.Tensor) else list(found) if isinstance(found, tuple | list) else []
        if not outputs or not all(isinstance(one, torch.Tensor) for one in outputs):
            raise UsageError(
                f"the archive returns a {type(found).__name__}, which Triton's PyTorch backend cannot hand out",
                expected="a tensor, or a tuple of tensors",
                fix="return tensors from forward, and script it again",
            )
        return [tensor.numpy() for tensor in outputs]

    def spec(self, inputs: tuple[TensorSpec, ...], dims: tuple[Dim, ...]) -> Spec:
        """The whole contract, the outputs as they come for the smallest, a small and the largest batch.

        Raises UsageError if an output has no row per sample.
        """
        most = max((dim.maximum for dim in dims), default=1)
        shapes = []
        for batch in sorted({1, min(2, most), most}):
            made = self.run([tensor.numpy() for tensor in seeded_inputs(inputs, batch=batch)])
            shapes.append([(str(array.dtype), _sizes(array.shape, batch, dynamic=most > 1)) for array in made])
        if any(found != shapes[0] for found in shapes) or (
            most > 1 and any(shape[:1] != (BATCH,) for _, shape in shapes[0])
        ):
            raise UsageError(
                f"the archive's outputs do not follow the batch: {_shown(shapes)}",
                expected=f"[{BATCH!r}, sizes ...]: one row per sample",
                fix="use --max-batch 1, or return one row per sample",
            )
        count = len(shapes[0])
        outputs = tuple(
            TensorSpec(
                name="output" if count == 1 else f"output_{index}",
                dtype=dtype,
                shape=shape,
                decision_axis=decision_axis_of(shape, floating="float" in dtype),
            )
            for index, (dtype, shape) in enumerate(shapes[0])
        )
        return Spec(inputs=inputs, outputs=outputs, dims=dims)

    def peak_memory(self) -> int:
        """The peak resident set of this process, in bytes."""
        return own_peak_memory()


def _sizes(shape: tuple[int, ...], batch: int, *, dynamic: bool) -> tuple[int | str, ...]:
    """The sizes, the first of them as the batch where it is as large."""
    return (BATCH, *shape[1:]) if dynamic and shape[:1] == (batch,) else shape


def _shown(shapes: list[list[tuple[str, tuple[int | str, ...]]]]) -> str:
    return "; ".join(", ".join(str(list(shape)) for _, shape in found) for found in shapes)
