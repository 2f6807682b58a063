"""How tokens' embeddings become one per sentence, as sentence-transformers does it, as part of the module.

Owns the pooling and what follows it, with the weights of that. Reads no settings. Called by pretrained.
"""

from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

from deploy.checkpoint.pretrained_folder import EMBEDDING
from deploy.checkpoint.sentence_folder import Dense, LayerNorm, Part, Pooling
from deploy.checkpoint.tensors import check_finite, check_usable
from deploy.errors import UsageError


class SentenceEmbedder(nn.Module):
    """A transformer and its pooling: token ids in, one embedding per text out."""

    def __init__(self, transformer: nn.Module, pooling: Pooling) -> None:
        super().__init__()
        self.transformer = transformer
        self.pooling = pooling
        self.then = nn.ModuleList(map(_made, pooling.then))

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor, token_type_ids: Tensor | None = None
    ) -> dict[str, Tensor]:
        """One row per text under `sentence_embedding`."""
        types = {} if token_type_ids is None else {"token_type_ids": token_type_ids}
        tokens = self.transformer(input_ids=input_ids, attention_mask=attention_mask, **types).last_hidden_state
        pooled = torch.cat([_POOLED[mode](tokens, attention_mask) for mode in self.pooling.modes], dim=1)
        for part in self.then:
            pooled = part(pooled)
        return {EMBEDDING: pooled if self.pooling.kept is None else pooled[:, : self.pooling.kept]}


class _Normalised(nn.Module):
    def forward(self, embedding: Tensor) -> Tensor:
        return nn.functional.normalize(embedding, p=2.0, dim=1)


def _made(part: Part) -> nn.Module:
    if isinstance(part, Dense):
        linear = nn.Linear(part.inputs, part.outputs, bias=part.bias)
        return nn.Sequential(_loaded(linear, part.file, "linear."), getattr(nn, part.activation)())
    return _loaded(nn.LayerNorm(part.size), part.file, "norm.") if isinstance(part, LayerNorm) else _Normalised()


def _loaded(layer: nn.Module, file: Path, prefix: str) -> nn.Module:
    """The layer with its weights in float32. Raises UsageError if the file holds others than its settings say."""
    tensors = _read(file)
    wanted = {f"{prefix}{name}": list(tensor.shape) for name, tensor in layer.state_dict().items()}
    found = {name: list(tensor.shape) for name, tensor in tensors.items()}
    if found != wanted:
        raise UsageError(
            f"{file} holds {found}",
            expected=f"{wanted}, as the config.json beside it says",
            fix="copy or download the folder again",
        )
    layer.load_state_dict({name.removeprefix(prefix): tensor.float() for name, tensor in tensors.items()})
    return layer


def _read(path: Path) -> dict[str, Tensor]:
    from deploy.checkpoint.formats import read_stored

    tensors: dict[str, Tensor] = dict(read_stored(path).content)
    check_usable(tensors)
    check_finite(tensors)
    return tensors


def _first(tokens: Tensor, mask: Tensor) -> Tensor:
    """The embedding of the first token that is no padding, wherever the padding is."""
    at = mask.to(torch.int32).argmax(dim=1).view(-1, 1, 1).expand(-1, 1, tokens.shape[-1])
    return tokens.gather(1, at).squeeze(1)


def _last(tokens: Tensor, mask: Tensor) -> Tensor:
    """The embedding of the last token that is no padding, wherever the padding is."""
    places = torch.arange(tokens.shape[1], device=tokens.device, dtype=torch.int32)
    at = (places * mask.to(torch.int32)).argmax(dim=1).view(-1, 1, 1).expand(-1, 1, tokens.shape[-1])
    return tokens.gather(1, at).squeeze(1)


def _largest(tokens: Tensor, mask: Tensor) -> Tensor:
    return tokens.masked_fill(mask.unsqueeze(-1) == 0, float("-inf")).amax(dim=1)


def _mean(tokens: Tensor, mask: Tensor) -> Tensor:
    total, count = _sum(tokens, mask)
    return total / count


def _mean_of_root(tokens: Tensor, mask: Tensor) -> Tensor:
    total, count = _sum(tokens, mask)
    return total / count.sqrt()


def _weighted_mean(tokens: Tensor, mask: Tensor) -> Tensor:
    """The mean of the tokens weighted by their place: 1 for the first that is no padding, 2 for the next."""
    places = torch.arange(1, tokens.shape[1] + 1, device=tokens.device, dtype=tokens.dtype)
    padded = mask.to(torch.int32).argmax(dim=1).to(tokens.dtype)
    total, count = _sum(tokens, mask.to(tokens.dtype) * (places.unsqueeze(0) - padded.unsqueeze(1)))
    return total / count


def _sum(tokens: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    weights = mask.unsqueeze(-1).to(tokens.dtype)
    return (tokens * weights).sum(dim=1), weights.sum(dim=1).clamp(min=1e-9)


_POOLED: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "cls": _first,
    "max": _largest,
    "mean": _mean,
    "mean_sqrt_len_tokens": _mean_of_root,
    "weightedmean": _weighted_mean,
    "lasttoken": _last,
}
