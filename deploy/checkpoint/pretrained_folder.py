"""A folder that `save_pretrained` wrote: its config.json, its safetensors files, and what its tokenizer is made of.

Owns what must lie in such a folder and every refusal that needs no model. Imports neither torch nor transformers.
Called by load and pretrained.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from deploy.checkpoint.sniff import Kind, damaged, recognise
from deploy.errors import UsageError, listed

CONFIG = "config.json"
WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
TOKENIZER_FOLDER, PROCESSOR_FOLDER = "tokenizer", "processor"
PROCESSOR = "preprocessor_config.json"
# What the networks of such folders call their inputs, a dynamic length, and the embedding of a whole text.
TOKENS, MASK, TYPES, PIXELS = "input_ids", "attention_mask", "token_type_ids", "pixel_values"
SEQUENCE, EMBEDDING = "sequence", "sentence_embedding"
# The way out for what is no network of one text or one image.
OWN_MODULE = (
    "give the module as --factory package.module:function, its weights as one file, and each input of its forward as "
    "--input-shape NAME=DTYPE:SIZES"
)

_SAVED = "a folder that model.save_pretrained(folder) and tokenizer.save_pretrained(folder) wrote"
_PICKLES = ("pytorch_model.bin", "pytorch_model.bin.index.json")
_TOKENIZER = (
    "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "vocab.txt",
    "vocab.json", "merges.txt", "spiece.model", "sentencepiece.bpe.model", "tokenizer.model", "spm.model",
    "sentencepiece.model", "spm_char.model", "bpe.codes", "dict.txt", "entity_vocab.json", "word_shape.json",
    "word_pronunciation.json", "emoji.json", "normalizer.json", "byte_maps.json", "prophetnet.tokenizer",
    "source.spm", "target.spm", "target_vocab.json", "vocab-src.json", "vocab-tgt.json",
)  # fmt: skip
_IMAGES = (PROCESSOR, "processor_config.json")
# What says how tokens become one embedding; a client of the model needs the length and the prompts in them.
_SENTENCES = ("modules.json", "sentence_bert_config.json", "config_sentence_transformers.json")
_PARTS = "modules.json"  # the one that is a list
_SHOWN = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class PretrainedFolder:
    """A folder whose files are all there. `kept` are those that a version keeps, relative to `path`.

    Those in `own` lie in `adapter` instead: the tokenizer of an adapter that was trained with one of its own.
    """

    path: Path
    config: Mapping[str, Any]
    weights: tuple[Path, ...]
    kept: tuple[str, ...]
    adapter: Path | None = None
    own: tuple[str, ...] = ()

    def read(self, name: str) -> Any:
        """A JSON file of the folder; None where there is none. Raises UsageError if it is no JSON of its form."""
        file = (self.adapter if self.adapter and name in self.own else self.path) / name
        if not file.is_file():
            return None
        value, form = _read_json(file), list if name == _PARTS else dict
        parts = value if isinstance(value, list) else ()
        if not isinstance(value, form) or not all(isinstance(part, dict) for part in parts):
            raise UsageError(f"{file} holds no JSON {'list of objects' if form is list else 'object'}", expected=_SAVED)
        return value

    def with_tokenizer_of(self, adapter: Path) -> "PretrainedFolder":
        """The folder with the adapter's tokenizer in place of its own, where one lies there."""
        own = tuple(name for name in _TOKENIZER if (adapter / name).is_file())
        if not own:
            return self
        others = tuple(name for name in self.kept if name not in _TOKENIZER)
        return replace(self, kept=(*others, *own), adapter=adapter, own=own)


def is_pretrained_folder(path: Path) -> bool:
    """Whether a path is to be read as such a folder, whole or not: adapters and other sharded formats are none."""
    if not path.is_dir() or (path / "adapter_config.json").exists():
        return False
    return any((path / name).exists() for name in (CONFIG, WEIGHTS, INDEX))


