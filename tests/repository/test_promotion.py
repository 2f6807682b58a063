"""Promotion is one replacement of a proven version's config, and rollback goes back along it."""

import shutil
from pathlib import Path

import pytest

from deploy.errors import UnfinishedError, UsageError
from deploy.repository.history import read_history
from deploy.repository.layout import promoted_version
from deploy.repository.manifest import Manifest, Verdicts, file_entries
from deploy.repository.promotion import promote, rollback
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


def test_a_rollback_after_a_broken_config_was_restored_goes_back_further(repository: Path) -> None:
    """Restoring is no promotion: undoing it would leave the same version served, and say that it was rolled back."""
    promote(repository, "pets", 2)
    config = repository / "pets/config.pbtxt"
    config.write_text(config.read_text() + "instance_group [")
    assert promote(repository, "pets", 2).previous is None
    assert config.read_text() == (repository / "pets/2/config.pbtxt").read_text()
    assert rollback(repository, "pets").version.number == 1
    config.write_text("instance_group [")
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


def edit(config: Path) -> str:
    """Change a field of the promoted config by hand; gives the text as edited."""
    edited = config.read_text().replace("count: 1", "count: 4", 1)
    config.write_text(edited)
    return edited


def test_a_config_edited_by_hand_is_found_kept_aside_and_replaced(repository: Path) -> None:
    config = repository / "pets/config.pbtxt"
    edited = edit(config)
    result = promote(repository, "pets", 2)
    assert result.edited == ("instance_group[0].count: 1 -> 4",)
    assert result.kept is not None
    assert result.kept.parent == repository / "pets/attestations"
    assert result.kept.read_text() == edited
    assert config.read_text() == (repository / "pets/2/config.pbtxt").read_text()
    assert promote(repository, "pets", 3).edited == ()


def test_rollback_restores_the_config_that_was_proven_whatever_a_hand_did(repository: Path) -> None:
    config = repository / "pets/config.pbtxt"
    promote(repository, "pets", 2)
    edit(config)
    result = rollback(repository, "pets")
    assert (result.version.number, result.edited) == (1, ("instance_group[0].count: 1 -> 4",))
    assert config.read_text() == (repository / "pets/1/config.pbtxt").read_text()


def test_a_tuned_version_and_the_one_before_have_each_their_own_config(repository: Path) -> None:
    own = repository / "pets/2/config.pbtxt"
    own.write_text(
        own.read_text().replace("dynamic_batching {\n}", "dynamic_batching {\n  max_queue_delay_microseconds: 100\n}")
    )
    path = repository / "pets/2/manifest.json"
    Manifest.read(path).model_copy(update={"files": file_entries(path.parent)}).write(path)
    promote(repository, "pets", 2)
    assert "max_queue_delay_microseconds: 100" in (repository / "pets/config.pbtxt").read_text()
    assert rollback(repository, "pets").edited == ()
    assert "max_queue_delay_microseconds" not in (repository / "pets/config.pbtxt").read_text()


def test_a_proven_config_that_was_changed_is_not_rolled_back_to(repository: Path) -> None:
    promote(repository, "pets", 2)
    edit(repository / "pets/1/config.pbtxt")
    with pytest.raises(UsageError, match=r"config\.pbtxt has changed"):
        rollback(repository, "pets")
    assert promoted_version(repository / "pets") == 2


def test_what_is_no_field_and_what_is_no_config_is_an_edit_too(repository: Path) -> None:
    config = repository / "pets/config.pbtxt"
    config.write_text(f"# a remark\n{config.read_text()}")
    assert promote(repository, "pets", 2).edited == ("its text, in no field",)
    config.write_text("nonsense {")
    assert promote(repository, "pets", 3).edited == ("it names no version, or Triton could not parse it",)
    assert len(list((repository / "pets/attestations").glob("edited-config-*.pbtxt"))) == 2


def test_rollback_goes_further_back_where_that_is_asked(repository: Path) -> None:
    for number in (2, 3, 2):
        promote(repository, "pets", number)
    assert rollback(repository, "pets", to=1).version.number == 1
    with pytest.raises(UsageError, match="nothing to roll pets back to"):
        rollback(repository, "pets")
    promote(repository, "pets", 3)
    with pytest.raises(UsageError, match=r"pets:2 is not among the versions(.|\n)*one of pets:1"):
        rollback(repository, "pets", to=2)
    assert rollback(repository, "pets").version.number == 1


def test_a_config_that_was_broken_by_hand_is_cured_by_promotion(repository: Path) -> None:
    (repository / "pets/config.pbtxt").write_text("nonsense {")
    promoted = promote(repository, "pets", 2)
    assert (promoted.previous, promoted.before) == (None, 1), "the first version was promoted as it came"
    assert promoted_version(repository / "pets") == 2
    assert rollback(repository, "pets").version.number == 1


def test_a_broken_config_that_still_names_a_version_says_what_a_hand_promoted(repository: Path) -> None:
    config = (repository / "pets/2/config.pbtxt").read_text()
    (repository / "pets/config.pbtxt").write_text(config + "nonsense {")
    assert promote(repository, "pets", 3).before == 2
    assert rollback(repository, "pets").version.number == 2


def test_a_rollback_that_is_to_leave_a_version_leaves_no_other(repository: Path) -> None:
    promote(repository, "pets", 2)
    promote(repository, "pets", 3)
    with pytest.raises(UnfinishedError, match="version 3 was promoted meanwhile"):
        rollback(repository, "pets", leaving=2)
    assert promoted_version(repository / "pets") == 3


def test_rollback_goes_back_to_what_a_hand_promoted(repository: Path) -> None:
    shutil.copyfile(repository / "pets/2/config.pbtxt", repository / "pets/config.pbtxt")
    promote(repository, "pets", 3)
    assert rollback(repository, "pets").version.number == 2


def test_a_model_of_somebody_else_is_left_as_it_is(tmp_path: Path) -> None:
    (tmp_path / "theirs/1").mkdir(parents=True)
    (tmp_path / "theirs/config.pbtxt").write_text('name: "theirs"')
    with pytest.raises(UsageError, match=r"holds nothing that deployctl published"):
        promote(tmp_path, "theirs", 1)
    with pytest.raises(UsageError, match="no promotion of it is known"):
        rollback(tmp_path, "theirs")
    assert sorted(path.name for path in (tmp_path / "theirs").iterdir()) == ["1", "config.pbtxt"]


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
