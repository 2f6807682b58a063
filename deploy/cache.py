"""The user's cache folder: engines, indexes, and work done before, found by digest.

Owns where things lie, and how an entry is kept, found, listed and removed; what it means belongs to the room that put
it there. Called by those rooms and by the command `cache`.

An entry is a folder named by its key, with an `entry.json` that holds the digest of each of its files. It appears by
one rename, so that of several writers one wins and a killed one leaves nothing that is ever read. A reader takes a
copy and checks the digests of that copy: what it uses can neither be removed nor changed under it.
"""

import os
import shutil
import stat
import tempfile
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from deploy.errors import UsageError
from deploy.files import relative_files, rename_new, sha256_file, sync_tree
from deploy.records import Record

_FACTS = "entry.json"
_UNFINISHED = ".unfinished-"
_ABANDONED_SECONDS = 24 * 3600.0
_LEAST_ROOM = 1_000_000  # bytes: a graph without its weights
_OTHERS = stat.S_IWGRP | stat.S_IWOTH


def cache_folder(*parts: str) -> Path:
    """A folder below `$DEPLOYCTL_CACHE`, else `$XDG_CACHE_HOME/deployctl`, else `~/.cache/deployctl`; not created."""
    chosen = os.environ.get("DEPLOYCTL_CACHE")
    if chosen:
        return Path(chosen, *parts)
    base = os.environ.get("XDG_CACHE_HOME")
    return Path(base, "deployctl", *parts) if base else Path.home().joinpath(".cache", "deployctl", *parts)


