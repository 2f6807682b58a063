"""An AOTInductor archive as a callable, loaded as Triton's C++ backend loads it.

Owns the loader's arguments only. Called by validate, and by the served backend, so that what is proven and raced is
what serves. `torch._inductor.aoti_load_package` would compile test programs first, to learn this machine's ISA.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

MODEL_NAME = "model"
"""The model's name inside the archive; what Triton's PyTorch backend asks the loader for."""

Run = Callable[[Sequence["Tensor"]], Sequence["Tensor"]]


def load_archive(path: Path) -> Run:
    """A function from flat input tensors to flat output tensors. The archive is native code: check its digest first."""
    import torch

    loader = torch._C._aoti.AOTIModelPackageLoader(str(path), MODEL_NAME, False, 1, -1)

    def run(inputs: Sequence["Tensor"]) -> Sequence["Tensor"]:
        return loader.boxed_run(list(inputs))

    return run
