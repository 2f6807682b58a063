"""Kill -9 at every boundary leaves the old state or the new one; packagers and readers at once see whole versions."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from deploy.processes import ChildFailed, Worker
from deploy.repository.layout import promoted_version, version_numbers
from deploy.repository.promotion import promote, rollback
from deploy.repository.publish import PublishOptions
from deploy.repository.stage import stage_root
from tests.repository.crash import promote_and_die, publish_and_die, publish_many, rollback_and_die
from tests.repository.samples import Sample, leftovers, put, state

STAGING = ("stage-made", "artifact-added", "config-added", "warmup-added", "numbered", "sealed", "synced")
PROMOTING = ("promotion-checked", "promotion-recorded", "promoted")
FIRST = (*STAGING, "published")
LATER = (*STAGING, "warmup-linked", "published", *PROMOTING)


def die(tmp_path: Path, function: Callable[..., None], *args: Any) -> None:
    with Worker("packager", log=tmp_path / "log") as worker, pytest.raises(ChildFailed, match="killed by SIGKILL"):
        worker.run(function, *args)
    (tmp_path / "log").unlink()


def test_the_steps_below_are_all_there_are(tmp_path: Path) -> None:
    first: list[str] = []
    put(tmp_path / "models", on_step=first.append)
    later: list[str] = []
    put(tmp_path / "models", options=PublishOptions(promote=True), on_step=later.append)
    assert (tuple(first), tuple(later)) == (FIRST, LATER)


@pytest.mark.parametrize("step", FIRST)
def test_killed_while_publishing_a_new_model(tmp_path: Path, step: str) -> None:
    repository = tmp_path / "models"
    die(tmp_path, publish_and_die, repository, step)
    whole = step == "published"
    assert set(state(repository / "pets")) == ({"config", "1"} if whole else set())
    assert leftovers(repository) == [stage_root(repository).name]
    assert put(repository).version.number == (2 if whole else 1)
    assert leftovers(repository) == []


@pytest.mark.parametrize("step", LATER)
def test_killed_while_publishing_a_later_version(tmp_path: Path, step: str) -> None:
    repository = tmp_path / "models"
    put(repository, Sample(weights=b"first"))
    before = state(repository / "pets")
    die(tmp_path, publish_and_die, repository, step)
    after = state(repository / "pets")
    whole = LATER.index(step) >= LATER.index("published")
    assert set(after) == set(before) | ({"2"} if whole else set())
    assert after["1"] == before["1"]
    assert promoted_version(repository / "pets") == (2 if step == "promoted" else 1)
    assert put(repository).version.number == (3 if whole else 2)
    assert leftovers(repository) == []


@pytest.mark.parametrize("step", PROMOTING)
def test_killed_while_promoting_then_rollback_goes_where_traffic_was(tmp_path: Path, step: str) -> None:
    repository = tmp_path / "models"
    for _ in range(3):
        put(repository)
    promote(repository, "pets", 2)
    die(tmp_path, promote_and_die, repository, 3, step)
    assert promoted_version(repository / "pets") == (3 if step == "promoted" else 2)
    assert rollback(repository, "pets").version.number == (2 if step == "promoted" else 1)


@pytest.mark.parametrize("step", PROMOTING)
def test_killed_while_rolling_back_then_rollback_goes_on(tmp_path: Path, step: str) -> None:
    repository = tmp_path / "models"
    for _ in range(3):
        put(repository)
    promote(repository, "pets", 2)
    promote(repository, "pets", 3)
    die(tmp_path, rollback_and_die, repository, step)
    assert promoted_version(repository / "pets") == (2 if step == "promoted" else 3)
    assert rollback(repository, "pets").version.number == (1 if step == "promoted" else 2)


@pytest.mark.parametrize("step", ["edited-config-kept", *PROMOTING[1:]])
def test_killed_while_an_edited_config_is_replaced_leaves_it_or_the_new_one(tmp_path: Path, step: str) -> None:
    repository = tmp_path / "models"
    for _ in range(2):
        put(repository)
    promote(repository, "pets", 2)
    config = repository / "pets/config.pbtxt"
    edited = config.read_text().replace("count: 1", "count: 4", 1)
    config.write_text(edited)
    die(tmp_path, rollback_and_die, repository, step)
    own = (repository / "pets/1/config.pbtxt").read_text()
    assert config.read_text() == (own if step == "promoted" else edited)
    (kept,) = (repository / "pets/attestations").glob("edited-config-*.pbtxt")
    assert kept.read_text() == edited
    if step != "promoted":
        assert rollback(repository, "pets").edited == ("instance_group[0].count: 1 -> 4",)
    assert config.read_text() == own


def test_two_packagers_and_a_reader_at_once(tmp_path: Path) -> None:
    repository = tmp_path / "models"
    repository.mkdir()
    seen: set[int] = set()
    with (
        Worker("one", log=tmp_path / "one.log") as one,
        Worker("two", log=tmp_path / "two.log") as two,
        ThreadPoolExecutor() as pool,
    ):
        runs = [pool.submit(worker.run, publish_many, repository, 12, worker.name) for worker in (one, two)]
        while not all(run.done() for run in runs):
            # Reading checks every digest: half a version would raise.
            found = state(repository / "pets")
            assert not found or "1" in found
            seen.add(len(found))
            assert {path.name for path in repository.iterdir()} <= {"pets"}
    numbers = [run.result().value for run in runs]
    assert sorted(numbers[0] + numbers[1]) == list(range(1, 25))
    assert version_numbers(repository / "pets") == tuple(range(1, 25))
    assert len(seen) > 3
    assert promoted_version(repository / "pets") == 1
    for worker_numbers, mark in zip(numbers, ("one", "two"), strict=True):
        artifacts = [(repository / "pets" / str(number) / "model.onnx").read_text() for number in worker_numbers]
        assert artifacts == [f"{mark}{index}" for index in range(12)]
