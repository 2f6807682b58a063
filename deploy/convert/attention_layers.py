"""`nn.MultiheadAttention` in a graph, without the copies and the bounds that torch's own code brings with it.

Owns where torch's code is replaced and by what: attention of a sequence with itself has one product for query, key and
value, whose parts are read where they lie, and what a layer adds to the keys may follow any number of them. Torch's
code turns positions before rows, makes query, key and value anew in each layer, and takes no fused kernel where a call
does not refuse the weights, which few read; beside a mask for keys with more behind them it asks for one length.
Called by traced, round each export.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor, nn

_MATRIX = 2
_BATCHED = 3  # dimensions: rows and positions in either order, width


@contextmanager
def attention_in_place() -> Iterator[None]:
    """While this lasts such attention is traced as it is written here. Not for several threads."""
    from torch.nn import MultiheadAttention

    called = MultiheadAttention.forward

    def forward(  # noqa: PLR0913, PLR0917 - torch's own parameters
        self: nn.MultiheadAttention,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        key_padding_mask: Tensor | None = None,
        need_weights: bool = True,
        attn_mask: Tensor | None = None,
        average_attn_weights: bool = True,
        is_causal: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        if (query is key is value or _adds(self)) and _is_plain(self, query):
            masks = Masks(given=attn_mask, padding=key_padding_mask, causal=is_causal and not need_weights)
            attended, weights = _attend(self, (query, key, value), masks)
            if not need_weights:
                return attended, None
            return attended, weights().mean(1) if average_attn_weights else weights()
        return called(
            self, query, key, value, key_padding_mask=key_padding_mask, need_weights=need_weights, attn_mask=attn_mask,
            average_attn_weights=average_attn_weights, is_causal=is_causal,
        )  # fmt: skip

    MultiheadAttention.forward = forward  # type: ignore[method-assign]
    try:
        yield
    finally:
        MultiheadAttention.forward = called  # type: ignore[method-assign]


def _is_plain(layer: nn.MultiheadAttention, x: Tensor) -> bool:
    """Whether the layer has one weight for query, key and value, all of them of one width, and drops nothing."""
    own: Any = layer
    drops = own.training and own.dropout > 0
    return x.dim() == _BATCHED and own.in_proj_weight is not None and not drops


def _adds(layer: nn.MultiheadAttention) -> bool:
    """Whether keys and values of the layer's own follow those that it is given: learnt ones, zeros, or both."""
    own: Any = layer
    return own.bias_k is not None or own.add_zero_attn


@dataclass(frozen=True, slots=True, kw_only=True)
class Masks:
    """Who attends to whom, as a call of `nn.MultiheadAttention` says it; `causal` is a hint beside `given`."""

    given: Tensor | None
    padding: Tensor | None
    causal: bool

    def bias(self, layer: nn.MultiheadAttention, x: Tensor) -> Tensor | None:
        """What is added to the scores, of four dimensions or ones that stand for them; None where nothing is.

        `given` is [positions, positions], or that for each row and head; `padding` is [rows, positions].
        """
        if self.is_causal:
            return None
        bias = None
        if self.given is not None:
            one = _added(self.given, "attn_mask", x)
            bias = one if one.dim() == _MATRIX else one.unflatten(0, (-1, layer.num_heads))
        if self.padding is not None:
            padding = _added(self.padding, "key_padding_mask", x)[:, None, None]
            bias = padding if bias is None else bias + padding
        return bias

    @property
    def is_causal(self) -> bool:
        """Whether the hint is all that is needed."""
        return self.causal and self.padding is None


def _added(mask: Tensor, name: str, x: Tensor) -> Tensor:
    """A mask as numbers to add, as torch reads it: true is left out."""
    from torch.nn import functional

    own: Any = functional
    added: Tensor = own._canonical_mask(mask, name, None, "", target_type=x.dtype, check_other=False)
    return added


def _attend(
    layer: nn.MultiheadAttention, given: tuple[Tensor, Tensor, Tensor], masks: Masks
) -> tuple[Tensor, Callable[[], Tensor]]:
    """The attention of query, key and value, [rows, positions, width], or [positions, rows, width] as the layer says.

    Beside it what each position takes from which, [rows, heads, positions, positions], to be computed where a call asks
    for it: most leave it unread, and then either converter drops it from the graph.
    """
    import torch
    from torch.nn import functional

    heads = [part.unflatten(-1, (layer.num_heads, layer.head_dim)) for part in _projected(layer, given)]
    # To rows, heads, positions, width, and back: a read in another order, no copy.
    there, back = ((0, 2, 1, 3), (0, 2, 1, 3)) if layer.batch_first else ((1, 2, 0, 3), (2, 0, 1, 3))
    query, key, value = (part.permute(there) for part in heads)
    bias = masks.bias(layer, given[0])
    for added_key, added_value in _added_heads(layer, query.shape[0]):
        key, value = torch.cat((key, added_key), dim=2), torch.cat((value, added_value), dim=2)
        bias = None if bias is None else functional.pad(bias, (0, 1))
    attended = functional.scaled_dot_product_attention(query, key, value, bias, is_causal=masks.is_causal)
    attended = functional.linear(attended.permute(back).flatten(2), layer.out_proj.weight, layer.out_proj.bias)

    def weights() -> Tensor:
        scores: Tensor = query @ key.transpose(-2, -1) / math.sqrt(layer.head_dim)
        return (scores if bias is None else scores + bias).softmax(-1)

    return attended, weights


def _projected(layer: nn.MultiheadAttention, given: tuple[Tensor, Tensor, Tensor]) -> Sequence[Tensor]:
    """What query, key and value become; of a sequence with itself by one product."""
    from torch.nn import functional

    query, key, value = given
    if query is key is value:
        return functional.linear(query, layer.in_proj_weight, layer.in_proj_bias).chunk(3, dim=-1)
    own: Any = layer.in_proj_bias  # None where the layer has none
    biases = (None,) * len(given) if own is None else own.chunk(3)
    weights = layer.in_proj_weight.chunk(3)
    return [functional.linear(*parts) for parts in zip(given, weights, biases, strict=True)]


def _added_heads(layer: nn.MultiheadAttention, rows: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Each key and value that follow those of a call, [rows, heads, 1, width]; nothing masks them.

    `rows` may be a symbol, which `len` would make a constant.
    """
    own: Any = layer
    shape = (rows, layer.num_heads, 1, layer.head_dim)
    split = (1, layer.num_heads, 1, layer.head_dim)
    if own.bias_k is not None:
        yield own.bias_k.view(split).expand(shape), own.bias_v.view(split).expand(shape)
    if own.add_zero_attn:
        zeros = own.in_proj_weight.new_zeros(shape)
        yield zeros, zeros
