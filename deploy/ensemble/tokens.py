"""What training itself makes of texts: its own tokenizer as transformers loads it, then the eager network.

Owns the reference that a text ensemble is proven against, and what the first step is made of. Runs in a child.
Called by text.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from deploy.checkpoint.model import Checkpoint
from deploy.checkpoint.pretrained_folder import TOKENS, open_folder
from deploy.ensemble.reference import Answers, network_answers
from deploy.errors import UsageError

_NO_LIMIT = 10**9  # a tokenizer that knows none has 10^30
_DRAWN, _WORDS = 4, 9
_OF_A_TOKENIZER = ("tokenizer.json", "tokenizer_config.json")


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingTokenizer:
    """Training's tokenizer as one JSON text, its truncation and padding with it.

    `cut` says whether training cut longer texts off where the network ends; `drawn` are texts of the tokenizer's words.
    """

    serialized: str
    cut: bool
    drawn: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainedTexts:
    """Per text the inputs [1, tokens] as training makes them, all of them padded together, and the answers."""

    alone: tuple[tuple[np.ndarray, ...], ...]
    together: tuple[np.ndarray, ...]
    answers: Answers


def read_tokenizer(checkpoint: Checkpoint, longest: int) -> TrainingTokenizer:
    """The tokenizer that lies in the checkpoint's folder; the network takes `longest` tokens.

    Raises UsageError if there is none that can be served without transformers.
    """
    tokenizer = _load(checkpoint)
    serving = tokenizer.backend_tokenizer
    cut = _limit(tokenizer, checkpoint) == longest
    if cut:
        serving.enable_truncation(longest, strategy="longest_first", direction=tokenizer.truncation_side)
    else:
        serving.no_truncation()
    serving.enable_padding(
        direction=tokenizer.padding_side,
        pad_id=tokenizer.pad_token_id,
        pad_type_id=tokenizer.pad_token_type_id,
        pad_token=tokenizer.pad_token,
    )
    return TrainingTokenizer(serialized=serving.to_str(), cut=cut, drawn=_drawn(tokenizer))


def count_tokens(checkpoint: Checkpoint, texts: Sequence[str], *, cut_at: int | None) -> tuple[int, ...]:
    """How many tokens training's tokenizer makes of each text, cut at so many where it cuts."""
    tokenizer = _load(checkpoint)
    return tuple(len(_call(tokenizer, [text], cut_at)["input_ids"][0]) for text in texts)


def trained_texts(
    checkpoint: Checkpoint, texts: Sequence[str], *, cut_at: int | None, output: int, threads: int
) -> TrainedTexts:
    """What training makes of the texts, each alone; `output` is the index of the output that counts."""
    tokenizer = _load(checkpoint)
    names = [tensor.name for tensor in checkpoint.inputs]

    def inputs(some: Sequence[str]) -> tuple[np.ndarray, ...]:
        found = _call(tokenizer, some, cut_at)
        return tuple(np.array(found[name], np.int64) for name in names)

    alone = tuple(inputs([text]) for text in texts)
    answers = network_answers(checkpoint, alone, output=output, threads=threads)
    return TrainedTexts(alone=alone, together=inputs(texts), answers=answers)


def _load(checkpoint: Checkpoint) -> Any:
    """The tokenizer as training calls it, in sentence-transformers' way where the folder is one of its own."""
    folder = open_folder(checkpoint.network_path)
    home = _home(checkpoint)
    tokenizer = _read(home)
    if not getattr(tokenizer, "is_fast", False):
        raise UsageError(
            f"the tokenizer of {home} is {type(tokenizer).__name__}, which is Python code of transformers",
            expected="a fast tokenizer, which one tokenizer.json holds whole",
            fix="leave --ensemble text out, and tokenize in the client",
        )
    if tokenizer.pad_token_id is None:
        raise UsageError(
            f"the tokenizer of {home} has no padding token, so that texts of several lengths make no batch",
            expected="the padding token of training",
            fix="set it as training did and save again: tokenizer.pad_token = ...; tokenizer.save_pretrained(folder)",
        )
    if checkpoint.base is not None:
        _check_known(tokenizer, checkpoint, home)
    if (folder.read("sentence_bert_config.json") or {}).get("do_lower_case"):
        _lower(tokenizer.backend_tokenizer)
    return tokenizer


def _home(checkpoint: Checkpoint) -> Path:
    """Where training's tokenizer lies: beside an adapter, where trainers save it, else in the network's own folder."""
    own = checkpoint.base is not None and any((checkpoint.path / name).is_file() for name in _OF_A_TOKENIZER)
    return checkpoint.path if own else checkpoint.network_path


def _check_known(tokenizer: Any, checkpoint: Checkpoint, home: Path) -> None:
    """Raises UsageError if the tokenizer makes tokens that the network has no embedding of."""
    values = next(tensor for tensor in checkpoint.inputs if tensor.name == TOKENS).values
    beyond = sorted(word for word, index in tokenizer.get_vocab().items() if values and index > values[1])
    if values and beyond:
        raise UsageError(
            f"the tokenizer of {home} has {len(beyond)} tokens that the network has no embedding of, "
            f"such as {beyond[0]!r}: its ids end at {values[1]}",
            expected="the tokenizer of training, and an embedding of each of its tokens",
            fix="before training: model.resize_token_embeddings(len(tokenizer)); else the tokenizer that training used",
        )


def _read(path: Path) -> Any:
    from deploy.checkpoint.pretrained import import_transformers

    transformers = import_transformers()
    try:
        return transformers.AutoTokenizer.from_pretrained(str(path), local_files_only=True, trust_remote_code=False)
    except Exception as error:  # the loader raises whatever its files lead it to
        first = str(error).strip().partition("\n")[0]
        raise UsageError(
            f"transformers cannot load the tokenizer of {path}: {type(error).__name__}: {first}",
            expected="the tokenizer that training used, in the checkpoint's folder",
            fix="save it there: tokenizer.save_pretrained(folder)",
        ) from error


def _lower(backend: Any) -> None:
    """Lower-case first, as sentence-transformers does where its folder says so; twice changes nothing."""
    from tokenizers import normalizers

    own = [] if backend.normalizer is None else [backend.normalizer]
    backend.normalizer = normalizers.Sequence([normalizers.Lowercase(), *own])


def _call(tokenizer: Any, texts: Sequence[str], cut_at: int | None) -> Any:
    """The tokenizer called as training calls it, padded to the longest of the texts."""
    cut = {"truncation": True, "max_length": cut_at} if cut_at else {"truncation": False}
    return tokenizer(
        list(texts), padding=True, return_token_type_ids=True, return_attention_mask=True, verbose=False, **cut
    )


def _limit(tokenizer: Any, checkpoint: Checkpoint) -> int | None:
    """The tokens at which training cut texts off, where folder or tokenizer say so."""
    told = (open_folder(checkpoint.network_path).read("sentence_bert_config.json") or {}).get("max_seq_length")
    known = [limit for limit in (told, tokenizer.model_max_length) if limit is not None and limit < _NO_LIMIT]
    return min(known, default=None)


def _drawn(tokenizer: Any) -> tuple[str, ...]:
    """A few texts of words that the tokenizer knows: of a small vocabulary the seeded ones may hold none."""
    generator = np.random.default_rng(0)
    usable = sorted(set(tokenizer.get_vocab().values()) - set(tokenizer.all_special_ids))
    return tuple(
        tokenizer.decode([usable[n] for n in generator.integers(0, len(usable), size=_WORDS * (place + 1) // 2)])
        for place in range(_DRAWN)
    )
