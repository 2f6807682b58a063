"""Tiny models for the parity tests, built as users build theirs: by a factory of `package.module:function`."""

import torch
from torch import Tensor, nn

from tests.fixtures import calibrate, enliven, image_like

SIZE = 16
CLASSES = 10


class TinyNet(nn.Module):
    """One of each that goes wrong in life: folded and other norms, activations with twins, dropout, two outputs."""

    def __init__(self, *, dropout: float = 0.3) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 12, 3, stride=2, padding=1, bias=False)
        self.stem_norm = nn.BatchNorm2d(12)
        self.stem_act = nn.Hardswish()
        self.conv = nn.Conv2d(12, 16, 3, padding=1)
        self.conv_norm = nn.BatchNorm2d(16)
        self.conv_act = nn.ReLU6()
        self.mix = nn.Linear(16, 16)
        self.norm = nn.LayerNorm(16)
        self.act = nn.GELU()
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Linear(16, CLASSES)
        self.coarse = nn.Linear(16, CLASSES)

    def forward(self, image: Tensor) -> dict[str, Tensor]:
        x = self.stem_act(self.stem_norm(self.stem(image)))
        x = self.conv_act(self.conv_norm(self.conv(x))).mean((2, 3))
        x = x + self.dropout(self.act(self.norm(self.mix(x))))
        return {"logits": self.head(x), "coarse": self.coarse(x)}


class Scaled(nn.Module):
    """Exact in any precision, so that eager's own error is zero."""

    def __init__(self) -> None:
        super().__init__()
        self.factor = nn.Parameter(torch.tensor([2.0, 4.0, 0.5, 1.0]))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.factor


class BatchMean(nn.Module):
    """Answers a row by the others in its batch: no server may merge requests to it."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.head(x - x.mean(0, keepdim=True))
        return out


class SingleOnly(nn.Module):
    """Has a constant in float32 in its forward, so that it cannot run in float64."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.head(x) @ torch.eye(3, dtype=torch.float32)
        return out


class NoRoom(nn.Module):
    """There is room for it in float32 and none in float64."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        if x.dtype == torch.float64:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        out: Tensor = self.head(x)
        return out


class Indices(nn.Module):
    """Scores and the class they decide for: a floating-point and an integer output."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(4, 3)

    def forward(self, x: Tensor, shift: Tensor) -> tuple[Tensor, Tensor]:
        scores = self.head(x) + shift[:, None].float()
        return scores, scores.argmax(1)


def tiny() -> nn.Module:
    return TinyNet()


def scaled() -> nn.Module:
    return Scaled()


def batch_mean() -> nn.Module:
    return BatchMean()


def single_only() -> nn.Module:
    return SingleOnly()


def no_room() -> nn.Module:
    return NoRoom()


def indices() -> nn.Module:
    return Indices()


def seeded_tiny(seed: int = 0) -> TinyNet:
    """A TinyNet with calibrated statistics and normal heads, in eval mode."""
    torch.manual_seed(seed)
    module = TinyNet()
    enliven(module)
    calibrate(module, lambda rows: image_like(rows, size=SIZE, seed=seed))
    return module
