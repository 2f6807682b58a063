"""Digests, atomic writes and atomic renames: the only place that makes things appear on disk for others.

Owns no layout. Called by records, cache, repository and serve.
"""

import ctypes
import errno
import hashlib
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from deploy.errors import DeployError, UnfinishedError, UsageError

_CHUNK = 4 * 1024 * 1024
_AT_FDCWD = -100
_RENAME_NOREPLACE = 1
_RENAME_EXCHANGE = 2
_NO_ROOM = 1_000_000  # bytes
_NO_TEMPORARY = "No usable temporary directory"  # the words of tempfile
_CIRCLE = "Symlink loop"  # the words of pathlib


def sha256_file(path: Path) -> str:
    """The hex SHA-256 of a file's bytes, read in chunks."""
    digest = hashlib.sha256()
    buffer = bytearray(_CHUNK)
    view = memoryview(buffer)
    with path.open("rb", buffering=0) as stream:
        while size := stream.readinto(buffer):
            digest.update(view[:size])
    return digest.hexdigest()


def sha256_bytes(data: bytes) -> str:
    """The hex SHA-256 of `data`."""
    return hashlib.sha256(data).hexdigest()


def sha256_folder(folder: Path) -> str:
    """The hex SHA-256 of the text that `sha256sum` prints for all files below `folder`, sorted by their names' bytes.

    A line is `<digest>  <name>`, the name relative and with `/`, as `sha256sum` writes it in the C locale. Hidden
    files count; empty folders do not. A link to a file counts as that file. Raises UsageError if there is no file, or
    one that cannot be told this way.
    """
    files = files_below(folder)
    if not files:
        raise UsageError(f"{shown(str(folder))} is an empty folder", expected="a folder with files in it")
    lines = (f"{sha256_file(folder / name)}  {name}\n" for name in files)
    return sha256_bytes("".join(lines).encode())


def sha256_path(path: Path) -> str:
    """The hex SHA-256 of a file (`sha256_file`), or of a folder (`sha256_folder`)."""
    return sha256_folder(path) if path.is_dir() else sha256_file(path)


def size_of(path: Path) -> int:
    """Bytes of a file, or of all files below a folder."""
    return sum((path / name).stat().st_size for name in files_below(path)) if path.is_dir() else path.stat().st_size


def files_below(folder: Path) -> list[str]:
    """The POSIX paths of all files below `folder`, relative to it, sorted by their bytes; links to files are followed.

    Raises UsageError for a link that leads to no file, a special file, or a name that holds a line break or is no text.
    """
    paths = [path for path in folder.rglob("*") if path.is_symlink() or not path.is_dir()]
    names = [path.relative_to(folder).as_posix() for path in paths]
    for path, name in zip(paths, names, strict=True):
        if not path.is_file() or not name.isprintable() or "\\" in name:
            raise UsageError(
                f"{shown(str(path))} is a link to a folder or to nothing, no regular file, or has an unprintable name",
                expected="a folder of regular files",
                fix="copy the checkpoint's own files into a folder of their own",
            )
    return sorted(names, key=os.fsencode)


def write_atomically(path: Path, data: bytes) -> None:
    """Write `data` to `path` so that a reader, or a crash, sees the old file or the new one, never a part."""
    _write_beside(path, data, lambda temporary: temporary.replace(path))
    sync_folder(path.parent)


def require_writable(path: Path) -> None:
    """Raises UsageError if no file can be written at `path`, so that it is known before any work; makes its folder.

    Nor may it be a device, a folder or a link, such as /dev/stdout: a file that is renamed there would take its place.
    """
    try:
        if path.is_symlink() or (path.exists() and not path.is_file()):
            raise UsageError(
                f"{shown(str(path))} is a link or no regular file",
                expected="a regular file, or a name that is free",
                fix="choose another file",
            )
        with disk_errors_explained(f"preparing to write {shown(str(path))}"):
            path.parent.mkdir(parents=True, exist_ok=True)
            descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
            os.close(descriptor)
            Path(name).unlink()
    except OSError as error:
        raise UsageError(
            f"{shown(str(path))} cannot be written: {error.strerror}",
            expected="a file in a folder of this user's",
            fix="choose another file",
        ) from error