def open_folder(path: Path) -> PretrainedFolder:
    """The folder, its weights complete as far as their headers tell. Raises UsageError naming what is missing."""
    if not (path / CONFIG).is_file():
        raise UsageError(
            f"{path} holds weights and no {CONFIG}",
            expected=_SAVED,
            fix="save it with save_pretrained; or give the file of a network of torchvision's, timm's or your own "
            f"(--factory): {path / WEIGHTS}",
        )
    config = _read_json(path / CONFIG)
    if not isinstance(config, dict):
        raise UsageError(f"{path / CONFIG} holds no JSON object", expected=_SAVED)
    return PretrainedFolder(path=path, config=config, weights=_weights(path), kept=_kept(path))


def kept_folder(kept: Sequence[str]) -> str:
    """What the folder of kept files is called in a version: for text `tokenizer`, for images `processor`."""
    return TOKENIZER_FOLDER if set(kept) & set(_TOKENIZER) else PROCESSOR_FOLDER


def has_tokenizer(folder: PretrainedFolder) -> bool:
    """Whether a tokenizer lies in the folder."""
    return bool(set(folder.kept) & set(_TOKENIZER))


def _weights(path: Path) -> tuple[Path, ...]:
    if (path / WEIGHTS).is_file():
        names: dict[str, list[str]] = {WEIGHTS: []}
    elif (path / INDEX).is_file():
        names = _shards(path)
    else:
        raise _no_weights(path)
    absent = [name for name in names if not (path / name).is_file()]
    if absent:
        raise UsageError(
            f"{path} lacks {len(absent)} of its {len(names)} weight files: {listed(absent, _SHOWN)}",
            expected=f"every file that {INDEX} names",
            fix="copy or download the folder again",
        )
    for name, tensors in names.items():
        _check_file(path / name, tensors)
    return tuple(path / name for name in names)


def _shards(path: Path) -> dict[str, list[str]]:
    """The tensors of each shard, by the index."""
    index = _read_json(path / INDEX)
    places = index.get("weight_map") if isinstance(index, dict) else None
    if not isinstance(places, dict) or not places or not all(isinstance(name, str) for name in places.values()):
        raise UsageError(f"{path / INDEX} names no weights", expected="a weight_map of tensor names to files")
    shards: dict[str, list[str]] = {}
    for tensor, name in places.items():
        if Path(name).name != name:
            raise UsageError(f"{path / INDEX} names a file elsewhere: {name!r}", expected="files of this folder")
        shards.setdefault(name, []).append(tensor)
    return dict(sorted(shards.items()))


def _check_file(path: Path, tensors: list[str]) -> None:
    """Raises UsageError if a file is no whole safetensors file, or lacks a tensor that the index says it has."""
    from safetensors import SafetensorError, safe_open

    if recognise(path) is not Kind.SAFETENSORS:
        raise UsageError(f"{path} is no safetensors file, in spite of its name", expected=_SAVED)
    try:
        with safe_open(path, framework="numpy") as file:
            held = set(file.keys())
    except SafetensorError as error:
        raise damaged(path, error) from error
    absent = [tensor for tensor in tensors if tensor not in held]
    if absent:
        raise UsageError(
            f"{path} lacks {len(absent)} tensors that {INDEX} says it has: {listed(absent, _SHOWN)}",
            expected="shards and index of one save",
            fix="copy or download the folder again",
        )


def _no_weights(path: Path) -> UsageError:
    pickled = next((name for name in _PICKLES if (path / name).exists()), None)
    if pickled is None:
        return UsageError(f"{path} holds {CONFIG} and no weights", expected=f"{WEIGHTS}, or {INDEX} with its shards")
    return UsageError(
        f"{path} holds its weights as a pickle ({pickled})",
        expected=f"{WEIGHTS}, or {INDEX} with its shards",
        fix="load it where it was trained and write it again: model.save_pretrained(folder, safe_serialization=True)",
    )


def _kept(path: Path) -> tuple[str, ...]:
    names = [name for name in (CONFIG, *_TOKENIZER, *_IMAGES, *_SENTENCES) if (path / name).is_file()]
    names += sorted(file.relative_to(path).as_posix() for file in path.glob(f"[0-9]*_*/{CONFIG}"))
    return tuple(names)


def _read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise UsageError(f"{path} is no JSON: {error}", expected=_SAVED) from error
