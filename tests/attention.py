"""A tiny transformer whose attention is FlexAttention, with one factory per kind of attention that people write."""

import torch
from torch import Tensor, nn
from torch.nn.attention.flex_attention import AuxRequest, BlockMask, create_block_mask, flex_attention

TOKENS = (12, 6)  # a row: tokens, features
_HEADS, _SIZE = 4, 8
_LENGTH = TOKENS[0]


def causal_mod(score: Tensor, batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
    return torch.where(query >= key, score, -float("inf"))


def window_mask(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
    return (query >= key) & (query - key < 4)


def wider_mask(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
    return (query >= key) & (query - key < 6)


def no_key_for_the_first(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
    return query > key


class Transformer(nn.Module):
    """Tokens to logits, through one block of attention over all tokens."""

    def __init__(self, *, key_heads: int = _HEADS) -> None:
        super().__init__()
        self.key_heads = key_heads
        self.embed = nn.Linear(TOKENS[1], _HEADS * _SIZE)
        self.query = nn.Linear(_HEADS * _SIZE, _HEADS * _SIZE)
        self.key_value = nn.Linear(_HEADS * _SIZE, 2 * key_heads * _SIZE)
        self.norm = nn.LayerNorm(_HEADS * _SIZE)
        self.head = nn.Linear(_HEADS * _SIZE, 5)

    def attend(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        return flex_attention(query, key, value)

    def forward(self, tokens: Tensor) -> Tensor:
        hidden = self.embed(tokens)
        query = hidden_heads(self.query(hidden), _HEADS)
        key, value = (hidden_heads(part, self.key_heads) for part in self.key_value(hidden).chunk(2, dim=-1))
        attended = self.attend(query, key, value).transpose(1, 2).flatten(2)
        return self.head(self.norm(hidden + attended).mean(1))  # type: ignore[no-any-return]


def hidden_heads(hidden: Tensor, heads: int) -> Tensor:
    split: Tensor = hidden.unflatten(-1, (heads, _SIZE))
    return split.transpose(1, 2)


class Causal(Transformer):
    """A score_mod alone."""

    def attend(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        return flex_attention(query, key, value, score_mod=causal_mod)


class SlidingWindow(Transformer):
    """A block mask made once, before training."""

    def __init__(self) -> None:
        super().__init__()
        self.mask: BlockMask = create_block_mask(window_mask, None, None, _LENGTH, _LENGTH, device="cpu")

    def attend(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        return flex_attention(query, key, value, block_mask=self.mask)


class WiderWindow(SlidingWindow):
    """The same but for a number in the mask: the block mask's tensors are equal."""

    def __init__(self) -> None:
        super().__init__()
        self.mask = create_block_mask(wider_mask, None, None, _LENGTH, _LENGTH, device="cpu")


class LearnedBias(Transformer):
    """A trained bias per head and distance, grouped keys, and a causal block mask made in each call."""

    def __init__(self) -> None:
        super().__init__(key_heads=2)
        self.bias = nn.Parameter(torch.randn(_HEADS, 2 * _LENGTH - 1))

    def attend(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        bias = self.bias

        def score_mod(score: Tensor, batch: Tensor, head: Tensor, row: Tensor, column: Tensor) -> Tensor:
            return score + bias[head, row - column + _LENGTH - 1]

        mask = create_block_mask(window_mask, None, None, _LENGTH, _LENGTH, device=str(query.device))
        return flex_attention(query, key, value, score_mod=score_mod, block_mask=mask, enable_gqa=True)


class Everything(Transformer):
    """What is rare: a query without keys, sums asked for, a number made inside, a bias indexed twice, options."""

    def __init__(self) -> None:
        super().__init__(key_heads=1)
        self.bias: Tensor
        self.register_buffer("bias", torch.randn(_HEADS, _LENGTH, _LENGTH))
        self.mask: BlockMask = create_block_mask(no_key_for_the_first, None, None, _LENGTH, _LENGTH, device="cpu")

    def attend(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        bias = self.bias

        def score_mod(score: Tensor, batch: Tensor, head: Tensor, row: Tensor, column: Tensor) -> Tensor:
            return score * torch.tensor(0.5) + bias[head][row, column]

        attended, aux = flex_attention(
            query,
            key,
            value,
            score_mod=score_mod,
            block_mask=self.mask,
            enable_gqa=True,
            scale=0.3,
            kernel_options={"BLOCK_M": 32},
            return_aux=AuxRequest(lse=True),
        )
        assert aux.lse is not None
        sums = aux.lse[:, :, 1:].mean(2)
        return attended * (1 + sums.tanh())[:, :, None, None]


def lively(factory: type[Transformer], *, seed: int = 0) -> Transformer:
    """The seeded model with a head that tells inputs apart, without gradients: FlexAttention has none on CPU."""
    torch.manual_seed(seed)
    module = factory()
    with torch.no_grad():
        module.query.weight.normal_(std=0.5)
        module.head.weight.normal_(std=0.5)
    return module.eval().requires_grad_(False)
