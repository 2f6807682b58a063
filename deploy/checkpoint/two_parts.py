"""Classifiers of texts with an encoder and a decoder, BART's and T5's, as a module that a graph holds.

Owns which of them are taken, and where they read a text. The class of transformers picks the token by a mask of values
and fails where rows have different numbers of it; here it is picked by its place, which is the same token. Called by
pretrained.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from deploy.checkpoint.pretrained_folder import CONFIG, OWN_MODULE
from deploy.errors import UsageError

_CLASSIFIER = "ForSequenceClassification"
# Classes that are an encoder alone, whatever their config says of the kind of network.
_ENCODERS = ("EncoderModel", "T5ForTokenClassification")
# Kinds whose classifier is their two parts and a head on the last token that ends a text.
_KINDS = frozenset(("bart", "mbart", "plbart", "mvp", "t5", "mt5", "umt5"))

# Those whose decoder begins with the text's own last token, the one of its language.
_WRAPPED = frozenset(("mbart", "plbart"))


def check_two_parts(name: str, config: Mapping[str, Any]) -> None:
    """Raises UsageError if a class has an encoder and a decoder, and is no classifier that `EndClassifier` computes."""
    if not config.get("is_encoder_decoder") or name.endswith(_ENCODERS):
        return
    if not name.endswith(_CLASSIFIER) or config.get("model_type") not in _KINDS:
        raise UsageError(
            f"{name} has an encoder and a decoder",
            expected="a network of one part, or a classifier of texts: BART's, T5's and their kin",
            fix=OWN_MODULE,
        )
    if not isinstance(config.get("eos_token_id", 0), int):
        raise UsageError(
            f"{CONFIG} has the eos_token_id {config['eos_token_id']!r}, and {name} reads a text at its last one",
            expected="the id of the token that ends a text",
            fix=f"write the tokenizer's into {CONFIG}",
        )


def is_two_parts(model: nn.Module) -> bool:
    """Whether it is a classifier of both parts, the only one with a decoder that `check_two_parts` lets pass."""
    config: Any = model.config
    return type(model).__name__.endswith(_CLASSIFIER) and bool(getattr(config, "is_encoder_decoder", False))


def classified_at_end(model: nn.Module) -> tuple["EndClassifier", str]:
    """The module that is served in the model's place, and a note on what it does otherwise."""
    config: Any = model.config
    return EndClassifier(model), (
        f"each text is read at the last token that ends it (id {config.eos_token_id}), which the tokenizer writes; one "
        "without it is read at its last token, where transformers fails"
    )


class EndClassifier(nn.Module):
    """The classifier with its head on the last token that ends a text, or the last that is no padding where none does.

    `transformer` is the model itself; the scores of a row are the same in any batch.
    """

    def __init__(self, transformer: Any) -> None:
        super().__init__()
        self.transformer = transformer

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> dict[str, Tensor]:
        """Scores [batch, classes] of token ids [batch, sequence] and their mask of ones and zeros."""
        model = self.transformer
        shifted = _shifted(input_ids, model.config)
        parts = getattr(model, model.base_model_prefix)
        states = parts(
            input_ids=input_ids, attention_mask=attention_mask, decoder_input_ids=shifted, use_cache=False
        )[0]  # fmt: skip
        at = _end(input_ids == model.config.eos_token_id, attention_mask)
        end = states.gather(1, at.view(-1, 1, 1).expand(-1, 1, states.shape[-1])).squeeze(1)
        return {"logits": model.classification_head(end)}


def _shifted(ids: Tensor, config: Any) -> Tensor:
    """What the decoder reads: the text one place later, behind what stands for its beginning.

    As transformers has it, but for texts of any length: copying all but the last token binds a graph to three or more.
    """
    before = (torch.arange(ids.shape[1], device=ids.device) - 1).clamp(min=0)
    if config.model_type in _WRAPPED:
        last = ((ids != config.pad_token_id).sum(dim=1) - 1).clamp(min=0)
        start: Any = ids.gather(1, last.unsqueeze(1))
    else:
        start = config.decoder_start_token_id
    first = torch.arange(ids.shape[1], device=ids.device) == 0
    return torch.where(first, start, ids.index_select(1, before))


def _end(ends: Tensor, mask: Tensor) -> Tensor:
    """The place of the last token of each row that ends it, else of the last one that the mask counts."""
    places = torch.arange(1, ends.shape[1] + 1, device=ends.device)
    found = (ends * places).amax(dim=1)
    counted = ((mask != 0) * places).amax(dim=1)
    return (torch.where(found > 0, found, counted) - 1).clamp(min=0)
