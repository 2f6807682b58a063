"""Unpickling that runs nothing: tensors, plain values, and a few types that are rebuilt without side effects.

Owns every `torch.load` of the project and what it allows. Words no refusal: foreign exceptions pass.
Called by formats, sharded and program.
"""

import re
import warnings
from argparse import Namespace
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import IO, Any

_LIGHTNING_UTILITIES = (
    "lightning.fabric.utilities.data",
    "lightning_fabric.utilities.data",
    "pytorch_lightning.utilities.parsing",
)
_NAMED_GLOBAL = re.compile(r"GLOBAL ([\w.]+)")


def load_plain(source: Path | IO[bytes], *, mmap: bool = False) -> object:
    """What was saved, of plain types and harmless ones. Raises pickle.UnpicklingError where it needs others."""
    import torch

    harmless: list[Any] = [(value, name) for name, value in harmless_globals().items()]
    # An old torch wrote what a new one warns about; the user of this command can do nothing about either.
    with warnings.catch_warnings(), torch.serialization.safe_globals(harmless):
        warnings.simplefilter("ignore")
        return torch.load(source, map_location="cpu", weights_only=True, mmap=mmap)  # noqa: TID251 - the one place


def load_trusted(path: Path, *, mmap: bool) -> object:
    """What was saved, of any types: runs code from the file, so only where the user trusts it."""
    import torch

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.load(path, map_location="cpu", weights_only=False, mmap=mmap)  # noqa: TID251 - asked for


class _AttributeDict(dict[str, Any]):
    """Stands for Lightning's dict of hyper-parameters, which only adds attribute access."""


def harmless_globals() -> dict[str, Any]:
    """What is rebuilt without side effects, under the name that pickles ask for it by.

    `np.float64` scalars, such as a best accuracy; argparse's and Lightning's settings; paths.
    """
    import numpy as np

    scalar = np._core.multiarray.scalar  # type: ignore[attr-defined]
    dtypes = ("Float16DType", "Float32DType", "Float64DType", "Int32DType", "Int64DType")
    return {
        "numpy._core.multiarray.scalar": scalar,
        "numpy.core.multiarray.scalar": scalar,
        "numpy.dtype": np.dtype,
        **{f"numpy.dtypes.{name}": getattr(np.dtypes, name) for name in dtypes},
        "argparse.Namespace": Namespace,
        **{f"pathlib.{name}": PurePosixPath for name in ("PosixPath", "PurePosixPath")},
        **{f"pathlib.{name}": PureWindowsPath for name in ("WindowsPath", "PureWindowsPath")},
        **{f"{module}.AttributeDict": _AttributeDict for module in _LIGHTNING_UTILITIES},
    }


def types_needed(path: Path, message: str, *, zipped: bool) -> list[str]:
    """The types a pickle asks for beyond weights: all of them for a zip file, else the first, from torch's message."""
    names = sorted(set(_all_globals(path)) - set(harmless_globals())) if zipped else []
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
