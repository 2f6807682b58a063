"""A folder's digest is what `sha256sum` says, and changes with every name and byte in it."""

import errno
import os
import shutil
import subprocess
import tempfile
from pathlib import Path
from types import SimpleNamespace

import pytest

from deploy.errors import UnfinishedError, UsageError
from deploy.files import (
    disk_error,
    disk_errors_explained,
    make_folder,
    place_error,
    require_writable,
    sha256_file,
    sha256_folder,
    sha256_path,
    size_of,
)

_SHELL = "find . -type f -printf '%P\\0' | sort -z | xargs -0 sha256sum | sha256sum"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = tmp_path / "checkpoint"
    (made / "nested").mkdir(parents=True)
    (made / ".metadata").write_bytes(b"plan")
    (made / "__0_0.distcp").write_bytes(b"shard")
    (made / "nested" / "Ü b.json").write_bytes(b"{}")
    return made


def test_it_is_what_sha256sum_says(folder: Path) -> None:
    said = subprocess.run(
        _SHELL, shell=True, cwd=folder, env={**os.environ, "LC_ALL": "C"}, capture_output=True, text=True, check=True
    )
    assert sha256_folder(folder) == said.stdout.split()[0]
    assert sha256_path(folder) == sha256_folder(folder)
    assert size_of(folder) == len("plan" + "shard" + "{}")


def test_a_file_is_its_own(folder: Path) -> None:
    path = folder / ".metadata"
    assert (sha256_path(path), size_of(path)) == (sha256_file(path), 4)


def test_a_name_a_byte_and_a_hidden_file_count(folder: Path) -> None:
    seen = {sha256_folder(folder)}
    (folder / ".metadata").write_bytes(b"plaN")
    seen.add(sha256_folder(folder))
    (folder / "__0_0.distcp").rename(folder / "__1_0.distcp")
    seen.add(sha256_folder(folder))
    (folder / ".more").touch()
    seen.add(sha256_folder(folder))
    assert len(seen) == 4


def test_where_it_lies_and_links_to_files_do_not_count(folder: Path, tmp_path: Path) -> None:
    linked = tmp_path / "linked"
    shutil.copytree(folder, linked)
    (linked / "__0_0.distcp").unlink()
    (linked / "__0_0.distcp").symlink_to(folder / "__0_0.distcp")
    assert sha256_folder(linked) == sha256_folder(folder)


def test_what_cannot_be_told_is_refused(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(UsageError, match="is an empty folder"):
        sha256_folder(tmp_path / "empty")
    (folder / "a\nb").touch()
    with pytest.raises(UsageError, match="an unprintable name"):
        sha256_folder(folder)
    (folder / "a\nb").unlink()
    (folder / "shards").symlink_to(folder / "nested")
    with pytest.raises(UsageError, match="is a link to a folder or to nothing"):
        sha256_folder(folder)


def test_where_no_file_can_be_written_is_known_beforehand(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("old")
    (tmp_path / "link").symlink_to(tmp_path / "file")
    for path in (tmp_path, tmp_path / "file" / "below", tmp_path / ("x" * 300), tmp_path / "link", Path("/dev/null")):
        with pytest.raises(UsageError):
            require_writable(path)
    for path in (tmp_path / "file", tmp_path / "new" / "one"):
        require_writable(path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "link", "new"]
    assert (tmp_path / "file").read_text() == "old"
    assert not list((tmp_path / "new").iterdir())


def no_space(*names: str) -> OSError:
    error = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), *names[:1])
    error.filename2 = names[1] if len(names) > 1 else None
    return error


def test_a_folder_that_cannot_be_made_is_wrong_use(tmp_path: Path) -> None:
    make_folder(tmp_path / "some" / "where")
    make_folder(tmp_path / "some" / "where")
    (tmp_path / "file").write_text("")
    for place in (tmp_path / "file", tmp_path / "file" / "below", tmp_path / ("n" * 300)):
        with pytest.raises(UsageError, match="cannot be made a folder"):
            make_folder(place)


def test_a_full_disk_is_named_by_where_was_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A copy's error names its source first, and that of a write nothing: then it is the folder that has no room."""
    assert str(disk_error(no_space("here", "there"), "copying")).splitlines()[0] == (
        "the disk is full while copying: there"
    )
    assert "while writing: here" in str(disk_error(no_space("here"), "writing"))
    assert "No space left on device" in str(disk_error(no_space(), "writing", tmp_path))
    empty = {tmp_path: 0, Path(tempfile.gettempdir()): 10**9}
    monkeypatch.setattr("shutil.disk_usage", lambda path: SimpleNamespace(free=empty[path]))
    assert f"while writing: {tmp_path}\n" in str(disk_error(no_space(), "writing", tmp_path))
    empty[Path(tempfile.gettempdir())] = 0
    assert f": {tmp_path} and {tempfile.gettempdir()}\n" in str(disk_error(no_space(), "writing", tmp_path))


def test_where_nothing_temporary_can_be_written_it_is_no_bug_of_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", None)
    monkeypatch.setattr("tempfile._candidate_tempdir_list", lambda: ["/proc/self/none"])
    with (
        pytest.raises(UnfinishedError, match="no folder for temporary files can be written") as caught,
        disk_errors_explained("loading the server"),
    ):
        tempfile.mkdtemp()
    assert "TMPDIR" in caught.value.fix


def test_a_limit_on_the_size_of_files_is_no_bug_of_ours() -> None:
    said = disk_error(OSError(errno.EFBIG, "File too large"), "writing a report")
    assert isinstance(said, UnfinishedError)
    assert "larger than it may be while writing a report: File too large" in said.found
    assert "ulimit -f" in said.expected


def test_other_errors_stay_what_they_are() -> None:
    with pytest.raises(FileNotFoundError), disk_errors_explained("reading"):
        Path("/nowhere/at/all").read_bytes()
    assert disk_error(OSError(errno.EBADF, "Bad file descriptor"), "reading") is None
    assert place_error(OSError(errno.EBADF, "Bad file descriptor")) is None
    assert place_error(RuntimeError("dictionary changed size during iteration")) is None


def test_a_failing_disk_is_no_bug_of_ours() -> None:
    said = disk_error(OSError(errno.EIO, "Input/output error", "/mnt/models/x"), "reading")
    assert "the disk failed while reading" in str(said)
    assert "/mnt/models/x" in str(said)


@pytest.mark.parametrize(("name", "words"), [("n" * 300, "long"), ("loop/x", "loop"), ("file/x", "directory")])
def test_a_path_that_can_be_no_file_is_named(tmp_path: Path, name: str, words: str) -> None:
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    (tmp_path / "file").write_text("")
    with pytest.raises((OSError, RuntimeError)) as caught:
        (tmp_path / name).resolve(strict=True).read_text()
    assert isinstance(caught.value, OSError | RuntimeError)
    said = place_error(caught.value)
    assert words in str(said)
    assert str(tmp_path) in str(said)
