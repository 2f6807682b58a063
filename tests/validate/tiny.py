"""A tiny network that children can build from a reference by name."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import nn


def linear() -> "nn.Module":
    """Four numbers in, two out."""
    from torch import nn

    return nn.Linear(4, 2, bias=False)
