"""What others do meanwhile, or did before, turns no verdict: promotions, results in the making, other users' locks."""

import os
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from deploy.errors import UsageError
from deploy.files import relative_files
from deploy.repository.integrity import config_strays, stray_entries
from deploy.repository.layout import ATTESTATIONS_FOLDER, Version, promoted_version
from deploy.repository.lock import between_promotions, held
from deploy.repository.promotion import promote
from deploy.repository.stage import remove_stale_stages, stage_root
from tests.repository.samples import Sample, put


@pytest.fixture
def pets(tmp_path: Path) -> Version:
    """A model with two versions, the first promoted."""
    for weights in (b"one", b"two"):
        put(tmp_path / "models", Sample(weights=weights))
    return Version(repository=tmp_path / "models", name="pets", number=1)


@contextmanager
def again_and_again(work: Callable[[int], None]) -> Iterator[None]:
    """A block beside which another thread works, number by number."""
    over = threading.Event()

    def go_on() -> None:
        number = 0
        while not over.is_set():
            work(number := number + 1)

    thread = threading.Thread(target=go_on)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def seen_for(seconds: float, look: Callable[[], object]) -> set[object]:
    until, found = time.monotonic() + seconds, set()
    while time.monotonic() < until:
        found.add(look())
    return found


def test_a_config_that_is_being_written_is_no_stray(pets: Version) -> None:
    folder, text = pets.model_folder, (pets.model_folder / "config.pbtxt").read_text()

    def write(number: int) -> None:
        temporary = folder / f".config.pbtxt.{number}"
        temporary.write_text(text)
        temporary.rename(folder / "config.pbtxt")

    with again_and_again(write):
        assert seen_for(1.0, lambda: stray_entries(folder)) == {()}


def test_a_look_at_a_config_waits_for_the_promotion_that_is_under_way(pets: Version) -> None:
    config = pets.model_folder / "config.pbtxt"
    whole, begun = config.read_text(), threading.Event()
    (pets.model_folder / ATTESTATIONS_FOLDER).mkdir()

    def change() -> None:
        with held(pets.model_folder):
            config.write_text(whole + "# half way\n")
            begun.set()
            time.sleep(0.3)
            config.write_text(whole)

    thread = threading.Thread(target=change)
    thread.start()
    begun.wait(5)
    assert config_strays(pets) == ()
    thread.join()
    config.write_text(whole + "# edited\n")
    assert "is not the config of version 1" in config_strays(pets)[0]


def test_a_promotion_that_never_ends_is_not_waited_for_forever(pets: Version, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("deploy.repository.lock._PATIENCE_SECONDS", 0.1)
    with held(pets.model_folder), between_promotions(pets.model_folder):
        pass


def test_files_that_get_their_names_meanwhile_are_no_special_files(tmp_path: Path) -> None:
    (tmp_path / "kept").write_text("kept")

    def write(number: int) -> None:
        folder = tmp_path / f".signing-{number}"
        folder.mkdir()
        (folder / "signature").write_text("whole")
        folder.rename(tmp_path / f"signature-{number}")
        shutil.rmtree(tmp_path / f"signature-{number}")

    with again_and_again(write):
        assert {"kept" in names for names in seen_for(1.0, lambda: tuple(relative_files(tmp_path)))} == {True}  # type: ignore[operator]


@pytest.fixture
def not_ours(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Makes what ends so readable only. Root may write anything, so the refusal is made up."""
    opened = os.open

    def refuse(ending: str) -> None:
        def refusing(path: Any, flags: int, *rest: Any, **named: Any) -> int:
            if str(path).endswith(ending) and flags & os.O_RDWR:
                raise PermissionError(13, "Permission denied", str(path))
            return opened(path, flags, *rest, **named)

        monkeypatch.setattr(os, "open", refusing)

    return refuse


def test_a_lock_that_another_user_made_is_a_lock(pets: Version, not_ours: Callable[[str], None]) -> None:
    promote(pets.repository, "pets", 2)
    not_ours("/.lock")
    promote(pets.repository, "pets", 1)
    assert promoted_version(pets.model_folder) == 1


def test_a_folder_that_takes_no_lock_is_said_to_be_that(pets: Version, not_ours: Callable[[str], None]) -> None:
    not_ours("/.lock")
    with pytest.raises(UsageError, match="lock may not be read or written while reading the promotions of pets"):
        promote(pets.repository, "pets", 2)


def test_a_stage_that_another_users_process_left_keeps_nobody_from_packaging(
    pets: Version, not_ours: Callable[[str], None]
) -> None:
    left = stage_root(pets.repository) / "stage-0123abcd"
    left.mkdir(parents=True)
    left.with_suffix(".lock").touch()
    not_ours("/stage-0123abcd.lock")
    assert remove_stale_stages(pets.repository) == ()
    assert put(pets.repository, Sample(weights=b"three")).version.number == 3
    assert left.is_dir()
