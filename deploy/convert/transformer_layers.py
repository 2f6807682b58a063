"""`nn.TransformerEncoder` and its kin in a graph, with the answers that a call of them gives.

Owns what their code does in a call and cannot do, or does otherwise, while it is traced: it compares a mask's values to
see whether the mask is causal, and an encoder that is given a padding mask computes on what is no padding alone, which
leaves zeros at the rest. Called by traced, round each export.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor, nn

_BATCHED = 3  # dimensions: rows, words, width


@contextmanager
def traceable_transformers() -> Iterator[None]:
    """While this lasts torch's transformers can be traced. Not for use in several threads at once."""
    from torch.nn import TransformerEncoder
    from torch.nn.modules import transformer as own

    called, detect = TransformerEncoder.forward, own._detect_is_causal_mask

    def forward(
        self: nn.TransformerEncoder,
        src: Tensor,
        mask: Tensor | None = None,
        src_key_padding_mask: Tensor | None = None,
        is_causal: bool | None = None,
    ) -> Tensor:
        if src_key_padding_mask is None or mask is not None or not _leaves_zeros(self, src):
            return called(self, src, mask, src_key_padding_mask, is_causal)
        for layer in self.layers:
            src = layer(src, src_mask=None, is_causal=False, src_key_padding_mask=src_key_padding_mask)
        src = src.masked_fill(_left_out(src_key_padding_mask).unsqueeze(-1), 0.0)
        return src if self.norm is None else self.norm(src)

    TransformerEncoder.forward = forward  # type: ignore[method-assign]
    own._detect_is_causal_mask = _said_to_be_causal
    try:
        yield
    finally:
        TransformerEncoder.forward = called  # type: ignore[method-assign]
        own._detect_is_causal_mask = detect


def _said_to_be_causal(mask: Tensor | None, is_causal: bool | None = None, size: int | None = None) -> bool:
    """Whether the caller says so. It is a hint beside the mask, which has the same answer without it."""
    return is_causal is True


def _leaves_zeros(encoder: nn.TransformerEncoder, src: Tensor) -> bool:
    """Whether a call takes words and padding apart, as torch decides it for a network that is not trained."""
    import torch

    first: Any = encoder.layers[0]
    nested = torch.backends.mha.get_fastpath_enabled() and getattr(encoder, "use_nested_tensor", False)
    return bool(nested) and not first.training and src.dim() == _BATCHED


def _left_out(padding: Tensor) -> Tensor:
    """Where a row's padding is, if all of it lies behind the words, else nowhere; [rows, words].

    Torch asks that of a whole batch, so that a row's answer hangs on its neighbours; here each row is asked alone.
    """
    words = padding.logical_not()  # of truth values, or of numbers to add: 0 where a word is
    filled = words.logical_not()
    torn = (words & (filled.cumsum(1) > 0)).any(1, keepdim=True)
    return filled & torn.logical_not()
