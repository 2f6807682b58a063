"""A version appears whole and numbered, beside nothing that it has to share the repository with."""

import errno
import os
import shutil
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from deploy.convert.model import Artifact
from deploy.errors import DeployError, UnfinishedError, UsageError
from deploy.repository.config import build_config
from deploy.repository.layout import promoted_version, version_numbers
from deploy.repository.manifest import Manifest, verify_files
from deploy.repository.protobuf import parse_config
from deploy.repository.publish import PublishOptions, publish
from deploy.repository.stage import open_stage, remove_stale_stages, stage_root
from tests.repository.samples import FAIL, PETS, WEIGHTS, Sample, leftovers, put, state

LATER = ("stage-made", "artifact-added", "config-added", "warmup-added", "numbered", "sealed", "synced")


def test_the_first_version_is_a_whole_promoted_model(tmp_path: Path) -> None:
    published = put(tmp_path / "models")
    model = published.version.model_folder
    assert (published.version.number, published.promoted) == (1, True)
    files = sorted(path.relative_to(model).as_posix() for path in model.rglob("*") if path.is_file())
    digest = PETS.plan().warmup[0].digest
    assert files == [
        "1/config.pbtxt",
        "1/evidence/parity.json",
        "1/labels.txt",
        "1/manifest.json",
        "1/model.onnx",
        "config.pbtxt",
        f"warmup/{digest}",
    ]
    assert (model / "config.pbtxt").read_text() == (model / "1/config.pbtxt").read_text()
    assert (model / "1/labels.txt").read_text() == "cat\ndog\neel\n"
    assert leftovers(tmp_path / "models") == []


def test_a_later_version_waits_for_its_promotion(tmp_path: Path) -> None:
    first = state(put(tmp_path / "models").version.model_folder)
    published = put(tmp_path / "models", Sample(weights=b"finer"))
    model = published.version.model_folder
    assert (published.version.number, published.promoted) == (2, False)
    assert (promoted_version(model), version_numbers(model)) == (1, (1, 2))
    assert {key: value for key, value in state(model).items() if key != "2"} == first
    own = parse_config((model / "2/config.pbtxt").read_text())
    assert (list(own.version_policy.specific.versions), own.output[0].label_filename) == ([2], "2/labels.txt")


def test_promote_can_be_asked_for_at_once(tmp_path: Path) -> None:
    put(tmp_path / "models")
    published = put(tmp_path / "models", options=PublishOptions(promote=True))
    assert published.promoted
    assert promoted_version(published.version.model_folder) == 2


def test_a_number_taken_meanwhile_is_not_overwritten(tmp_path: Path) -> None:
    put(tmp_path / "models")
    taken: list[int] = []

    def other_packager(step: str) -> None:
        if step == "synced" and not taken:
            taken.append(put(tmp_path / "models", Sample(weights=b"theirs")).version.number)

    ours = put(tmp_path / "models", Sample(weights=b"ours"), on_step=other_packager).version
    assert (taken, ours.number) == ([2], 3)
    assert (ours.model_folder / "2/model.onnx").read_bytes() == b"theirs"
    assert (ours.folder / "model.onnx").read_bytes() == b"ours"
    config = parse_config(ours.config.read_text())
    assert (list(config.version_policy.specific.versions), config.output[0].label_filename) == ([3], "3/labels.txt")
    assert verify_files(ours.folder).version == 3


def test_a_name_taken_meanwhile_makes_ours_the_second_version(tmp_path: Path) -> None:
    def other_packager(step: str) -> None:
        if step == "synced" and not (tmp_path / "models/pets").exists():
            put(tmp_path / "models", Sample(weights=b"theirs"))

    ours = put(tmp_path / "models", Sample(weights=b"ours"), on_step=other_packager)
    assert (ours.version.number, ours.promoted) == (2, False)
    assert promoted_version(ours.version.model_folder) == 1
    assert (ours.version.model_folder / "1/model.onnx").read_bytes() == b"theirs"


def test_a_name_taken_meanwhile_with_another_contract_refuses_ours(tmp_path: Path) -> None:
    def other_packager(step: str) -> None:
        if step == "synced" and not (tmp_path / "models/pets").exists():
            put(tmp_path / "models", Sample(format="aoti"))

    with pytest.raises(UsageError, match="format: aoti becomes onnx"):
        put(tmp_path / "models", on_step=other_packager)
    assert version_numbers(tmp_path / "models/pets") == (1,)


@pytest.mark.parametrize("step", LATER)
def test_an_interrupt_before_the_rename_leaves_nothing(tmp_path: Path, step: str) -> None:
    def interrupt(reached: str) -> None:
        if reached == step:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        put(tmp_path / "models", on_step=interrupt)
    assert list((tmp_path / "models").iterdir()) == []
    assert leftovers(tmp_path / "models") == []


def test_a_version_that_did_not_pass_is_not_published(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="parity: output scores is off by 3"):
        put(tmp_path / "models", Sample(parity=FAIL))
    assert list((tmp_path / "models").iterdir()) == []
    version = put(tmp_path / "models", Sample(parity=FAIL, unsafe_accepted=("parity",))).version
    assert verify_files(version.folder).unsafe_accepted == ("parity",)


