"""Promotion is one replacement of a proven version's config, and rollback goes back along it."""

import shutil
from pathlib import Path

import pytest

from deploy.errors import UnfinishedError, UsageError
from deploy.repository.layout import promoted_version
from deploy.repository.manifest import Manifest, Verdicts, file_entries
from deploy.repository.promotion import promote, read_history, rollback
from tests.repository.samples import FAIL, PASS, UNDECIDED, Sample, put, state


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    for weights in (b"one", b"two", b"three"):
        put(tmp_path / "models", Sample(weights=weights))
    return tmp_path / "models"


def test_promotion_replaces_the_config_and_nothing_else(repository: Path) -> None:
    before = state(repository / "pets")
    result = promote(repository, "pets", 2)
    after = state(repository / "pets")
    assert (result.version.number, result.previous) == (2, 1)
    assert after["config"] == (repository / "pets/2/config.pbtxt").read_text()
    assert {key: after[key] for key in "123"} == {key: before[key] for key in "123"}


def test_rollback_undoes_promotions_one_by_one(repository: Path) -> None:
    promote(repository, "pets", 3)
    promote(repository, "pets", 2)
    assert [rollback(repository, "pets").version.number for _ in range(2)] == [3, 1]
    with pytest.raises(UsageError, match="version 1 is the only one"):
        rollback(repository, "pets")
    assert promoted_version(repository / "pets") == 1
    assert [(entry.action, entry.version) for entry in read_history(repository / "pets").entries] == [
        ("promote", 1),
        ("promote", 3),
        ("promote", 2),
        ("rollback", 3),
        ("rollback", 1),
    ]


def test_a_rolled_back_version_can_be_promoted_again(repository: Path) -> None:
    promote(repository, "pets", 2)
    rollback(repository, "pets")
    promote(repository, "pets", 3)
    assert rollback(repository, "pets").version.number == 1


def test_promoting_what_is_promoted_restores_its_config(repository: Path) -> None:
    config = repository / "pets/config.pbtxt"
    original = config.read_text()
    config.write_text(original.replace("count: 1", "count: 4"))
    assert promote(repository, "pets", 1).previous == 1
    assert config.read_text() == original
    assert read_history(repository / "pets").stack() == ()


def test_promoting_what_is_promoted_makes_no_server_load_it_again(repository: Path) -> None:
    before = (repository / "pets/config.pbtxt").stat()
    promote(repository, "pets", 1)
    after = (repository / "pets/config.pbtxt").stat()
    assert (before.st_ino, before.st_mtime_ns) == (after.st_ino, after.st_mtime_ns)


def test_a_config_that_was_broken_by_hand_is_cured_by_promotion(repository: Path) -> None:
    (repository / "pets/config.pbtxt").write_text("nonsense {")
    assert promote(repository, "pets", 2).previous is None
    assert promoted_version(repository / "pets") == 2


def test_rollback_goes_back_to_what_a_hand_promoted(repository: Path) -> None:
    shutil.copyfile(repository / "pets/2/config.pbtxt", repository / "pets/config.pbtxt")
    promote(repository, "pets", 3)
    assert rollback(repository, "pets").version.number == 2


def test_nothing_to_roll_back_to(repository: Path) -> None:
    with pytest.raises(UsageError, match="nothing to roll pets back to"):
        rollback(repository, "pets")


def test_a_changed_version_is_not_promoted(repository: Path) -> None:
    (repository / "pets/2/model.onnx").write_bytes(b"malice")
    with pytest.raises(UsageError, match=r"model\.onnx has changed"):
        promote(repository, "pets", 2)
    assert promoted_version(repository / "pets") == 1


def test_rollback_to_a_version_that_was_replaced_is_refused(repository: Path) -> None:
    promote(repository, "pets", 2)
    promote(repository, "pets", 3)
    shutil.rmtree(repository / "pets/2")
    with pytest.raises(UsageError, match="pets has no version 2"):
        rollback(repository, "pets")
    shutil.copytree(repository / "pets/3", repository / "pets/2")
    with pytest.raises(UsageError, match="pets:2 is not the version that was promoted then"):
        rollback(repository, "pets")
    assert promoted_version(repository / "pets") == 3


def test_a_version_copied_by_hand_is_not_promoted(repository: Path) -> None:
    shutil.copytree(repository / "pets/2", repository / "pets/4")
    with pytest.raises(UsageError, match="belongs to pets:2"):
        promote(repository, "pets", 4)


def test_a_version_whose_check_did_not_pass_is_not_promoted(repository: Path) -> None:
    path = repository / "pets/2/manifest.json"
    verdicts = Verdicts(parity=PASS, architecture=UNDECIDED, served=FAIL)
    Manifest.read(path).model_copy(update={"verdicts": verdicts}).write(path)
    with pytest.raises(UsageError, match="pets:2 may not be promoted: served: output scores is off by 3"):
        promote(repository, "pets", 2)


def test_a_config_that_triton_would_reject_is_not_promoted(repository: Path) -> None:
    folder = repository / "pets/2"
    (folder / "config.pbtxt").write_text((folder / "config.pbtxt").read_text().replace('"pets"', '"dogs"'))
    manifest = Manifest.read(folder / "manifest.json")
    manifest.model_copy(update={"files": file_entries(folder)}).write(folder / "manifest.json")
    with pytest.raises(UnfinishedError, match="the model is called 'dogs'"):
        promote(repository, "pets", 2)
    assert promoted_version(repository / "pets") == 1