def make_folder(path: Path) -> None:
    """Make a folder that a user named, and those above it. Raises UsageError if something else stands in its way."""
    try:
        with disk_errors_explained(f"making the folder {shown(str(path))}"):
            path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(
            f"{shown(str(path))} cannot be made a folder: {error.strerror}",
            expected="a folder, or a name that is free",
            fix="choose another folder",
        ) from error


def write_new(path: Path, data: bytes) -> None:
    """Write `data` to `path` whole or not at all. Raises FileExistsError if `path` exists."""
    _write_beside(path, data, lambda temporary: rename_new(temporary, path))


def _write_beside(path: Path, data: bytes, finish: Callable[[Path], object]) -> None:
    """Write a flushed temporary file in the same folder and let `finish` give it its name."""
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    temporary = Path(name)
    try:
        with os.fdopen(descriptor, "wb") as stream:
            stream.write(data)
            stream.flush()
            os.fsync(stream.fileno())
            os.fchmod(stream.fileno(), 0o644)
        finish(temporary)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def sync_folder(folder: Path) -> None:
    """Flush a folder's entries to disk, so that a rename inside it survives a power cut."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sync_tree(folder: Path) -> None:
    """Flush every file and folder below `folder` to disk."""
    for root, _, names in os.walk(folder):
        for name in names:
            descriptor = os.open(Path(root, name), os.O_RDONLY)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
        sync_folder(Path(root))


def rename_new(source: Path, destination: Path) -> None:
    """Rename `source` to `destination` in one step. Raises FileExistsError if `destination` exists.

    Plain `os.rename` replaces an empty folder silently; Linux's RENAME_NOREPLACE does not (renameat2(2)).
    """
    code = _renameat2(source, destination, _RENAME_NOREPLACE)
    if code == 0:
        sync_folder(destination.parent)
        return
    if code == errno.EEXIST:
        raise FileExistsError(code, os.strerror(code), str(destination))
    if code != errno.EINVAL:
        raise OSError(code, os.strerror(code), str(destination))
    # Some filesystems (NFS among them) lack the flag; a folder cannot replace a non-empty one there either.
    if destination.exists():
        raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(destination))
    source.rename(destination)
    sync_folder(destination.parent)


def swap(source: Path, destination: Path) -> None:
    """Let `source` and `destination`, both there and on one filesystem, change places in one step.

    Where a filesystem cannot do that, `destination` is missing for a moment.
    """
    code = _renameat2(source, destination, _RENAME_EXCHANGE)
    if code == errno.EINVAL:
        aside = source.with_name(f"{source.name}.aside")
        destination.rename(aside)
        source.rename(destination)
        aside.rename(source)
    elif code != 0:
        raise OSError(code, os.strerror(code), str(destination))
    sync_folder(destination.parent)


def _renameat2(source: Path, destination: Path, flag: int) -> int:
    """The error number of renameat2(2), 0 if it did what was asked."""
    libc = ctypes.CDLL(None, use_errno=True)
    names = _AT_FDCWD, os.fsencode(source), _AT_FDCWD, os.fsencode(destination)
    return 0 if libc.renameat2(*names, ctypes.c_uint(flag)) == 0 else ctypes.get_errno()


def link_or_copy(source: Path, destination: Path) -> None:
    """Make `destination` the same file as `source` by hard link, by copy where the filesystem has none."""
    destination.parent.mkdir(parents=True, exist_ok=True)
    try:
        os.link(source, destination)
    except OSError:
        shutil.copyfile(source, destination)


def relative_files(folder: Path) -> Iterator[str]:
    """The POSIX paths of all regular files below `folder`, relative to it, sorted.

    Raises UsageError for a symbolic link or a special file: nothing published may point elsewhere. What another process
    takes away or renames meanwhile is not there; a folder that may not be read raises PermissionError.
    """
    walked = os.walk(folder, onerror=_raise_unless_gone)
    for path in sorted(Path(root, name) for root, folders, names in walked for name in (*folders, *names)):
        strange = path.is_symlink() or not (path.is_dir() or path.is_file())
        if strange and os.path.lexists(path):
            raise UsageError(
                f"{shown(str(path))} is a link or a special file",
                expected="regular files only",
                fix="replace it by the file itself",
            )
        if path.is_file():
            yield path.relative_to(folder).as_posix()


def _raise_unless_gone(error: OSError) -> None:
    if not isinstance(error, FileNotFoundError):
        raise error


def shown(path: str) -> str:
    """A path as it can be printed: one with control characters, or bytes that are no text, is quoted and escaped."""
    return path if path.isprintable() else ascii(path)


def is_full_disk(error: BaseException) -> bool:
    """Whether the system said that there is no room, or none left for this user."""
    return isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)


def disk_error(error: OSError, doing: str, folder: Path | None = None) -> DeployError | None:
    """What is told of a full or failing disk, or of a place that one may not use; None of any other error.

    A copy names its source first, and a write no place at all: then the disk is that of `folder`, which exists, or of
    temporary files.
    """
    if error.errno in (errno.EIO, errno.ESTALE, errno.EREMOTEIO):
        return UnfinishedError(
            f"the disk failed while {doing}: {error}", fix="see to the disk or the network folder, then run it again"
        )
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return UsageError(
            f"{error.filename or error} may not be read or written while {doing}",
            expected="a file or folder that this user may use",
            fix="choose another, or change its permissions",
        )
    if error.errno == errno.EFBIG:
        return UnfinishedError(
            f"a file became larger than it may be while {doing}: {shown(str(error.filename or error.strerror))}",
            expected="room for files of that size: `ulimit -f`, and what the file system takes",
            fix="raise the limit, or choose another place",
        )
    if isinstance(error, FileNotFoundError) and _NO_TEMPORARY in str(error):
        return UnfinishedError(
            f"no folder for temporary files can be written while {doing}: {error.strerror}",
            fix="free some space in one of them, or set TMPDIR to a folder with room",
        )
    if not is_full_disk(error):
        return None
    place = error.filename2 or error.filename or _without_room(folder) or error
    return UnfinishedError(
        f"the disk is full while {doing}: {shown(str(place))}", fix="free some space, then run it again"
    )


def place_error(error: OSError | RuntimeError) -> UsageError | None:
    """What is told of a path that can be no file or folder: too long, below a file, links in a circle; else None.

    Of a circle pathlib tells by a RuntimeError, until Python 3.13.
    """
    if isinstance(error, OSError):
        found = f"{shown(str(error.filename))} cannot be used: {error.strerror}"
        known = error.errno in (errno.ENAMETOOLONG, errno.ELOOP, errno.ENOTDIR) and error.filename
    else:
        found, known = str(error), str(error).startswith(_CIRCLE)
    if not known:
        return None
    return UsageError(found, expected="a file or folder, or a name that one can have", fix="choose another")


def _without_room(folder: Path | None) -> str:
    """Which of the folders that are written to have no room; empty where each has."""
    likely = [folder] if folder else []
    with suppress(FileNotFoundError):  # there is none where all its candidates are full
        likely.append(Path(tempfile.gettempdir()))
    return " and ".join(str(one) for one in likely if shutil.disk_usage(one).free < _NO_ROOM)


@contextmanager
def disk_errors_explained(doing: str, folder: Path | None = None) -> Iterator[None]:
    """Turn a full disk, or a place one may not use, into a DeployError that says what was being done.

    `folder`, which exists, is where most of it is written.
    """
    try:
        yield
    except OSError as error:
        if said := disk_error(error, doing, folder):
            raise said from error
        raise
