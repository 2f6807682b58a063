"""A network that is hardly more than its weights, of any size: what memory and disk are measured with.

Owns the network and its file. Called by tests, by `benchmarks/footprint.py`, and as the factory of its checkpoint.
"""

from pathlib import Path

import torch
from torch import Tensor, nn

WIDTH = 4096
_LAYER = WIDTH * WIDTH * 4  # bytes


class Wide(nn.Module):
    """A residual network of square layers, with ten classes."""

    def __init__(self, depth: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(WIDTH, WIDTH) for _ in range(depth))
        self.head = nn.Linear(WIDTH, 10)

    def forward(self, row: Tensor) -> Tensor:
        for layer in self.layers:
            row = row + layer(row).relu()
        return self.head(row)  # type: ignore[no-any-return]


def wide(depth: int = 1) -> Wide:
    """The factory: the depth is in the file, beside the weights."""
    return Wide(depth)


def save_wide(path: Path, size: int) -> Path:
    """A seeded network of about `size` bytes, written layer by layer so that little memory is needed beside it."""
    depth = max(1, round(size / _LAYER))
    generator = torch.Generator().manual_seed(0)
    with torch.device("meta"):
        shapes = Wide(depth).state_dict()
    state = {name: torch.empty(tensor.shape).normal_(0.0, 0.02, generator=generator) for name, tensor in shapes.items()}
    torch.save({"state_dict": state, "hyper_parameters": {"depth": depth}}, path)
    return path
