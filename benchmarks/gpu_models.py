"""The models of gpu.py with their inputs: seeded, so that no weights are fetched, and lively enough to be compared.

Owns what is built and what goes in; measures nothing. Called by gpu_worker, in a child process.
"""

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention.flex_attention import create_block_mask, flex_attention

from tests.fixtures import calibrate, image_like, seeded_module

CLASSES = 1000
BERT_TOKENS, BERT_WORDS, SHORTEST = 128, 30522, 96
PADDING = 0  # the number of the word that stands behind a text
LAYERS, HEADS, HEAD_SIZE, TOKENS, WORDS = 6, 8, 64, 512, 8192
SEED = 0

warnings.filterwarnings("ignore", message="flex_attention called without torch.compile")


@dataclass(frozen=True, slots=True, kw_only=True)
class Subject:
    """A model: how its module is built for a device, and its first rows of input, on the CPU.

    `spared` are operations per row that a count of its matrix products has and its result does not need.
    """

    build: Callable[[str], nn.Module]
    rows: Callable[[int], Tensor]
    spared: int = 0


class Encoder(nn.Module):
    """transformers' BERT of the base size under its texts' mask, as it is served: word numbers to the pooled output."""

    def __init__(self) -> None:
        super().__init__()
        from transformers import BertConfig, BertModel

        torch.manual_seed(SEED)
        bert: Any = BertModel
        self.bert = bert(BertConfig())

    def forward(self, words: Tensor) -> Tensor:
        """The pooled output of each row."""
        pooled: Tensor = self.bert(input_ids=words, attention_mask=(words != PADDING).long()).pooler_output
        return pooled


def _causal(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
    return torch.ge(query, key)


class Block(nn.Module):
    """Attention by FlexAttention under the causal mask, then a perceptron, each beside a shortcut."""

    def __init__(self, mask: Any) -> None:
        super().__init__()
        width = HEADS * HEAD_SIZE
        self.mask = mask
        self.first, self.second = nn.LayerNorm(width), nn.LayerNorm(width)
        self.inner, self.outer = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.wide, self.narrow = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, hidden: Tensor) -> Tensor:
        """The hidden states of the next block."""
        parts = self.inner(self.first(hidden)).chunk(3, dim=-1)
        query, key, value = (part.unflatten(-1, (HEADS, HEAD_SIZE)).transpose(1, 2) for part in parts)
        attended = flex_attention(query, key, value, block_mask=self.mask)
        assert isinstance(attended, Tensor)
        hidden = hidden + self.outer(attended.transpose(1, 2).flatten(2))
        wide = nn.functional.gelu(self.wide(self.second(hidden)))
        narrow: Tensor = self.narrow(wide)
        return hidden + narrow


class Decoder(nn.Module):
    """A small causal transformer: word numbers to the scores of the word after the last."""

    def __init__(self, device: str) -> None:
        super().__init__()
        torch.manual_seed(SEED)
        width = HEADS * HEAD_SIZE
        mask = create_block_mask(_causal, None, None, TOKENS, TOKENS, device=device)
        self.words, self.places = nn.Embedding(WORDS, width), nn.Parameter(torch.randn(TOKENS, width))
        self.blocks = nn.ModuleList(Block(mask) for _ in range(LAYERS))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, WORDS)

    def forward(self, words: Tensor) -> Tensor:
        """One score per word of the vocabulary."""
        hidden = self.words(words) + self.places
        for block in self.blocks:
            hidden = block(hidden)
        scores: Tensor = self.head(self.norm(hidden[:, -1]))
        return scores


def _tiny() -> nn.Module:
    torch.manual_seed(SEED)
    layers = (nn.Conv2d(3, 8, 3, stride=2), nn.BatchNorm2d(8), nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten())
    module: nn.Module = calibrate(nn.Sequential(*layers, nn.Linear(32, 10)), lambda rows: image_like(rows, size=32))
    return module


def _numbers(words: int, length: int) -> Callable[[int], Tensor]:
    return lambda rows: torch.randint(words, (rows, length), generator=torch.Generator().manual_seed(SEED))


def _texts(words: int, length: int) -> Callable[[int], Tensor]:
    """Texts of uneven lengths, each with some padding behind it: a mask that leaves nothing out is skipped eagerly."""

    def rows(count: int) -> Tensor:
        numbers = torch.randint(PADDING + 1, words, (count, length), generator=torch.Generator().manual_seed(SEED))
        lengths = SHORTEST + 5 * torch.arange(count) % (length - SHORTEST)
        return numbers.masked_fill(torch.arange(length) >= lengths[:, None], PADDING)

    return rows


def _pictures(size: int) -> Callable[[int], Tensor]:
    return lambda rows: image_like(rows, size=size, seed=SEED)


def _torchvision(name: str) -> Subject:
    return Subject(
        build=lambda device: seeded_module(name, num_classes=CLASSES, seed=SEED).to(device), rows=_pictures(224)
    )


SUBJECTS = {
    "resnet50": _torchvision("resnet50"),
    "vit_b_16": _torchvision("vit_b_16"),
    "bert_base": Subject(build=lambda device: Encoder().eval().to(device), rows=_texts(BERT_WORDS, BERT_TOKENS)),
    "convnext_base": _torchvision("convnext_base"),
    "swin_t": _torchvision("swin_t"),
    # Of two products of tokens by tokens per layer and head, the mask needs half.
    "flex_decoder": Subject(
        build=lambda device: Decoder(device).eval().to(device),
        rows=_numbers(WORDS, TOKENS),
        spared=LAYERS * HEADS * 2 * HEAD_SIZE * TOKENS * TOKENS,
    ),
    "tiny": Subject(build=lambda device: _tiny().to(device), rows=_pictures(32)),
}
