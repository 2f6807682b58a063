"""An ensemble and its steps change by one replacement: killed anywhere, an ensemble is served with all its steps."""

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

from deploy.errors import UsageError
from deploy.processes import ChildFailed, Worker
from deploy.repository.integrity import config_strays
from deploy.repository.layout import Version, promoted_version, served_versions
from deploy.repository.promotion import promote, rollback
from deploy.repository.protobuf import parse_config
from tests.repository.crash import change_and_die
from tests.repository.ensembles import STEPS, WHOLE, put_ensemble


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    for _ in range(2):
        put_ensemble(tmp_path / "models")
    return tmp_path / "models"


def served(repository: Path) -> dict[str, tuple[int, ...]]:
    return {name: served_versions(repository / name) for name in (*STEPS, WHOLE)}


def require_whole(repository: Path) -> int:
    """The promoted ensemble's number; its config runs only versions that Triton is told to serve."""
    number = promoted_version(repository / WHOLE)
    assert number is not None
    steps = parse_config((repository / WHOLE / "config.pbtxt").read_text()).ensemble_scheduling.step
    for step in steps:
        assert step.model_version in served_versions(repository / step.model_name), (number, served(repository))
    return number


def steps_of(change: Callable[..., object], *given: object) -> list[str]:
    """Each step of a change, in order."""
    passed: list[str] = []
    change(*given, on_step=passed.append)
    return passed


def test_promoting_and_rolling_back_an_ensemble_brings_its_steps_along(repository: Path) -> None:
    assert served(repository) == {"pets": (1,), "ranks": (1,), WHOLE: (1,)}
    done = promote(repository, WHOLE, 2)
    assert [str(step) for step in done.steps] == ["pets:2", "ranks:2"]
    assert served(repository) == {"pets": (2,), "ranks": (2,), WHOLE: (2,)}
    undone = rollback(repository, WHOLE)
    assert (undone.version.number, [str(step) for step in undone.steps]) == (1, ["pets:1", "ranks:1"])
    assert served(repository) == {"pets": (1,), "ranks": (1,), WHOLE: (1,)}
    for name in (*STEPS, WHOLE):
        version = Version(repository=repository, name=name, number=1)
        assert (repository / name / "config.pbtxt").read_bytes() == version.config.read_bytes()


def test_killed_anywhere_while_promoting_the_ensemble_that_is_served_has_its_steps(tmp_path: Path) -> None:
    for _ in range(2):
        put_ensemble(tmp_path / "trial")
    passed = steps_of(promote, tmp_path / "trial", WHOLE, 2)
    switch = len(passed) - 2
    assert passed[switch:] == ["promoted", "steps-settled"]
    assert passed.count("promoted") == 3
    for place in range(len(passed)):
        repository = tmp_path / f"models{place}"
        for _ in range(2):
            put_ensemble(repository)
        die(tmp_path, repository, "promote", place)
        assert require_whole(repository) == (2 if place >= switch else 1), place
        # Whatever was left is finished by the next call, either way.
        (promote if place % 2 else rollback_or_promote)(repository, WHOLE, 2)
        assert served(repository) == {"pets": (2,), "ranks": (2,), WHOLE: (2,)}
        assert all(
            config_strays(Version(repository=repository, name=name, number=2)) == () for name in served(repository)
        )


def test_killed_anywhere_while_rolling_back_the_ensemble_that_is_served_has_its_steps(tmp_path: Path) -> None:
    for place in range(50):
        repository = tmp_path / f"models{place}"
        for _ in range(2):
            put_ensemble(repository)
        promote(repository, WHOLE, 2)
        if not die(tmp_path, repository, "rollback", place):
            break
        number = require_whole(repository)
        if number == 2:
            assert rollback(repository, WHOLE).version.number == 1
        assert require_whole(repository) == 1
    assert place > 5
    assert served(repository) == {"pets": (1,), "ranks": (1,), WHOLE: (1,)}


def rollback_or_promote(repository: Path, name: str, number: int) -> None:
    """Back to 1 where 2 is served already, then 2 again."""
    if promoted_version(repository / name) == number:
        rollback(repository, name)
        assert require_whole(repository) == 1
    promote(repository, name, number)


def die(tmp_path: Path, repository: Path, action: str, place: int) -> bool:
    """Whether the change was killed at that step; False where it ended before."""
    with Worker("releaser", log=tmp_path / "log") as worker:
        try:
            worker.run(change_and_die, repository, WHOLE, action, place)
        except ChildFailed as error:
            assert "killed by SIGKILL" in str(error)
            return True
    return False


def test_a_step_alone_leaves_the_ensemble_whole(repository: Path) -> None:
    promote(repository, "pets", 2)
    assert served(repository)["pets"] == (1, 2)
    assert promoted_version(repository / "pets") == 2
    assert require_whole(repository) == 1
    version = Version(repository=repository, name="pets", number=2)
    assert config_strays(version) == ()
    assert parse_config((repository / "pets/config.pbtxt").read_text()).output[0].label_filename == "2/labels.txt"
    # Promoted by its own name, it stays when the ensemble comes and goes.
    promote(repository, WHOLE, 2)
    assert served(repository) == {"pets": (2,), "ranks": (2,), WHOLE: (2,)}
    rollback(repository, WHOLE)
    assert served(repository) == {"pets": (1, 2), "ranks": (1,), WHOLE: (1,)}
    assert rollback(repository, "pets").version.number == 1
    assert served(repository)["pets"] == (1,)


def test_a_step_is_not_rolled_back_from_under_its_ensemble(repository: Path) -> None:
    promote(repository, WHOLE, 2)
    for change in (partial(rollback, repository, "pets"), partial(promote, repository, "pets", 1)):
        with pytest.raises(UsageError, match=r"pets:1 would not be answered with: pets_image:2, which is"):
            change()
    assert served(repository) == {"pets": (2,), "ranks": (2,), WHOLE: (2,)}


def test_versions_that_one_config_cannot_serve_are_refused_before_anything_is_changed(tmp_path: Path) -> None:
    repository = tmp_path / "models"
    put_ensemble(repository)
    put_ensemble(repository, max_batch=16)
    with pytest.raises(UsageError, match=r"pets:2 and pets:1 cannot be served side by side.*max_batch_size"):
        promote(repository, WHOLE, 2)
    assert served(repository) == {"pets": (1,), "ranks": (1,), WHOLE: (1,)}


def test_a_version_that_no_ensemble_runs_is_seen(repository: Path) -> None:
    config = repository / "pets/config.pbtxt"
    promote(repository, WHOLE, 2)
    config.write_text(config.read_text().replace("versions: 2", "versions: 1\n    versions: 2"))
    strays = config_strays(Version(repository=repository, name="pets", number=2))
    assert strays == ("pets/config.pbtxt serves version 1 too, which no promoted ensemble runs",)


def test_the_history_says_for_which_ensemble_a_step_was_promoted(repository: Path) -> None:
    promote(repository, WHOLE, 2)
    entries = json.loads((repository / "pets/attestations/promotions.json").read_text())["entries"]
    assert [(entry["action"], entry["version"], entry["ensemble"]) for entry in entries] == [
        ("promote", 1, None),
        ("promote", 2, "pets_image:2"),
    ]
