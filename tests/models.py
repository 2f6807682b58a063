"""Tiny modules with the shapes that real ones have, and what is asked to package them.

`save` writes a factory's seeded weights as training would, and says how to read them.
"""

import os
import signal
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn

from deploy.checkpoint.model import CheckpointRequest

IMAGE = (3, 16, 16)


class ConvNet(nn.Module):
    """A lone tensor: images to logits."""

    def __init__(self, num_classes: int = 5) -> None:
        super().__init__()
        self.features = nn.Sequential(nn.Conv2d(3, 8, 3, stride=2), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3))
        self.head = nn.Linear(8, num_classes)

    def forward(self, image: Tensor) -> Tensor:
        return self.head(self.features(image).mean((2, 3)))  # type: ignore[no-any-return]


class MeanOfAll(nn.Module):
    """One number of each image, the mean over a view that names the batch's size."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(16, 5)

    def forward(self, image: Tensor) -> Tensor:
        return self.head(image).view(image.shape[0], -1).mean(1, keepdim=True)  # type: ignore[no-any-return]


class TwoTowers(nn.Module):
    """Two inputs, a dict of outputs in an order that is not the alphabet's."""

    def __init__(self) -> None:
        super().__init__()
        self.left = nn.Linear(6, 4)
        self.right = nn.Linear(3, 4)

    def forward(self, left: Tensor, right: Tensor) -> dict[str, Tensor]:
        a, b = self.left(left), self.right(right)
        return {"score": (a * b).sum(1), "embedding": a, "difference": a - b}


class Detector(NamedTuple):
    """Outputs with names of their own."""

    boxes: Tensor
    scores: Tensor


class Nested(nn.Module):
    """A tuple that holds a list, a dict and a named tuple."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Linear(6, 4)

    def forward(self, x: Tensor) -> tuple[list[Tensor], dict[str, Tensor], Detector]:
        y = self.body(x)
        return [y, y.argmax(1)], OrderedDict(mean=y.mean(1, keepdim=True)), Detector(boxes=y + 1, scores=y.sigmoid())


class ConstantBatch(nn.Module):
    """Written for the batch it was trained with."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        y = self.body(x)
        return y.reshape(2, -1)  # type: ignore[no-any-return]


class DataDependent(nn.Module):
    """Python's `if` on a tensor's value."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        if x.sum() > 0:
            return self.body(x)  # type: ignore[no-any-return]
        return self.body(-x)  # type: ignore[no-any-return]


class OverTheBatch(nn.Module):
    """An output without one row per sample."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.body(x).mean(0)  # type: ignore[no-any-return]


class TwiceTheBatch(OverTheBatch):
    """Two rows per sample."""

    def forward(self, x: Tensor) -> Tensor:
        y = self.body(x)
        return torch.cat([y, -y])


class LoneNumber(OverTheBatch):
    """A loss beside the output."""

    def forward(self, x: Tensor) -> Tensor:
        return {"logits": self.body(x), "loss": x.sum()}  # type: ignore[return-value]


class NotATensor(OverTheBatch):
    """A Python number beside the output."""

    def forward(self, x: Tensor) -> Tensor:
        return self.body(x), len(x)  # type: ignore[return-value]


class WrongSize(OverTheBatch):
    """Fails on any input of the shape that was asked for."""

    def forward(self, x: Tensor) -> Tensor:
        return self.body(x[:, :5])  # type: ignore[no-any-return]


class Segfault(OverTheBatch):
    """Native code that crashes."""

    def forward(self, x: Tensor) -> Tensor:
        os.kill(os.getpid(), signal.SIGSEGV)
        return x


def save(factory: Callable[[], nn.Module], folder: Path, *shapes: tuple[int, ...]) -> CheckpointRequest:
    """A seeded state_dict of the factory's module in `folder`, and the request that reads it."""
    torch.manual_seed(0)
    path = folder / f"{factory.__name__.lower()}.pt"
    torch.save(factory().state_dict(), path)
    return CheckpointRequest(path=path, factory=f"{factory.__module__}:{factory.__name__}", input_shapes=shapes)
