"""A file on disk becomes the object that was saved in it, its tensors memory-mapped wherever the format allows.

Owns the only `torch.load` of the project and every refusal that concerns pickles. Judges no weights.
Called by load.
"""

import re
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from deploy.checkpoint.sniff import SAVE_STATE_DICT, WANTED, Kind, damaged, recognise
from deploy.errors import UsageError

_NAMED_GLOBAL = re.compile(r"GLOBAL ([\w.]+)")


@dataclass(frozen=True, slots=True, kw_only=True)
class Stored:
    """What a file holds: a mapping (bare weights, or a training dict), and the text metadata of a safetensors file."""

    format: Literal["torch", "safetensors"]
    content: Mapping[Any, Any]
    metadata: Mapping[str, str] = field(default_factory=dict)


def read_stored(path: Path, *, trust_pickle: bool = False) -> Stored:
    """The mapping saved at `path`. Nothing is executed unless `trust_pickle`.

    Raises UsageError, each with its own message, if the file is not a checkpoint, is damaged, needs types that only
    `trust_pickle` allows, or holds something else than a mapping.
    """
    kind = recognise(path)
    if kind is Kind.SAFETENSORS:
        return _read_safetensors(path)
    content = _read_torch(path, zipped=kind is Kind.TORCH_ZIP, trust_pickle=trust_pickle)
    return Stored(format="torch", content=_require_mapping(path, content))


def _read_safetensors(path: Path) -> Stored:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a mapping
            metadata = file.metadata() or {}
    except SafetensorError as error:
        raise damaged(path, error) from error
    return Stored(format="safetensors", content=tensors, metadata=metadata)


def _read_torch(path: Path, *, zipped: bool, trust_pickle: bool) -> object:
    import pickle

    import torch

    if trust_pickle:
        return _read_trusted(path, zipped=zipped)
    try:
        # An old torch wrote what a new one warns about; the user of this command can do nothing about either.
        with warnings.catch_warnings(), torch.serialization.safe_globals(_harmless_globals()):
            warnings.simplefilter("ignore")
            return torch.load(path, map_location="cpu", weights_only=True, mmap=zipped)  # noqa: TID251 - the one place
    except pickle.UnpicklingError as error:
        raise _refused_pickle(path, _types_needed(path, str(error), zipped=zipped)) from error
    except Exception as error:  # the reader raises whatever a damaged pickle leads it to
        raise damaged(path, error) from error


def _read_trusted(path: Path, *, zipped: bool) -> object:
    import torch

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return torch.load(path, map_location="cpu", weights_only=False, mmap=zipped)  # noqa: TID251 - asked for
    except (EOFError, OSError) as error:
        raise damaged(path, error) from error
    except Exception as error:  # a pickle may run, and so raise, anything
        raise UsageError(
            f"unpickling {path} failed with {type(error).__name__}: {error}",
            expected="the code that this pickle names, importable from here",
            fix=f"run this where the training code is, or {SAVE_STATE_DICT}",
        ) from error


def _harmless_globals() -> list[Any]:
    """What `np.float64` scalars, such as a best accuracy, are rebuilt from: constructors without side effects."""
    import numpy as np
    from numpy.dtypes import Float16DType, Float32DType, Float64DType, Int32DType, Int64DType

    scalar = np._core.multiarray.scalar  # type: ignore[attr-defined]
    dtypes = [Float16DType, Float32DType, Float64DType, Int32DType, Int64DType]
    return [scalar, (scalar, "numpy.core.multiarray.scalar"), np.dtype, *dtypes]


def _types_needed(path: Path, message: str, *, zipped: bool) -> list[str]:
    """The types a pickle asks for beyond weights: all of them for a zip file, else the first, from torch's message."""
    names: list[str] = []
    if zipped:
        allowed = {"numpy._core.multiarray.scalar", "numpy.core.multiarray.scalar", "numpy.dtype"}
        names = sorted(
            name for name in _all_globals(path) if name not in allowed and not name.startswith("numpy.dtypes.")
        )
    if not names and (match := _NAMED_GLOBAL.search(message)):
        names = [match[1]]
    return names


def _all_globals(path: Path) -> list[str]:
    """Every type a zip file's pickle asks for that torch does not allow; none where that cannot be read."""
    import torch

    try:
        return torch.serialization.get_unsafe_globals_in_checkpoint(str(path))
    except Exception:  # noqa: BLE001 - only makes a message more complete; the refusal stands without it
        return []


def _refused_pickle(path: Path, names: list[str]) -> UsageError:
    if any(name.startswith("torch.nn.modules.") for name in names):
        return _whole_module(path, next(name for name in (*_not_torch(names), *names)))
    if not names:
        return UsageError(
            f"{path} is a pickle with instructions that are not needed for weights",
            expected=WANTED,
            fix=SAVE_STATE_DICT,
        )
    shown = ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
    return UsageError(
        f"{path} is a pickle that needs another type than weights do: {shown}",
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
