"""The weight files of a folder: one, or shards with the index that says which tensor lies in which.

Owns what must lie there, as far as headers and the index tell: safetensors, or what transformers wrote before it had
those, files of torch.save. Imports no torch.
Called by formats and pretrained_folder.
"""

import json
from pathlib import Path
from typing import Any

from deploy.checkpoint.sniff import INDEX, WEIGHTS, Kind, damaged, recognise
from deploy.errors import UsageError, listed

SAVED = "a folder that model.save_pretrained(folder) and tokenizer.save_pretrained(folder) wrote"
PICKLE, PICKLE_INDEX = "pytorch_model.bin", "pytorch_model.bin.index.json"
_SHOWN = 5


def weight_files(path: Path) -> tuple[Path, ...]:
    """The folder's file, or all its shards. Raises UsageError if there is none, or one is missing, cut or another's."""
    names = _named(path, WEIGHTS, INDEX)
    if not names:
        raise UsageError(
            f"{path} holds config.json and no weights",
            expected=f"{WEIGHTS}, or {INDEX} with its shards; or {PICKLE}, or {PICKLE_INDEX} with its shards",
        )
    for name, tensors in names.items():
        _check_file(path / name, tensors)
    return tuple(path / name for name in names)


def pickle_files(path: Path) -> tuple[Path, ...]:
    """The folder's file of torch.save, or all its shards; empty where safetensors lie there, or none of these.

    Raises UsageError if one is missing or no such file.
    """
    if any((path / name).is_file() for name in (WEIGHTS, INDEX)):
        return ()
    names = _named(path, PICKLE, PICKLE_INDEX)
    for name in names:
        if recognise(path / name) not in (Kind.TORCH_ZIP, Kind.TORCH_LEGACY):
            raise UsageError(f"{path / name} is no file of torch.save, in spite of its name", expected=SAVED)
    return tuple(path / name for name in names)


def _named(path: Path, file: str, index: str) -> dict[str, list[str]]:
    """The one file, or all shards with the tensors that the index says of each; empty where neither lies there.

    Raises UsageError if a shard is missing.
    """
    if (path / file).is_file():
        return {file: []}
    names = _shards(path, index) if (path / index).is_file() else {}
    absent = [name for name in names if not (path / name).is_file()]
    if absent:
        raise UsageError(
            f"{path} lacks {len(absent)} of its {len(names)} weight files: {listed(absent, _SHOWN)}",
            expected=f"every file that {index} names",
            fix="copy or download the folder again",
        )
    return names


def _shards(path: Path, file: str) -> dict[str, list[str]]:
    """The tensors of each shard, by the index."""
    index = read_json(path / file)
    places = index.get("weight_map") if isinstance(index, dict) else None
    if not isinstance(places, dict) or not places or not all(isinstance(name, str) for name in places.values()):
        raise UsageError(f"{path / file} names no weights", expected="a weight_map of tensor names to files")
    shards: dict[str, list[str]] = {}
    for tensor, name in places.items():
        if Path(name).name != name:
            raise UsageError(f"{path / file} names a file elsewhere: {name!r}", expected="files of this folder")
        shards.setdefault(name, []).append(tensor)
    return dict(sorted(shards.items()))


def _check_file(path: Path, tensors: list[str]) -> None:
    """Raises UsageError if a file is no whole safetensors file, or lacks a tensor that the index says it has."""
    from safetensors import SafetensorError, safe_open

    if recognise(path) is not Kind.SAFETENSORS:
        raise UsageError(f"{path} is no safetensors file, in spite of its name", expected=SAVED)
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


def read_json(path: Path) -> Any:
    """What a JSON file of the folder holds. Raises UsageError if it is no JSON."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise UsageError(f"{path} is no JSON: {error}", expected=SAVED) from error
