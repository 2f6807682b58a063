"""`torch.export` and AOTInductor by hand, with defaults."""

from pathlib import Path

import torch
from torch.export import ExportedProgram

from benchmarks.by_hand.network import Bind, bind_torch

FILE = "model.pt2"


def convert(program: ExportedProgram, folder: Path) -> None:
    """Write `folder/model.pt2`."""
    torch._inductor.aoti_compile_and_package(program, package_path=str(folder / FILE))


def load(folder: Path) -> Bind:
    """The compiled model."""
    return bind_torch(torch._inductor.aoti_load_package(str(folder / FILE)))
