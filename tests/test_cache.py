"""Work that is kept by digest: what is read is whole, and what others could have written is not read."""

import json
import multiprocessing
import os
import signal
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest
from click.testing import CliRunner

from deploy.cache import artifact_store, cache_folder
from deploy.cli.main import cli
from deploy.errors import UsageError

KEY, OTHER = "a" * 64, "b" * 64


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DEPLOYCTL_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def made(tmp_path: Path) -> Path:
    folder = tmp_path / "made"
    folder.mkdir()
    (folder / "code").write_bytes(b"machine code" * 1000)
    (folder / "recipe").write_text("how")
    return folder


def test_what_is_kept_is_taken_as_it_was(made: Path, tmp_path: Path) -> None:
    artifact_store().keep(KEY, made, about="code")

    assert artifact_store().take(KEY, tmp_path / "taken")
    assert sorted(path.name for path in (tmp_path / "taken").iterdir()) == ["code", "recipe"]
    assert (tmp_path / "taken" / "code").read_bytes() == (made / "code").read_bytes()
    assert not artifact_store().take(OTHER, tmp_path / "other")
    assert not (tmp_path / "other").exists()


def test_the_first_of_two_stays(made: Path, tmp_path: Path) -> None:
    artifact_store().keep(KEY, made, about="first")
    artifact_store().keep(KEY, made, about="second")

    assert [entry.about for entry in artifact_store().entries()] == ["first"]
    assert not list(cache_folder("artifacts").glob(".*"))


@pytest.mark.parametrize("damage", ["flipped", "shortened", "missing", "added", "facts", "other-key"])
def test_an_entry_that_is_not_what_was_kept_is_absent_and_removed(damage: str, made: Path, tmp_path: Path) -> None:
    artifact_store().keep(KEY, made, about="code")
    folder = cache_folder("artifacts", KEY)
    code = folder / "code"
    match damage:
        case "flipped":
            code.write_bytes(b"M" + code.read_bytes()[1:])
        case "shortened":
            code.write_bytes(code.read_bytes()[:-1])
        case "missing":
            code.unlink()
        case "added":
            (folder / "more").write_text("?")
        case "facts":
            (folder / "entry.json").write_text("{")
        case "other-key":
            facts = json.loads((folder / "entry.json").read_text())
            (folder / "entry.json").write_text(json.dumps({**facts, "key": OTHER}))

    assert not artifact_store().take(KEY, tmp_path / "taken")
    assert not (tmp_path / "taken").exists()
    assert not folder.exists()


@pytest.mark.parametrize("where", [".", "code"])
def test_what_others_may_write_is_not_taken(where: str, made: Path, tmp_path: Path) -> None:
    artifact_store().keep(KEY, made, about="code")
    (cache_folder("artifacts", KEY) / where).chmod(0o777)

    assert not artifact_store().take(KEY, tmp_path / "taken")


def test_a_umask_that_lets_a_group_write_keeps_what_can_be_taken(made: Path, tmp_path: Path) -> None:
    """002, the default of many distributions: what is compiled under it is open to the group."""
    (made / "below").mkdir()
    for path in (made, made / "code", made / "recipe", made / "below"):
        path.chmod(0o775)
    before = os.umask(0o002)
    try:
        artifact_store().keep(KEY, made, about="code")
    finally:
        os.umask(before)

    assert artifact_store().take(KEY, tmp_path / "taken")
    assert not artifact_store().open_to_others()


def test_what_a_killed_remover_left_is_no_obstacle(made: Path, tmp_path: Path) -> None:
    artifact_store().keep(KEY, made, about="code")
    (cache_folder("artifacts", KEY) / "entry.json").unlink()

    artifact_store().keep(KEY, made, about="code")

    assert artifact_store().take(KEY, tmp_path / "taken")


def test_no_room_for_the_copy_costs_no_entry(made: Path, tmp_path: Path) -> None:
    artifact_store().keep(KEY, made, about="code")
    (tmp_path / "file").write_text("where a folder would have to be")

    assert not artifact_store().take(KEY, tmp_path / "file" / "taken")
    assert artifact_store().take(KEY, tmp_path / "taken")


