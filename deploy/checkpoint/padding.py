"""Whether a classifier of texts knows the token that fills up the shorter texts of a batch.

Owns that one check. A decoder that classifies takes the score of the last token that is no padding, which it finds by
its id and not by the mask: with no such id it takes one text at a time, with another it takes the score of padding.
Called by pretrained_inputs.
"""

from typing import TYPE_CHECKING, Any

from deploy.checkpoint.pretrained_folder import CONFIG, PretrainedFolder
from deploy.checkpoint.vocabulary import tokenizer_padding
from deploy.errors import UsageError

if TYPE_CHECKING:
    from torch import Tensor, nn

_LENGTH, _TOLERANCE = 7, 1e-3


def check_padding(folder: PretrainedFolder, network: "nn.Module") -> None:
    """Raises UsageError for a classifier whose answer to a text depends on what a batch is filled up with."""
    if not type(network).__name__.endswith("ForSequenceClassification"):
        return
    config: Any = network.config
    known, pads = config.get_text_config().pad_token_id, tokenizer_padding(folder)
    if known is None and not _takes_two(network):
        raise UsageError(
            f"{folder.path / CONFIG} has no pad_token_id, and {type(network).__name__} takes the score of the last "
            "token that is no padding: it answers one text at a time",
            expected="the id of the token that fills up a batch",
            fix=f'write it into {CONFIG}: "pad_token_id": {"the id of the pad token" if pads is None else pads}',
        )
    if pads is not None and known not in (None, pads) and not _ignores(network, pads, known):
        raise UsageError(
            f"{folder.path / CONFIG} has the pad_token_id {known}, and the tokenizer fills up with {pads}: "
            f"{type(network).__name__} would take the score of the filling",
            expected="one id for both",
            fix=f'write the one of training into {CONFIG}: "pad_token_id": {pads}',
        )


def _takes_two(network: "nn.Module") -> bool:
    """Whether it takes a batch. What else it may not take is found when it is exported."""
    try:
        _scores(network, [[0] * _LENGTH] * 2, mask=[[1] * _LENGTH] * 2)
    except Exception as error:  # noqa: BLE001 - a network of any class runs here
        return "padding" not in str(error)
    return True


def _ignores(network: "nn.Module", pads: int, known: int) -> bool:
    """Whether a text has the same scores alone and filled up; or other ones with any filling, whatever its id is."""
    config: Any = network.config
    token = next(one for one in range(3) if one not in (pads, known))
    if pads >= config.get_text_config().vocab_size:
        return False
    text = [token] * _LENGTH
    try:
        alone = _scores(network, [text], mask=[[1] * _LENGTH])
        filled, usual = (_scores(network, [[*text, one]], mask=[[1] * _LENGTH + [0]]) for one in (pads, known))
    except Exception:  # noqa: BLE001 - as above
        return True
    limit = _TOLERANCE * alone.abs().max()
    return bool((alone - filled).abs().max() <= limit or (alone - usual).abs().max() > limit)


def _scores(network: "nn.Module", ids: list[list[int]], *, mask: list[list[int]]) -> "Tensor":
    import torch

    with torch.no_grad():
        answer = network(input_ids=torch.tensor(ids), attention_mask=torch.tensor(mask))
    scores: Tensor = answer.logits
    return scores
