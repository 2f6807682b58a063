"""Versions are found by name, and a server's private view shows exactly those asked for."""

from pathlib import Path
from typing import Any

import pytest

from deploy.errors import UsageError
from deploy.repository.find import find_model, find_version, list_models, parse_reference, read_manifest
from deploy.repository.layout import Version, served_versions
from deploy.repository.protobuf import parse_config
from deploy.repository.stage import open_stage
from deploy.repository.view import make_view
from tests.repository.samples import PETS, WEIGHTS, Sample, classifier, put


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    put(tmp_path / "models")
    put(tmp_path / "models", Sample(weights=b"two"))
    put(tmp_path / "models", Sample(name="digits"))
    (tmp_path / "models/notes").mkdir()
    return tmp_path / "models"


def test_models_are_listed_with_what_is_promoted(repository: Path) -> None:
    found = [(model.name, model.versions, model.promoted) for model in list_models(repository)]
    assert found == [("digits", (1,), 1), ("pets", (1, 2), 1)]


def test_without_a_number_the_promoted_version_is_meant(repository: Path) -> None:
    assert find_version(repository, "pets").number == 1
    assert find_version(repository, "pets:2").folder == repository / "pets/2"


@pytest.mark.parametrize(
    ("reference", "message", "expected"),
    [
        ("pest", "there is no model 'pest'", "one of pets"),
        ("zebra", "there is no model 'zebra'", "one of digits, pets"),
        ("pets:7", "pets has no version 7", "pets:1, pets:2"),
        ("pets:one", "names no version", "resnet18:2"),
        ("pets:", "names no version", "NAME or NAME:N"),
        ("pets:0", "names no version", "NAME or NAME:N"),
        ("pets:²", "names no version", "NAME or NAME:N"),
        (":1", "names no version", "NAME or NAME:N"),
    ],
)
def test_what_is_not_there_is_said(repository: Path, reference: str, message: str, expected: str) -> None:
    with pytest.raises(UsageError, match=message) as caught:
        find_version(repository, reference)
    assert expected in caught.value.expected


def test_no_repository_and_an_empty_one(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="models is no folder"):
        list_models(tmp_path / "models")
    assert list_models(tmp_path) == ()
    with pytest.raises(UsageError, match="there is no model 'pets'"):
        find_model(tmp_path, "pets")


def test_no_promoted_version_names_the_command(repository: Path) -> None:
    (repository / "pets/config.pbtxt").write_text('name: "pets" backend: "onnxruntime"')
    with pytest.raises(UsageError, match="no version of pets is promoted") as caught:
        find_version(repository, "pets")
    assert caught.value.fix.endswith(f"deployctl promote {repository} pets:2`")


@pytest.mark.parametrize("reference", ["theirs", "theirs:1", "bare"])
def test_what_somebody_else_put_there_is_called_so(reference: str, repository: Path) -> None:
    for folder in ("theirs/1", "bare"):
        (repository / folder).mkdir(parents=True)
        (repository / folder.split("/")[0] / "config.pbtxt").write_text('name: "theirs" backend: "onnxruntime"')
    with pytest.raises(UsageError, match="holds nothing that deployctl published"):
        read_manifest(find_version(repository, reference))


def test_a_lost_manifest_is_to_be_restored(repository: Path) -> None:
    version = find_version(repository, "pets:1")
    version.manifest.unlink()
    with pytest.raises(UsageError, match=r"manifest\.json is missing(.|\n)*restore the file"):
        read_manifest(version)


def test_a_reference_is_a_name_with_or_without_a_number() -> None:
    assert parse_reference("pets") == ("pets", None)
    assert parse_reference("pets:12") == ("pets", 12)
    assert parse_reference("pets:012") == ("pets", 12)
    for number in ("0", "-1", "1e3", "²", "9" * 5000):
        with pytest.raises(UsageError, match="names no version"):
            parse_reference(f"pets:{number}")


def test_a_view_serves_an_unpromoted_version_from_the_same_bytes(repository: Path, tmp_path: Path) -> None:
    version = find_version(repository, "pets:2")
    view = make_view(tmp_path / "view", [version, find_version(repository, "digits")])
    assert sorted(path.name for path in view.iterdir()) == ["digits", "pets"]
    assert (view / "pets/2/model.onnx").samefile(version.folder / "model.onnx")
    text = (view / "pets/config.pbtxt").read_text()
    assert text == version.config.read_text()
    assert list(parse_config(text).version_policy.specific.versions) == [2]


def test_a_view_of_a_stage_shows_what_is_not_published(tmp_path: Path) -> None:
    with open_stage(tmp_path / "models", "pets") as stage:
        PETS.populate(stage)
        view = make_view(stage.folder / "view", [stage.version])
        assert (view / "pets/1/model.onnx").read_bytes() == WEIGHTS
        assert (view / "pets/warmup").is_dir()
        assert list((tmp_path / "models").iterdir()) == []


def test_an_engine_may_adapt_the_config_but_not_the_version(repository: Path, tmp_path: Path) -> None:
    version = put(repository, Sample(name="eels", format="aoti")).version
    before = version.config.read_text()

    def adapt(seen: Version, config: Any) -> Any:
        assert seen == version
        config.platform = ""
        return config

    view = make_view(tmp_path / "view", [version], adapt=adapt)
    assert parse_config((view / "eels/config.pbtxt").read_text()).platform == ""
    assert version.config.read_text() == before


def test_two_versions_of_a_model_are_served_side_by_side(repository: Path, tmp_path: Path) -> None:
    versions = [find_version(repository, f"pets:{number}") for number in (2, 1)]
    model = make_view(tmp_path / "view", versions) / "pets"
    assert served_versions(model) == (1, 2)
    assert (model / "1").resolve() == versions[1].folder.resolve()
    assert parse_config((model / "config.pbtxt").read_text()).output[0].label_filename == "2/labels.txt"


def test_two_versions_that_no_one_config_can_serve_are_refused(repository: Path, tmp_path: Path) -> None:
    put(repository, Sample(spec=classifier(max_batch=16)))
    versions = [find_version(repository, f"pets:{number}") for number in (1, 3)]
    with pytest.raises(UsageError, match=r"pets:3 and pets:1 cannot be served side by side.*max_batch_size"):
        make_view(tmp_path / "view", versions)