def test_a_config_that_triton_would_reject_is_not_published(tmp_path: Path) -> None:
    with open_stage(tmp_path / "models", "pets") as stage:
        PETS.populate(stage)
        (stage.version.folder / "labels.txt").unlink()
        with pytest.raises(UnfinishedError, match=r"labels: label file '1/labels.txt' is not a file"):
            publish(stage, PETS.manifest())
    assert list((tmp_path / "models").iterdir()) == []


def test_a_failed_stage_is_kept_where_the_user_said(tmp_path: Path) -> None:
    with pytest.raises(UsageError):
        put(tmp_path / "models", Sample(parity=FAIL), keep_failed=tmp_path / "kept")
    assert (tmp_path / "kept/models/pets/1/model.onnx").read_bytes() == WEIGHTS
    assert (tmp_path / "kept/models/pets/1/evidence/parity.json").exists()
    assert leftovers(tmp_path / "models") == ["kept"]


def test_a_published_stage_is_not_kept(tmp_path: Path) -> None:
    put(tmp_path / "models", keep_failed=tmp_path / "kept")
    assert not (tmp_path / "kept").exists()


def test_a_folder_in_use_is_not_taken_for_keeping(tmp_path: Path) -> None:
    (tmp_path / "kept").mkdir()
    (tmp_path / "kept/mine").write_text("")
    with pytest.raises(UsageError, match="kept exists and is not empty"):
        put(tmp_path / "models", keep_failed=tmp_path / "kept")


def test_the_stage_lies_beside_the_repository_and_shows_the_coming_number(tmp_path: Path) -> None:
    put(tmp_path / "models")
    with open_stage(tmp_path / "models", "pets") as stage:
        assert stage.folder.parent == tmp_path / ".models.deployctl"
        assert stage.folder.stat().st_dev == (tmp_path / "models").stat().st_dev
        assert stage.version.number == 2
        assert sorted(path.name for path in (tmp_path / "models").iterdir()) == ["pets"]


def test_two_stages_of_one_process_leave_each_other_alone(tmp_path: Path) -> None:
    with open_stage(tmp_path / "models", "pets_onnx") as one, open_stage(tmp_path / "models", "pets_aoti") as two:
        assert remove_stale_stages(tmp_path / "models") == ()
        assert one.folder.exists()
        assert two.folder.exists()
    assert leftovers(tmp_path / "models") == []


def test_an_artifact_of_several_files_becomes_a_folder(tmp_path: Path) -> None:
    with open_stage(tmp_path / "models", "pets") as stage:
        PETS.populate(stage)
        (stage.version.folder / "model.onnx").unlink()
        files = ("model.onnx/model.onnx", "model.onnx/model.onnx.data")  # as `write_model` gives them
        made = stage.work / "several"
        (made / "model.onnx").mkdir(parents=True)
        for name in files:
            (made / name).write_bytes(name.encode())
        stage.add_artifact(Artifact(format="onnx", folder=made, files=files, seconds=0, peak_memory=0, details={}))
        version = publish(stage, PETS.manifest()).version
    assert (version.folder / "model.onnx/model.onnx.data").read_bytes() == b"model.onnx/model.onnx.data"
    assert {entry.path for entry in verify_files(version.folder).files} >= set(files)


def test_an_artifact_is_linked_and_not_copied(tmp_path: Path) -> None:
    with open_stage(tmp_path / "models", "pets") as stage:
        PETS.populate(stage)
        inode = (stage.work / "model.onnx").stat().st_ino
        version = publish(stage, PETS.manifest()).version
    assert (version.folder / "model.onnx").stat().st_ino == inode


def test_private_files_become_readable_for_the_server(tmp_path: Path) -> None:
    with open_stage(tmp_path / "models", "pets") as stage:
        PETS.populate(stage)
        (stage.version.folder / "model.onnx").chmod(0o600)
        version = publish(stage, PETS.manifest()).version
    assert stat.S_IMODE((version.folder / "model.onnx").stat().st_mode) == 0o644


def test_a_warm_up_sample_that_is_there_is_left_alone(tmp_path: Path) -> None:
    model = put(tmp_path / "models").version.model_folder
    sample = next((model / "warmup").iterdir())
    before = sample.stat()
    put(tmp_path / "models")
    after = next((model / "warmup").iterdir()).stat()
    assert (before.st_ino, before.st_mtime_ns) == (after.st_ino, after.st_mtime_ns)


@pytest.mark.parametrize("name", ["", ".hidden", "a/b", "../up", "with space", "-x", "é"])
def test_a_name_that_is_no_folder_name_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(UsageError, match="cannot be the name of a model"), open_stage(tmp_path / "models", name):
        pass
    assert not (tmp_path / "models").exists()


@pytest.mark.parametrize("label", ["", " ", "two\nlines"])
def test_a_label_that_is_no_line_is_refused(tmp_path: Path, label: str) -> None:
    with (
        open_stage(tmp_path / "models", "pets") as stage,
        pytest.raises(UsageError, match="cannot be a label"),
    ):
        stage.add_config(build_config(PETS.plan()), classes=("cat", label, "eel"))


