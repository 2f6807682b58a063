"""A network that is hardly more than its weights, of any size: what memory and disk are measured with.

Owns the network and its file. Called by tests, by `benchmarks/footprint.py`, and as the factory of its checkpoint.
"""

from pathlib import Path

import torch
from torch import Tensor, nn

WIDTH = 4096


class Wide(nn.Module):
    """A residual network of square layers, with ten classes."""

    def __init__(self, depth: int, width: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(width, width) for _ in range(depth))
        self.head = nn.Linear(width, 10)

    def forward(self, row: Tensor) -> Tensor:
        for layer in self.layers:
            row = row + layer(row).relu()
        return self.head(row)  # type: ignore[no-any-return]


def wide(depth: int = 1, width: int = WIDTH) -> Wide:
    """The factory: the depth is in the file, beside the weights."""
    return Wide(depth, width)


def save_wide(path: Path, size: int, *, dtype: str = "float32", width: int = WIDTH) -> Path:
    """A seeded network of about `size` bytes, written layer by layer so that little memory is needed beside it."""
    kind = getattr(torch, dtype)
    depth = max(1, round(size / (width * width * kind.itemsize)))
    generator = torch.Generator().manual_seed(0)
    with torch.device("meta"):
        shapes = Wide(depth, width).state_dict()
    spread = min(0.02, 0.28 / depth)  # what the layers add up to stays within float16
    state = {
        name: torch.empty(tensor.shape).normal_(0.0, spread, generator=generator).to(kind)
        for name, tensor in shapes.items()
    }
    torch.save({"state_dict": state, "hyper_parameters": {"depth": depth, "width": width}}, path)
    return path