def test_what_cannot_be_removed_is_not_said_to_be(made: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    artifact_store().keep(KEY, made, about="code")
    monkeypatch.setattr("deploy.cache.Store.drop", lambda store, key: None)  # as on a disk that is mounted read-only

    pruned = CliRunner().invoke(cli, ["cache", "prune"])

    assert isinstance(pruned.exception, UsageError)
    assert "1 of 1 entries" in str(pruned.exception)


def test_a_folder_that_others_may_write_is_said_to_be_of_no_use(made: Path) -> None:
    artifact_store().keep(KEY, made, about="code")
    cache_folder("artifacts").chmod(0o777)

    assert "chmod go-w" in CliRunner().invoke(cli, ["cache", "list"]).stderr


def test_a_cache_that_cannot_be_written_keeps_nothing_and_fails_nothing(made: Path, tmp_path: Path) -> None:
    cache_folder().parent.mkdir(exist_ok=True)
    cache_folder().write_text("a file where the folder should be")

    artifact_store().keep(KEY, made, about="code")

    assert artifact_store().entries() == ()
    assert not artifact_store().take(KEY, tmp_path / "taken")


def test_why_nothing_is_kept_can_be_said(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert artifact_store().trouble() == ""
    assert not list(cache_folder("artifacts").iterdir())
    cache_folder("artifacts").chmod(0o777)
    assert artifact_store().trouble() == "others may write to it"
    (tmp_path / "file").touch()
    monkeypatch.setenv("DEPLOYCTL_CACHE", str(tmp_path / "file"))
    assert artifact_store().trouble() == "Not a directory"
    # Even root cannot make a folder there.
    monkeypatch.setenv("DEPLOYCTL_CACHE", "/sys/cache")
    assert artifact_store().trouble() in ("Operation not permitted", "Permission denied", "Read-only file system")


def test_many_writers_and_readers_see_whole_entries_only(made: Path, tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    workers = [context.Process(target=_keep_take_drop, args=(made, tmp_path / str(n))) for n in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()

    assert [worker.exitcode for worker in workers] == [0] * 4
    assert not list(cache_folder("artifacts").glob(".*"))


def _keep_take_drop(made: Path, into: Path) -> None:
    for turn in range(20):
        artifact_store().keep(KEY, made, about="code")
        if artifact_store().take(KEY, into / str(turn)):
            assert (into / str(turn) / "code").read_bytes() == (made / "code").read_bytes()
        if turn % 5 == 4:
            artifact_store().drop(KEY)


def test_a_killed_writer_leaves_nothing_that_is_read(made: Path, tmp_path: Path) -> None:
    for path in _killed_while_keeping(made):
        assert path.name.startswith(".unfinished-")
    assert artifact_store().entries() == ()
    assert not artifact_store().take(KEY, tmp_path / "taken")

    artifact_store().keep(KEY, made, about="code")
    assert artifact_store().take(KEY, tmp_path / "again")

    for path in cache_folder("artifacts").glob(".unfinished-*"):
        os.utime(path, (0, 0))
    artifact_store().prune(unused_days=1)
    assert not list(cache_folder("artifacts").glob(".unfinished-*"))


def _killed_while_keeping(made: Path) -> Iterator[Path]:
    """What is in the cache once a writer was ended in the middle of its copy, of a file that takes a while."""
    os.truncate(made / "code", 1_000_000_000)
    keep = partial(artifact_store().keep, KEY, made, about="code")
    worker = multiprocessing.get_context("fork").Process(target=keep)
    worker.start()
    deadline = time.monotonic() + 20
    while not list(cache_folder("artifacts").glob(f".unfinished-*/{KEY}")) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert worker.pid is not None
    os.kill(worker.pid, signal.SIGKILL)
    worker.join()
    os.truncate(made / "code", 1000)
    yield from cache_folder("artifacts").iterdir()


def test_pruning_removes_what_was_unused_for_longest(made: Path) -> None:
    for age, key in enumerate((KEY, OTHER, "c" * 64)):
        artifact_store().keep(key, made, about=str(age))
        used = time.time() - 3600 * 24 * age
        os.utime(cache_folder("artifacts", key), (used, used))
    size = artifact_store().entries()[0].size

    assert [entry.about for entry in artifact_store().prune(unused_days=1.5)] == ["2"]
    assert [entry.about for entry in artifact_store().prune(most_bytes=size + 1)] == ["1"]
    assert [entry.about for entry in artifact_store().entries()] == ["0"]
    assert [entry.about for entry in artifact_store().prune()] == ["0"]
    assert artifact_store().entries() == ()


def test_the_command_lists_and_prunes(made: Path) -> None:
    artifact_store().keep(KEY, made, about="AOTInductor code")

    listed = CliRunner().invoke(cli, ["cache", "list"])
    as_json = CliRunner().invoke(cli, ["cache", "list", "--json"])
    pruned = CliRunner().invoke(cli, ["cache", "prune"])

    assert "AOTInductor code" in listed.stdout and "1 entries" in listed.stdout
    assert [entry["key"] for entry in json.loads(as_json.stdout)] == [KEY]
    assert "1 entries removed" in pruned.stdout
    assert artifact_store().entries() == ()