class _Facts(Record):
    """What an entry is and holds. `files` gives the hex SHA-256 per relative path."""

    key: str
    about: str
    files: dict[str, str]


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """One thing kept. `size` is in bytes; `used` is when it was last kept or taken, in seconds since the epoch."""

    key: str
    about: str
    folder: Path
    size: int
    used: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Store:
    """Entries in one folder. A value that travels to children, whose environment may name another cache."""

    folder: Path

    def keep(self, key: str, source: Path, *, about: str) -> None:
        """Keep a copy of the folder `source` under `key`, unless there is one. `about` tells people what it is.

        A cache that cannot be written, or a full disk, is no reason to fail: then nothing is kept.
        """
        with suppress(OSError):
            self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            work = Path(tempfile.mkdtemp(prefix=_UNFINISHED, dir=self.folder))
            try:
                entry = work / key
                shutil.copytree(source, entry)
                _close_to_others(entry)
                files = {path: sha256_file(entry / path) for path in relative_files(entry)}
                _Facts(key=key, about=about, files=files).write(entry / _FACTS)
                sync_tree(entry)
                if not (self.folder / key / _FACTS).is_file():
                    self.drop(key)  # what a killed remover left of one
                rename_new(entry, self.folder / key)
            finally:
                shutil.rmtree(work, ignore_errors=True)

    def take(self, key: str, into: Path) -> bool:
        """Whether there is a sound entry under `key`; then its files are in the new folder `into`.

        One whose digests do not hold, or that others may have written, counts as absent and is removed where it can be.
        """
        folder = self.folder / key
        if not (folder / _FACTS).is_file():
            return False
        with suppress(OSError):
            if _trusted(folder):
                shutil.copytree(folder, into)
                if _sound(into, key):
                    (into / _FACTS).unlink()
                    with suppress(OSError):  # a cache that may only be read is one
                        os.utime(folder)
                    return True
        shutil.rmtree(into, ignore_errors=True)
        # No room for the copy is no fault of the entry.
        with suppress(OSError):
            if _trusted(folder) and _sound(folder, key):
                return False
        self.drop(key)
        return False

    def drop(self, key: str) -> None:
        """Remove what is kept under `key`, if anything is and it may be; at every moment it is whole or not there."""
        with suppress(OSError):
            work = Path(tempfile.mkdtemp(prefix=_UNFINISHED, dir=self.folder))
            try:
                (self.folder / key).rename(work / key)
            finally:
                shutil.rmtree(work, ignore_errors=True)
        # A full disk may have no room for the folder that it is moved to.
        shutil.rmtree(self.folder / key, ignore_errors=True)

    def entries(self) -> tuple[Entry, ...]:
        """What is kept, the one used last first."""
        return tuple(sorted(self._entries(), key=lambda entry: entry.used, reverse=True))

    def prune(self, *, unused_days: float | None = None, most_bytes: int | None = None) -> tuple[Entry, ...]:
        """Remove entries, those unused for longest first, and give back which.

        Those unused for more than `unused_days`, and then as many as leave at most `most_bytes`; with neither, all.
        What killed writers left behind goes too, once it is a day old. Raises UsageError if some could not be removed.
        """
        now, removed, left = time.time(), [], 0
        for entry in self.entries():
            stale = unused_days is not None and now - entry.used > unused_days * 24 * 3600
            over = most_bytes is not None and left + entry.size > most_bytes
            if stale or over or (unused_days is None and most_bytes is None):
                self.drop(entry.key)
                removed.append(entry)
            else:
                left += entry.size
        for path in self.folder.glob(f"{_UNFINISHED}*"):
            with suppress(OSError):
                if now - path.stat().st_mtime > _ABANDONED_SECONDS:
                    shutil.rmtree(path, ignore_errors=True)
        if stuck := [entry.key for entry in removed if entry.folder.exists()]:
            raise UsageError(
                f"{len(stuck)} of {len(removed)} entries in {self.folder} could not be removed",
                expected="a folder this user may write",
                fix="look at its owner and permissions, and whether its disk is mounted read-only",
            )
        return tuple(removed)

    def trouble(self) -> str:
        """Why nothing can be kept in the folder, or will be taken from it; empty if all is well. Makes the folder."""
        try:
            self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            with tempfile.TemporaryFile(dir=self.folder) as file:
                file.write(bytes(_LEAST_ROOM))
                file.flush()
        except OSError as error:
            return error.strerror or str(error)
        return "others may write to it" if self.open_to_others() else ""

    def open_to_others(self) -> bool:
        """Whether others may write to the folder, so that nothing in it is ever taken."""
        return self.folder.is_dir() and bool(self.folder.stat().st_mode & _OTHERS)

    def _entries(self) -> Iterator[Entry]:
        for path in sorted(self.folder.iterdir()) if self.folder.is_dir() else ():
            # Another process may remove it at any moment.
            with suppress(OSError, UsageError):
                if (path / _FACTS).is_file():
                    facts = _Facts.read(path / _FACTS)
                    size = sum((path / name).stat().st_size for name in (*facts.files, _FACTS))
                    yield Entry(key=path.name, about=facts.about, folder=path, size=size, used=path.stat().st_mtime)


def artifact_store() -> Store:
    """Where compiled code is kept for the next fine-tune of the same architecture."""
    return Store(folder=cache_folder("artifacts"))


def _close_to_others(folder: Path) -> None:
    """Take from others the right to write, which a umask such as 002 leaves them: such an entry is never taken."""
    for path in (folder, *folder.rglob("*")):
        path.chmod(stat.S_IMODE(path.stat().st_mode) & ~_OTHERS)


def _sound(folder: Path, key: str) -> bool:
    """Whether the files in a folder are those that were kept under `key`, byte for byte."""
    with suppress(UsageError):
        facts = _Facts.read(folder / _FACTS)
        found = {path: sha256_file(folder / path) for path in relative_files(folder) if path != _FACTS}
        return facts.key == key and found == facts.files
    return False


def _trusted(folder: Path) -> bool:
    """Whether nobody but this user (and root) can have written the entry: it may hold native code."""
    own = {0, os.geteuid()}
    facts = [path.stat() for path in (folder.parent, folder, *folder.rglob("*"))]
    return all(one.st_uid in own and not one.st_mode & _OTHERS for one in facts)