def test_a_folder_that_deployctl_did_not_write_is_refused(tmp_path: Path) -> None:
    (tmp_path / "models/pets/1").mkdir(parents=True)
    with pytest.raises(UsageError, match="holds no version that deployctl published"):
        put(tmp_path / "models")


def test_a_repository_that_is_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "models").write_text("")
    for repository in (tmp_path / "models", tmp_path / "models/deeper"):
        with pytest.raises(UsageError, match="models is no folder"):
            put(repository)


@pytest.mark.skipif(not os.path.ismount("/dev/shm"), reason="needs a mount point that may be named")
def test_a_mount_point_is_refused_before_any_work() -> None:
    before = sorted(Path("/dev").iterdir())
    with pytest.raises(UsageError, match="/dev/shm is a mount point") as caught:
        put(Path("/dev/shm"))
    assert "/dev/shm/models" in caught.value.fix
    assert sorted(Path("/dev").iterdir()) == before


@pytest.mark.parametrize(
    ("number", "kind", "message"),
    [
        (errno.ENOSPC, UnfinishedError, "the disk is full while publishing pets"),
        (errno.EROFS, UsageError, "may not be read or written while publishing pets"),
    ],
)
def test_what_the_disk_refuses_is_explained(tmp_path: Path, number: int, kind: type[DeployError], message: str) -> None:
    def refuse(step: str) -> None:
        if step == "sealed":
            raise OSError(number, os.strerror(number), "model.onnx")

    with pytest.raises(kind, match=message):
        put(tmp_path / "models", on_step=refuse)
    assert list((tmp_path / "models").iterdir()) == []
    assert leftovers(tmp_path / "models") == []


def test_what_fails_after_publication_says_that_the_version_is_there(tmp_path: Path) -> None:
    def refuse(step: str) -> None:
        if step == "promotion-recorded":
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "history.json")

    put(tmp_path / "models")
    wanted = "^pets:2 is published and stays, but the disk is full while promoting pets:2: history.json"
    with pytest.raises(UnfinishedError, match=wanted):
        put(tmp_path / "models", options=PublishOptions(promote=True), on_step=refuse)
    assert promoted_version(tmp_path / "models/pets") == 1
    assert verify_files(tmp_path / "models/pets/2").version == 2


@pytest.mark.parametrize("folder", ["", "warmup"])
def test_a_model_that_can_take_no_version_is_refused_before_any_work(
    folder: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(tmp_path / "models")
    closed, steps = tmp_path / "models/pets" / folder, list[str]()
    # Root may write wherever it likes.
    monkeypatch.setattr("os.access", lambda path, mode: path != closed)
    with pytest.raises(UsageError, match=f"^{closed} may not be written, so that pets can take no further version"):
        put(tmp_path / "models", on_step=steps.append)
    assert steps == []
    assert leftovers(tmp_path / "models") == []


def test_a_folder_that_may_not_be_written_is_explained() -> None:
    # Even root cannot make a folder in sysfs.
    with pytest.raises(UsageError, match="may not be read or written while preparing"):
        put(Path("/sys/deployctl-models"))


FULL_DISK = """
import sys
from pathlib import Path
from deploy.errors import UnfinishedError
from tests.repository.samples import Sample, put
models = Path(sys.argv[1])
put(models)
try:
    put(models, Sample(weights=bytes(2_000_000)))
except UnfinishedError as error:
    print(error)
print(sorted(path.name for path in (models / "pets").iterdir()), sorted(path.name for path in models.parent.iterdir()))
"""


def _can_mount() -> bool:
    return (
        bool(shutil.which("unshare"))
        and not subprocess.run(
            ["unshare", "-Urm", "mount", "-t", "tmpfs", "x", "/mnt"], check=False, capture_output=True
        ).returncode
    )


@pytest.mark.skipif(not _can_mount(), reason="needs leave to mount a small filesystem in a namespace of its own")
def test_a_disk_that_is_really_full_publishes_nothing(tmp_path: Path) -> None:
    script = f'mount -t tmpfs -o size=1m x "{tmp_path}" && exec "{sys.executable}" -c "$0" "{tmp_path}/models"'
    command = ["unshare", "-Urm", "sh", "-c", script, FULL_DISK]
    result = subprocess.run(command, check=False, capture_output=True, text=True, cwd=Path(__file__).parents[2])
    assert result.stderr == ""
    lines = result.stdout.splitlines()
    assert lines[0] == f"the disk is full while working in the stage: {tmp_path}/models"
    assert lines[-1] == "['1', 'config.pbtxt', 'warmup'] ['models']"


def test_a_manifest_from_the_future_is_refused(tmp_path: Path) -> None:
    path = put(tmp_path / "models").version.manifest
    path.write_text(path.read_text().replace('"schema_version": 1', '"schema_version": 2'))
    with pytest.raises(UsageError, match="not a valid Manifest: schema_version"):
        Manifest.read(path)


def test_the_root_of_stages_is_named_for_its_repository(tmp_path: Path) -> None:
    assert stage_root(tmp_path / "models") != stage_root(tmp_path / "other")
