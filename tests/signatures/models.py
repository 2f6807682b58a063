"""Tiny modules whose signatures are those that people bring, and what is asked to package them."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from deploy.checkpoint.model import CheckpointRequest
from deploy.cli.types import Dynamic, Shape, Values
from deploy.request import PackageRequest, Resources
from deploy.targets import find_target

VOCABULARY = 40
LONGEST = 12


class Tagger(nn.Module):
    """Token ids and their mask by keyword, an optional input, and nested outputs of several dtypes and ranks.

    An id beyond the vocabulary is an error, and so is an empty mask: its mean divides by nothing.
    """

    def __init__(self) -> None:
        super().__init__()
        self.tokens = nn.Embedding(VOCABULARY, 8)
        self.places = nn.Embedding(LONGEST, 8)
        self.mix = nn.MultiheadAttention(8, 2, batch_first=True)
        self.head = nn.Linear(8, 3)
        self.scale = nn.Parameter(torch.tensor(2.5))

    def forward(
        self,
        input_ids: Tensor | None = None,
        *,
        attention_mask: Tensor,
        token_type_ids: Tensor | None,
        output_hidden: bool = True,
    ) -> dict[str, Any]:
        assert input_ids is not None and token_type_ids is None
        kept = attention_mask.to(torch.bool)
        x = self.tokens(input_ids) + self.places.weight[: input_ids.shape[1]]
        x = x + self.mix(x, x, x, key_padding_mask=~kept, need_weights=False)[0]
        weights = kept.unsqueeze(-1).to(x.dtype)
        pooled = (x * weights).sum(1) / weights.sum(1)
        return {
            "logits": self.head(x) * self.scale,
            "pooled": (pooled, {"norm": pooled.norm(dim=1), "padding": (~kept).sum(1)}),
            "kept": kept,
            "loss": None,
            "scale": self.scale,
        }


TAGGER_INPUTS = (
    f"input_ids=int64:{LONGEST}", f"attention_mask=int64:{LONGEST}", "token_type_ids=none",
)  # fmt: skip
TAGGER_DYNAMIC = (f"input_ids:1=1..{LONGEST}", f"attention_mask:1=1..{LONGEST}")
TAGGER_VALUES = (f"input_ids=0..{VOCABULARY - 1}", "attention_mask=mask")


class Mixed(nn.Module):
    """An image of any size, a truth value per row and a small integer: scores, and maps at half the size."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Conv2d(2, 4, 3, padding=1)
        self.kind = nn.Embedding(5, 4)

    def forward(self, image: Tensor, night: Tensor, kind: Tensor) -> tuple[Tensor, list[Tensor]]:
        x = self.body(image) + self.kind(kind[:, 0]).unsqueeze(-1).unsqueeze(-1)
        x = torch.where(night.reshape(-1, 1, 1, 1), x * 0.5, x)
        return x.mean((2, 3)), [nn.functional.avg_pool2d(x, 2), x.relu()]


class Halves(nn.Module):
    """Two layers for half-precision weights."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3))

    def forward(self, x: Tensor) -> Tensor:
        return self.body(x)  # type: ignore[no-any-return]


class Masked(nn.Module):
    """A causal mask of minus infinity in a buffer, as torch's own helper makes it."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
        self.register_buffer("mask", nn.Transformer.generate_square_subsequent_mask(5))

    def forward(self, x: Tensor) -> Tensor:
        return self.body(x, src_mask=self.mask)  # type: ignore[no-any-return]


def ask(
    module: nn.Module,
    path: Path,
    inputs: tuple[str, ...],
    *,
    dynamic: tuple[str, ...] = (),
    values: tuple[str, ...] = (),
) -> CheckpointRequest:
    """The module's weights on disk, and the request that the command line would make of these words."""
    torch.save(module.state_dict(), path)
    return CheckpointRequest(
        path=path,
        factory=f"{type(module).__module__}:{type(module).__name__}",
        inputs=tuple(Shape().convert(word, None, None) for word in inputs),
        dynamic=tuple(Dynamic().convert(word, None, None) for word in dynamic),
        values=tuple(Values().convert(word, None, None) for word in values),
    )


def ask_tagger(path: Path) -> CheckpointRequest:
    """The tagger with ids, masks and a dynamic length."""
    torch.manual_seed(3)
    return ask(Tagger(), path, TAGGER_INPUTS, dynamic=TAGGER_DYNAMIC, values=TAGGER_VALUES)


def ask_mixed(path: Path) -> CheckpointRequest:
    """The model of mixed inputs, its images dynamic in both directions."""
    torch.manual_seed(4)
    return ask(
        Mixed(), path, ("image=2,9,8", "night=bool:1", "kind=int32:1"), dynamic=("image:2,3=4..10",),
        values=("kind=0..4",),
    )  # fmt: skip


def to_package(checkpoint: CheckpointRequest, folder: Path, **changes: Any) -> PackageRequest:
    """A quick request: ONNX only, short measurements."""
    given: dict[str, Any] = {"formats": ("onnx",), "by_name": True, "max_batch": 4} | changes
    return PackageRequest(
        checkpoint=checkpoint,
        repository=folder / "repository",
        target=find_target("local-cpu"),
        resources=Resources(seconds_per_cell=0.05, threads=1),
        allow_constant_output=given.pop("allow_constant_output", True),
        **given,
    )
