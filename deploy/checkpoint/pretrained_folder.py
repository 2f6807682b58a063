"""A folder that `save_pretrained` wrote: its config.json, its safetensors files, and what its tokenizer is made of.

Owns what must lie in such a folder and every refusal that needs no model. Imports neither torch nor transformers.
Called by load and pretrained.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from deploy.checkpoint.safetensors_folder import SAVED, pickle_files, read_json, weight_files
from deploy.checkpoint.sniff import INDEX, WEIGHTS
from deploy.errors import UsageError, listed

CONFIG = "config.json"
TOKENIZER_FOLDER, PROCESSOR_FOLDER = "tokenizer", "processor"
PROCESSOR = "preprocessor_config.json"
# What the networks of such folders call their inputs, a dynamic length, and the embedding of a whole text.
TOKENS, MASK, TYPES, PIXELS = "input_ids", "attention_mask", "token_type_ids", "pixel_values"
SEQUENCE, EMBEDDING = "sequence", "sentence_embedding"
# The way out for what is no network of one text or one image.
OWN_MODULE = (
    "give the module as --factory package.module:function, the file that torch.save(module.state_dict(), 'weights.pt') "
    "writes of it, and each input of its forward as --input-shape NAME=DTYPE:SIZES"
)
NAMED_OTHERWISE = (
    "give the file that torch.save(module.state_dict(), 'weights.pt') writes: transformers may name weights otherwise "
    "on disk than in memory"
)

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


@dataclass(frozen=True, slots=True, kw_only=True)
class PretrainedFolder:
    """A folder whose files are all there, its weights safetensors or `pickled` by torch.save.

    `kept` are those that a version keeps, relative to `path`. Those in `own` lie in `adapter` instead: the tokenizer of
    an adapter that was trained with one of its own.
    """

    path: Path
    config: Mapping[str, Any]
    weights: tuple[Path, ...]
    pickled: bool = False
    kept: tuple[str, ...]
    adapter: Path | None = None
    own: tuple[str, ...] = ()

    def read(self, name: str) -> Any:
        """A JSON file of the folder; None where there is none. Raises UsageError if it is no JSON of its form."""
        file = (self.adapter if self.adapter and name in self.own else self.path) / name
        if not file.is_file():
            return None
        value, form = read_json(file), list if name == _PARTS else dict
        parts = value if isinstance(value, list) else ()
        if not isinstance(value, form) or not all(isinstance(part, dict) for part in parts):
            raise UsageError(f"{file} holds no JSON {'list of objects' if form is list else 'object'}", expected=SAVED)
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


def lacks_config(path: Path) -> UsageError:
    """The error for a folder of weights that nothing says the network of."""
    return UsageError(
        f"{path} holds weights and no {CONFIG}, and they are those of no network of torchvision or timm",
        expected=SAVED,
        fix="save it with save_pretrained; or give the network of your own as --factory package.module:function",
    )


def file_of_folder(path: Path) -> UsageError | None:
    """The error for one weight file of such a folder that was given alone; None where it is none."""
    config = read_json(path.parent / CONFIG) if (path.parent / CONFIG).is_file() and not path.is_dir() else None
    if not isinstance(config, dict) or not config.get("architectures"):
        return None
    names = listed(map(str, config["architectures"]), 3)
    return UsageError(
        f"{path} lies in a folder of transformers, whose {CONFIG} names {names}; the weights "
        "alone are those of no network of torchvision or timm",
        expected=f"the folder, {CONFIG} and all",
        fix=f"give {path.parent}",
    )


def open_folder(path: Path) -> PretrainedFolder:
    """The folder, its weights complete as far as their headers tell. Raises UsageError naming what is missing."""
    if not (path / CONFIG).is_file():
        raise lacks_config(path)
    config = read_json(path / CONFIG)
    if not isinstance(config, dict):
        raise UsageError(f"{path / CONFIG} holds no JSON object", expected=SAVED)
    pickles = pickle_files(path)
    weights = pickles or weight_files(path)
    return PretrainedFolder(path=path, config=config, weights=weights, pickled=bool(pickles), kept=_kept(path))


def kept_folder(kept: Sequence[str]) -> str:
    """What the folder of kept files is called in a version: for text `tokenizer`, for images `processor`."""
    return TOKENIZER_FOLDER if set(kept) & set(_TOKENIZER) else PROCESSOR_FOLDER


def has_tokenizer(folder: PretrainedFolder) -> bool:
    """Whether a tokenizer lies in the folder."""
    return bool(set(folder.kept) & set(_TOKENIZER))


def _kept(path: Path) -> tuple[str, ...]:
    names = [name for name in (CONFIG, *_TOKENIZER, *_IMAGES, *_SENTENCES) if (path / name).is_file()]
    names += sorted(file.relative_to(path).as_posix() for file in path.glob(f"[0-9]*_*/{CONFIG}"))
    return tuple(names)
