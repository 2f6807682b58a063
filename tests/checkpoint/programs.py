"""Programs that the tests save with torch.export, and their samples."""

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.export import Dim

from tests.models import IMAGE, ConvNet
from tests.packaging import lively


class Caster(nn.Module):
    """A model that names dtypes in its own code, as those trained under autocast do."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Linear(6, 4)
        self.scale = torch.linspace(0.5, 2.0, 4)  # no buffer: a constant of the program

    def forward(self, x: Tensor) -> Tensor:
        mean = torch.full((1,), 0.25, dtype=torch.float32)
        return (self.body(x.to(torch.float32)) - mean).float() * self.scale  # type: ignore[no-any-return]


class Nested(nn.Module):
    """A dict of inputs, a number fixed at export, a keyword; a dict of outputs."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Linear(6, 4)

    def forward(self, parts: dict[str, Tensor], times: int, *, bias: Tensor) -> dict[str, Tensor]:
        y = self.body(parts["left"] + parts["right"]) * times + bias
        return {"sum": y, "sign": y > 0}


class Growing(nn.Module):
    """Counts its calls."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Linear(6, 4)
        self.register_buffer("calls", torch.zeros(2))

    def forward(self, x: Tensor) -> Tensor:
        calls = self.get_buffer("calls")
        calls[:1].add_(1)
        return self.body(x) + calls[0]  # type: ignore[no-any-return]


class Ruled(nn.Module):
    """Rules out classes by minus infinity in a buffer and in a constant."""

    mask: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Linear(6, 4)
        self.register_buffer("mask", torch.tensor([0.0, 0.0, 0.0, -torch.inf]))
        self.other = torch.tensor([0.0, -torch.inf, 0.0, 0.0])

    def forward(self, x: Tensor) -> Tensor:
        return (self.body(x) + self.mask + self.other).softmax(1)  # type: ignore[no-any-return]


class Plain(nn.Module):
    """Outputs of bfloat16 and of no dimension, and an argument of text that names another one."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Linear(6, 4)
        self.scale = nn.Parameter(torch.tensor(2.5))

    def forward(self, x: Tensor, mode: str) -> tuple[Tensor, Tensor]:
        return self.body(x).bfloat16(), self.scale * 2


@dataclass
class Answer:
    """What the author's own code returns, with a part that is None here."""

    scores: Tensor
    hidden: Tensor | None = None
    sign: Tensor | None = None


class Answering(nn.Module):
    """A model whose output is an object of its author's class."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Answer:
        y = self.body(x)
        return Answer(scores=y, sign=y > 0)


def save_program(path: Path, *, batch: "Dim | int | None" = None, training: bool = False, rows: int = 4) -> ConvNet:
    """The lively net's program at `path`, its batch free unless another dim is given; 0 makes it static."""
    module = lively(0)
    module.train(training)
    dynamic = None if batch == 0 else ({0: Dim("n") if batch is None else batch},)
    torch.export.save(torch.export.export(module, (torch.randn(rows, *IMAGE),), dynamic_shapes=dynamic), path)
    return module.eval()


def save(path: Path, module: nn.Module, arguments: tuple[object, ...], **more: object) -> None:
    torch.export.save(torch.export.export(module.eval(), arguments, **more), path)  # type: ignore[arg-type]
