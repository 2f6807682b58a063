"""A name stays bound to what its clients know, and a change is named with its way out."""

from pathlib import Path

import pytest

from deploy.errors import UsageError
from deploy.repository.contract import binding_manifest, check_contract, contract_changes
from deploy.repository.layout import promoted_version, version_numbers
from deploy.repository.manifest import Manifest
from deploy.repository.promotion import promote
from deploy.repository.publish import PublishOptions
from deploy.spec import Spec, TensorSpec
from tests.repository.samples import CLASSES, PETS, Sample, classifier, put


def renamed(spec: Spec, *, image: str = "image", scores: str = "scores") -> Spec:
    inputs = (spec.inputs[0].model_copy(update={"name": image}),)
    outputs = (spec.outputs[0].model_copy(update={"name": scores}),)
    return spec.model_copy(update={"inputs": inputs, "outputs": outputs})


def with_mask(spec: Spec) -> Spec:
    mask = TensorSpec(name="mask", dtype="bool", shape=("batch", 4))
    return spec.model_copy(update={"inputs": (*spec.inputs, mask)})


CHANGES = {
    "format": (Sample(format="aoti"), "format: onnx becomes aoti"),
    "input name": (Sample(spec=renamed(classifier(), image="pixels")), "input INPUT__0 name: image becomes pixels"),
    "output name": (Sample(spec=renamed(classifier(), scores="logits")), "output OUTPUT__0 name: scores becomes"),
    "dtype": (Sample(spec=classifier(dtype="float16")), "input INPUT__0 dtype: float32 becomes float16"),
    "shape": (Sample(spec=classifier(side=5)), "input INPUT__0 shape: [1..8, 3, 4, 4] becomes [1..8, 3, 5, 5]"),
    "smaller batch": (Sample(spec=classifier(max_batch=4)), "[1..8, 3, 4, 4] becomes [1..4, 3, 4, 4]"),
    "static": (Sample(spec=classifier(max_batch=1)), "[1..8, 3, 4, 4] becomes [1, 3, 4, 4]"),
    "one more input": (Sample(spec=with_mask(classifier())), "input INPUT__1: absent becomes mask"),
    "label order": (Sample(classes=("cat", "eel", "dog")), "label 1: dog becomes eel"),
    "no labels": (Sample(classes=None), "label 0: cat becomes nothing"),
}


@pytest.mark.parametrize(("sample", "message"), CHANGES.values(), ids=CHANGES.keys())
def test_a_change_is_refused_by_name(tmp_path: Path, sample: Sample, message: str) -> None:
    put(tmp_path / "models")
    with pytest.raises(UsageError) as caught:
        put(tmp_path / "models", sample)
    assert message in str(caught.value)
    assert "--name" in caught.value.fix
    assert "--new-contract" in caught.value.fix
    assert caught.value.exit_code == 2
    assert version_numbers(tmp_path / "models/pets") == (1,)


@pytest.mark.parametrize(
    "sample",
    [Sample(weights=b"finer"), Sample(spec=classifier(max_batch=16))],
    ids=["other weights", "larger batch"],
)
def test_what_clients_cannot_notice_is_no_change(tmp_path: Path, sample: Sample) -> None:
    put(tmp_path / "models")
    assert put(tmp_path / "models", sample).version.number == 2


def test_added_labels_are_no_change() -> None:
    before, after = Sample(classes=None).manifest(), Sample(classes=CLASSES).manifest()
    assert contract_changes(before, after) == ()


def test_a_removed_output_is_a_change() -> None:
    spec = classifier()
    extra = TensorSpec(name="features", dtype="float32", shape=("batch", 7))
    wide = spec.model_copy(update={"outputs": (*spec.outputs, extra)})
    (change,) = contract_changes(Sample(spec=wide).manifest(), PETS.manifest())
    assert str(change) == "output OUTPUT__1: features becomes absent; clients that name it are refused"


def test_an_accepted_change_is_written_down(tmp_path: Path) -> None:
    put(tmp_path / "models")
    published = put(tmp_path / "models", Sample(format="aoti"), options=PublishOptions(new_contract=True))
    (said,) = published.contract_changes
    assert said.startswith("format: onnx becomes aoti; the same requests work")
    assert Manifest.read(published.version.manifest).contract_changes == (said,)


def test_the_promoted_version_binds(tmp_path: Path) -> None:
    put(tmp_path / "models")
    put(tmp_path / "models", Sample(format="aoti"), options=PublishOptions(new_contract=True))
    assert put(tmp_path / "models").version.number == 3
    promote(tmp_path / "models", "pets", 2)
    with pytest.raises(UsageError, match="bound by its version 2"):
        put(tmp_path / "models")
    assert put(tmp_path / "models", Sample(format="aoti")).contract_changes == ()


def test_a_folder_where_the_config_belongs_promotes_nothing_and_binds_to_nothing(tmp_path: Path) -> None:
    model = put(tmp_path / "models").version.model_folder
    (model / "config.pbtxt").unlink()
    (model / "config.pbtxt").mkdir()
    assert promoted_version(model) is None
    with pytest.raises(UsageError, match="cannot be parsed"):
        binding_manifest(tmp_path / "models", "pets")


@pytest.mark.parametrize("broken", [b"not a config", b"name: \xff\xfe"], ids=["no config", "no text"])
def test_a_config_that_cannot_be_parsed_binds_to_no_version(broken: bytes, tmp_path: Path) -> None:
    model = put(tmp_path / "models").version.model_folder
    put(tmp_path / "models")
    (model / "config.pbtxt").write_bytes(broken)
    assert promoted_version(model) is None
    for accept in (False, True):
        with pytest.raises(UsageError, match=r"cannot be parsed(.|\n)*deployctl promote .*pets:N"):
            check_contract(tmp_path / "models", "pets", PETS.manifest(), accept=accept)
    promote(tmp_path / "models", "pets", 2)
    assert check_contract(tmp_path / "models", "pets", PETS.manifest(), accept=False) == ()


def test_the_lowest_version_binds_where_none_is_promoted(tmp_path: Path) -> None:
    model = put(tmp_path / "models").version.model_folder
    put(tmp_path / "models")
    (model / "config.pbtxt").unlink()
    binding = binding_manifest(tmp_path / "models", "pets")
    assert binding is not None
    assert binding.version == 1


def test_a_new_name_is_free(tmp_path: Path) -> None:
    assert binding_manifest(tmp_path, "pets") is None
    assert check_contract(tmp_path, "pets", PETS.manifest(), accept=False) == ()
