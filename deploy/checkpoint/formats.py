"""A file on disk becomes the object that was saved in it, its tensors memory-mapped wherever the format allows.

Owns every refusal that concerns pickles; `pickles` unpickles. Judges no weights.
Called by load.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from deploy.checkpoint.pickles import load_plain, load_trusted, types_needed
from deploy.checkpoint.quantized import TORCHAO, dequantized, read_quantized
from deploy.checkpoint.safetensors_folder import weight_files
from deploy.checkpoint.sharded import read_sharded
from deploy.checkpoint.sniff import SAVE_STATE_DICT, SAVE_WHOLE, WANTED, Kind, damaged, recognise
from deploy.errors import UsageError, listed

_DTENSOR = "torch.distributed.tensor.DTensor"


@dataclass(frozen=True, slots=True, kw_only=True)
class Stored:
    """What a file or folder holds: a mapping (bare weights, or a training dict), and a safetensors file's metadata.

    `notes` say what was made of it on the way.
    """

    format: Literal["torch", "safetensors", "distributed"]
    content: Mapping[Any, Any]
    metadata: Mapping[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


def read_stored(path: Path, *, trust_pickle: bool = False) -> Stored:
    """The mapping saved at `path`. Nothing is executed unless `trust_pickle`.

    Raises UsageError, each with its own message, if the file is not a checkpoint, is damaged, needs types that only
    `trust_pickle` allows, or holds something else than a mapping.
    """
    kind = recognise(path)
    if kind is Kind.SAFETENSORS:
        return _read_safetensors(path)
    if kind is Kind.SAFETENSORS_FOLDER:
        files = [_read_safetensors(file) for file in weight_files(path)]
        tensors = {name: tensor for file in files for name, tensor in file.content.items()}
        return Stored(format="safetensors", content=tensors, metadata=files[0].metadata)
    if kind is Kind.SHARDED:
        return Stored(format="distributed", content=_read_folder(path, trust_pickle=trust_pickle))
    if kind is Kind.PROGRAM:
        raise UsageError(f"{path} is a torch.export program rather than weights", expected=WANTED)
    content = _read_torch(path, zipped=kind is Kind.TORCH_ZIP, trust_pickle=trust_pickle)
    found, notes = dequantized(path, _require_mapping(path, content))
    return Stored(format="torch", content=found, notes=notes)


def _read_safetensors(path: Path) -> Stored:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a mapping
            metadata = file.metadata() or {}
    except SafetensorError as error:
        raise damaged(path, error) from error
    return Stored(format="safetensors", content=tensors, metadata=metadata)


def _read_folder(path: Path, *, trust_pickle: bool) -> dict[str, Any]:
    """The tensors of all shards, and what Lightning puts beside them (`meta.pt`): hyper-parameters and progress."""
    beside = path / "meta.pt"
    facts = read_stored(beside, trust_pickle=trust_pickle).content if beside.is_file() else {}
    return {**facts, **read_sharded(path)}


def _read_torch(path: Path, *, zipped: bool, trust_pickle: bool) -> object:
    import pickle

    try:
        return load_trusted(path, mmap=zipped) if trust_pickle else load_plain(path, mmap=zipped)
    except pickle.UnpicklingError as error:
        if trust_pickle:
            raise _failed(path, error) from error
        return _read_more(path, error, zipped=zipped)
    except (EOFError, OSError) as error:
        raise damaged(path, error) from error
    except Exception as error:  # the reader raises whatever a damaged pickle, or the code it runs, leads it to
        raise (_failed if trust_pickle else damaged)(path, error) from error


def _read_more(path: Path, error: Exception, *, zipped: bool) -> object:
    """What needs torchao alone to be read. Raises UsageError, naming the types, for a pickle that needs more."""
    import pickle

    names = types_needed(path, str(error), zipped=zipped)
    if not names or not all(name.startswith(TORCHAO) for name in names):
        raise _refused_pickle(path, names) from error
    try:
        return read_quantized(path, mmap=zipped)
    except pickle.UnpicklingError as again:
        raise _refused_pickle(path, types_needed(path, str(again), zipped=zipped) or names) from again


def _failed(path: Path, error: Exception) -> UsageError:
    return UsageError(
        f"unpickling {path} failed with {type(error).__name__}: {error}",
        expected="the code that this pickle names, importable from here",
        fix=f"run this where the training code is, or {SAVE_STATE_DICT}",
    )


def _refused_pickle(path: Path, names: list[str]) -> UsageError:
    if any(name.startswith("torch.nn.modules.") for name in names):
        return _whole_module(path, next(name for name in (*_not_torch(names), *names)))
    if _DTENSOR in names:
        return UsageError(
            f"{path} holds DTensors: the piece of each weight that one rank of FSDP or tensor parallelism had",
            expected="whole tensors",
            fix=SAVE_WHOLE,
        )
    if quantized := next((name for name in names if name.startswith(TORCHAO)), None):
        return UsageError(
            f"{path} holds weights that torchao has quantized ({quantized}), which the torchao here does not know",
            expected="weights of the torchao that is installed, and no other types beside them",
            fix="install the release that quantized them, or save the state_dict before quantize_ converts it",
        )
    if not names:
        return UsageError(
            f"{path} is a pickle with instructions that are not needed for weights",
            expected=WANTED,
            fix=SAVE_STATE_DICT,
        )
    return UsageError(
        f"{path} is a pickle that needs another type than weights do: {listed(names, 5)}",
        expected="tensors, numbers, strings, lists and dicts only; unpickling more can run any code",
        fix=f"{SAVE_STATE_DICT}; or, if you trust who wrote the file, add --trust-pickle",
    )


def _not_torch(names: list[str]) -> list[str]:
    return [name for name in names if not name.startswith("torch.")]


def _whole_module(path: Path, name: str) -> UsageError:
    return UsageError(
        f"{path} holds a whole pickled module ({name}), which is code and weights in one",
        expected="weights alone; a pickled module breaks with every change of its code",
        fix=SAVE_STATE_DICT,
    )


def _require_mapping(path: Path, content: object) -> Mapping[Any, Any]:
    import torch

    if isinstance(content, torch.nn.Module):
        raise _whole_module(path, f"{type(content).__module__}.{type(content).__qualname__}")
    if isinstance(content, Mapping):
        return content
    if isinstance(content, torch.Tensor):
        found = f"{path} holds one bare tensor of shape {list(content.shape)} without a name"
    elif isinstance(content, list | tuple):
        found = f"{path} holds a {type(content).__name__} of {len(content)} items without names"
    else:
        found = f"{path} holds an object of type {type(content).__name__}"
    raise UsageError(found, expected="a dict of named tensors: a state_dict", fix=SAVE_STATE_DICT)
