"""One promotion of a model at a time on this machine; who only looks may wait until it is over.

Owns the lock beside the attestations. It ends with its process, whatever ends that. Called by promotion and integrity.
"""

import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from deploy.repository.layout import ATTESTATIONS_FOLDER

_FILE = ".lock"
_PATIENCE_SECONDS = 10.0
_PAUSE_SECONDS = 0.02


@contextmanager
def held(model_folder: Path) -> Iterator[None]:
    """A block in which no other process changes what is promoted of the model; it waits for who does now."""
    folder = model_folder / ATTESTATIONS_FOLDER
    folder.mkdir(exist_ok=True)
    descriptor = _opened(folder / _FILE)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


@contextmanager
def between_promotions(model_folder: Path) -> Iterator[None]:
    """A block in which no promotion is under way, for who may only read; one that does not end is waited for 10 s."""
    try:
        descriptor = os.open(model_folder / ATTESTATIONS_FOLDER / _FILE, os.O_RDONLY)
    except OSError:  # none ever was, or it is not ours to see
        yield
        return
    try:
        until = time.monotonic() + _PATIENCE_SECONDS
        while time.monotonic() < until:
            with suppress(BlockingIOError):
                fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
                break
            time.sleep(_PAUSE_SECONDS)
        yield
    finally:
        os.close(descriptor)


def _opened(path: Path) -> int:
    """The lock's descriptor. A user of the same group who made it may have left it readable only, which is enough."""
    try:
        return os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    except PermissionError as error:
        try:
            return os.open(path, os.O_RDONLY)
        except FileNotFoundError:
            raise error from None
