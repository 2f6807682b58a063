"""A sentence-transformers folder: how its tokens' embeddings become one per sentence, as part of the module.

Owns the reading of modules.json and the pooling. Loads no weights. Called by pretrained.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from deploy.checkpoint.pretrained_folder import EMBEDDING, PretrainedFolder
from deploy.errors import UsageError

_OWN = "give the module of the whole chain as --factory, with the weights of all its parts in one file"


@dataclass(frozen=True, slots=True, kw_only=True)
class Pooling:
    """How tokens are pooled (several ways are concatenated), and whether the result is normalised to length 1."""

    modes: tuple[str, ...]
    normalize: bool


class SentenceEmbedder(nn.Module):
    """A transformer and its pooling: token ids in, one embedding per text out."""

    def __init__(self, transformer: nn.Module, pooling: Pooling) -> None:
        super().__init__()
        self.transformer = transformer
        self.pooling = pooling

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor, token_type_ids: Tensor | None = None
    ) -> dict[str, Tensor]:
        """One row per text under `sentence_embedding`."""
        types = {} if token_type_ids is None else {"token_type_ids": token_type_ids}
        tokens = self.transformer(input_ids=input_ids, attention_mask=attention_mask, **types).last_hidden_state
        pooled = torch.cat([_POOLED[mode](tokens, attention_mask) for mode in self.pooling.modes], dim=1)
        if self.pooling.normalize:
            pooled = nn.functional.normalize(pooled, p=2.0, dim=1)
        return {EMBEDDING: pooled}


def read_pooling(folder: PretrainedFolder) -> Pooling | None:
    """The pooling of a sentence-transformers folder; None where it is none. Raises UsageError for other parts."""
    modules = folder.read("modules.json")
    if modules is None:
        return None
    kinds = [str(part.get("type", "")).rpartition(".")[2] for part in modules]
    paths = [str(part.get("path", "")) for part in modules]
    if kinds[:2] != ["Transformer", "Pooling"] or kinds[2:] not in ([], ["Normalize"]) or paths[0] not in ("", "."):
        raise UsageError(
            f"{folder.path / 'modules.json'} is a chain of {', '.join(kinds)}",
            expected="Transformer (in the folder itself), Pooling and, where wanted, Normalize",
            fix=_OWN,
        )
    config = folder.read(f"{paths[1]}/config.json")
    if not isinstance(config, dict):
        raise UsageError(f"{folder.path} lacks {paths[1]}/config.json, which says how tokens are pooled")
    return Pooling(modes=_modes(folder, config), normalize=len(kinds) > 2)


def longest_text(folder: PretrainedFolder) -> int | None:
    """The tokens at which sentence-transformers cuts a text off; None where the folder does not say."""
    config = folder.read("sentence_bert_config.json")
    return config.get("max_seq_length") if isinstance(config, dict) else None


def _modes(folder: PretrainedFolder, config: dict[str, object]) -> tuple[str, ...]:
    given = config.get("pooling_mode")
    if given is None:
        modes = [mode for mode, key in _KEYS.items() if config.get(key)] or ["mean"]
    else:
        modes = [given] if isinstance(given, str) else [str(mode) for mode in given] if isinstance(given, list) else []
    unknown = [mode for mode in modes if mode not in _POOLED]
    if unknown or not modes:
        raise UsageError(
            f"{folder.path}: tokens are pooled by {', '.join(unknown) or 'nothing'}",
            expected=f"one or more of {', '.join(_POOLED)}",
            fix=_OWN,
        )
    return tuple(modes)


def _first(tokens: Tensor, mask: Tensor) -> Tensor:
    """The embedding of the first token that is no padding, wherever the padding is."""
    at = mask.to(torch.int32).argmax(dim=1).view(-1, 1, 1).expand(-1, 1, tokens.shape[-1])
    return tokens.gather(1, at).squeeze(1)


def _largest(tokens: Tensor, mask: Tensor) -> Tensor:
    return tokens.masked_fill(mask.unsqueeze(-1) == 0, float("-inf")).amax(dim=1)


def _mean(tokens: Tensor, mask: Tensor) -> Tensor:
    total, count = _sum(tokens, mask)
    return total / count


def _mean_of_root(tokens: Tensor, mask: Tensor) -> Tensor:
    total, count = _sum(tokens, mask)
    return total / count.sqrt()


def _sum(tokens: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    weights = mask.unsqueeze(-1).to(tokens.dtype)
    return (tokens * weights).sum(dim=1), weights.sum(dim=1).clamp(min=1e-9)


_POOLED: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "cls": _first,
    "max": _largest,
    "mean": _mean,
    "mean_sqrt_len_tokens": _mean_of_root,
}
# How earlier releases of sentence-transformers wrote them, in the order in which they are concatenated.
_KEYS = {
    "cls": "pooling_mode_cls_token",
    "max": "pooling_mode_max_tokens",
    "mean": "pooling_mode_mean_tokens",
    "mean_sqrt_len_tokens": "pooling_mode_mean_sqrt_len_tokens",
    "weightedmean": "pooling_mode_weightedmean_tokens",
    "lasttoken": "pooling_mode_lasttoken",
}
