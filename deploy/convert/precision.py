"""In which precision a program computes: what was asked, and a checkpoint's module with its weights in half.

Owns the words and the casts at the edges, so that requests keep the dtypes of the contract. Called by lower, which
converts in another precision, by export, and by `validate` to run eager in the same one.
"""

from __future__ import annotations

import copy
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

from deploy.checkpoint.load import COMPUTED_IN
from deploy.convert.flatten import flat_module
from deploy.convert.model import Precision
from deploy.records import Record

if TYPE_CHECKING:
    from torch import Tensor, nn

    from deploy.checkpoint.model import Checkpoint

HALVES: dict[Precision, str] = {"bf16": "bfloat16", "fp16": "float16"}


class Lowering(Record):
    """What becomes of a program's precision; fp32 leaves it as the checkpoint has it.

    `calibration` is an `.npz` of rows by their names on the wire, from which static int8 takes its scales. `static`:
    that scheme was asked for; else the network says whether it is needed.
    """

    precision: Precision = "fp32"
    calibration: Path | None = None
    static: bool = False

    def kept_in(self, folder: Path) -> Lowering:
        """The same with the calibration rows copied into `folder`, where they outlive the stage; it is made."""
        if self.calibration is None:
            return self
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / self.calibration.name
        shutil.copyfile(self.calibration, path)
        return self.model_copy(update={"calibration": path})


def half_module(checkpoint: Checkpoint, precision: Precision, *, as_in_training: bool = False) -> nn.Module:
    """The checkpoint's module computing in bf16 or fp16, as `flat_module` gives it, with the edges cast."""
    module = flat_module(checkpoint, HALVES[precision], as_in_training=as_in_training)
    return with_edges(module, checkpoint, precision)


def with_edges(flat: nn.Module, checkpoint: Checkpoint, precision: Precision) -> nn.Module:
    """The module that `positional` made, its half-precision outputs widened to what the contract has.

    Floating inputs are narrowed by `positional` itself; a model that takes integers alone has none to go by.
    """
    if precision not in HALVES:
        return flat
    import torch

    half = getattr(torch, HALVES[precision])
    wide = getattr(torch, COMPUTED_IN.get(checkpoint.dtype, checkpoint.dtype))
    original, twin = type(flat), copy.copy(flat)

    def forward(self: nn.Module, *inputs: Tensor) -> list[Tensor]:
        outputs: list[Tensor] = original.forward(self, *inputs)
        return [tensor.to(wide) if tensor.dtype == half else tensor for tensor in outputs]

    twin.__class__ = type(f"Half{original.__name__}", (original,), {"forward": forward})
    return twin
