"""What a conversion needs on disk, and a full disk told as such.

Owns how that is recognised: torch and the compiler have words of their own for it. Called by run; what it wraps runs in
a child process.
"""

import shutil
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from deploy.errors import UnfinishedError
from deploy.files import is_full_disk

T = TypeVar("T")

_BESIDE = 100_000_000  # bytes of a graph and what the C++ compiler writes
_WORDS = ("No space left on device", "Disk quota exceeded")
_TORCHS_WORDS = "PytorchStreamWriter failed writing"  # whatever the reason


def minding_the_disk(function: Callable[..., T], *, weights: int) -> Callable[..., T]:
    """The function, which gets `folder=` to write into, with UnfinishedError in place of what a full disk raised.

    `weights` is how many bytes of them it writes.
    """
    return partial(_run, function, weights + _BESIDE)


def _run(function: Callable[..., T], needed: int, *args: Any, folder: Path, **options: Any) -> T:
    try:
        return function(*args, folder=folder, **options)
    except Exception as error:
        if not any(_is_of_a_full_disk(one, needed, folder) for one in _chain(error)):
            raise
        free = shutil.disk_usage(folder).free
        raise UnfinishedError(
            f"the disk is full: {free / 1e6:.0f} MB are free in {folder} after clearing up",
            expected=f"about {needed / 1e6:.0f} MB there for each format, and as much in the folder for temporary files"
            " where that is another one",
            fix="free some space, or choose a --repository on another disk",
        ) from error


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def _is_of_a_full_disk(error: BaseException, needed: int, folder: Path) -> bool:
    if is_full_disk(error):
        return True
    text = str(error)
    torchs = _TORCHS_WORDS in text and shutil.disk_usage(folder).free < needed
    return torchs or any(words in text for words in _WORDS)
