"""Folders for the moment, which the next run removes where the process that made them was killed.

Owns `deployctl-<what>-*` in the folder for temporary files. A lock tells those in use from those left behind, as it
does for stages. Called by whoever works in a folder that nobody is to see.
"""

import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

_LOCK = ".lock"


@contextmanager
def scratch_folder(what: str) -> Iterator[Path]:
    """A new folder, removed when the block is left; those that dead processes left are removed first."""
    remove_stale()
    with tempfile.TemporaryDirectory(prefix=f"deployctl-{what}-") as folder:
        # Locked before it has its name: a lock that is there and free is a dead process's.
        making = Path(folder, f"{_LOCK}-making")
        with making.open("wb") as held:
            fcntl.flock(held, fcntl.LOCK_EX)
            making.rename(Path(folder, _LOCK))
            yield Path(folder)


def remove_stale() -> tuple[Path, ...]:
    """Remove the folders of dead processes, ours alone, and give back which those were."""
    removed = []
    for lock in sorted(Path(tempfile.gettempdir()).glob(f"deployctl-*/{_LOCK}")):
        with suppress(OSError), lock.open("rb") as held:
            if os.fstat(held.fileno()).st_uid != os.getuid():
                continue
            fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(lock.parent)
            removed.append(lock.parent)
    return tuple(removed)
