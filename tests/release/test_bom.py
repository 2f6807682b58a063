"""The bill of materials is valid CycloneDX 1.6, says what is known and leaves out what is not, and repeats itself."""

import json
from pathlib import Path
from typing import Any

import pytest
from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator

from deploy.files import sha256_file
from deploy.release.bom import make_bom
from deploy.repository.layout import Version
from deploy.repository.manifest import FileEntry, Manifest, StepVersion
from deploy.targets import find_target
from tests.report.samples import tell, unsafe_story


@pytest.fixture(scope="module")
def version(tmp_path_factory: pytest.TempPathFactory) -> Version:
    """A version with parity and latency among its evidence."""
    return tell(tmp_path_factory.mktemp("bom") / "models")


def bom_of(version: Version, **changes: Any) -> dict[str, Any]:
    manifest = Manifest.read(version.manifest).model_copy(update=changes)
    text = make_bom(version, manifest).decode()
    error = JsonStrictValidator(SchemaVersion.V1_6).validate_str(text)
    assert error is None, error
    found: dict[str, Any] = json.loads(text)
    return found


def card(bom: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = bom["metadata"]["component"]["modelCard"]
    return found


def test_the_model_is_the_subject_with_the_digest_of_its_weights(version: Version) -> None:
    model = bom_of(version)["metadata"]["component"]
    assert (model["type"], model["name"], model["version"]) == ("machine-learning-model", version.name, "1")
    assert model["hashes"] == [{"alg": "SHA-256", "content": sha256_file(version.folder / "model.onnx")}]


def test_the_validator_sees_what_is_wrong(version: Version) -> None:
    bom = bom_of(version)
    card(bom)["modelParameters"]["colour"] = "blue"
    assert JsonStrictValidator(SchemaVersion.V1_6).validate_str(json.dumps(bom)) is not None


def test_inputs_and_outputs_are_those_of_the_spec(version: Version) -> None:
    parameters = card(bom_of(version))["modelParameters"]
    assert parameters["inputs"] == [{"format": "image: float32 [batch, 3, 4, 4]"}]
    assert parameters["outputs"] == [{"format": "scores: float32 [batch, 3]"}]
    assert parameters["modelArchitecture"] == "torchvision/resnet18"


def test_what_was_measured_comes_with_how(version: Version) -> None:
    metrics = card(bom_of(version))["quantitativeAnalysis"]["performanceMetrics"]
    parity = [one for one in metrics if "error against float64" in one["type"]]
    assert parity[0]["value"] == "0.73"
    assert parity[0]["slice"] == "output scores, 80 rows"
    latency = [one for one in metrics if one["type"] == "latency p50 in ms"]
    assert [one["slice"].partition(",")[0] for one in latency] == ["batch 1", "batch 8"]
    for one in latency:
        interval = one["confidenceInterval"]
        assert float(interval["lowerBound"]) <= float(one["value"]) <= float(interval["upperBound"])
        assert "n = " in one["slice"]


def test_the_data_it_was_trained_on_stays_unknown(version: Version) -> None:
    found = card(bom_of(version))
    assert "datasets" not in found["modelParameters"]
    assert "the data it was trained on is not known to deployctl" in found["considerations"]["technicalLimitations"]


def test_an_unsafe_version_says_so(tmp_path: Path) -> None:
    unsafe = tell(tmp_path / "models", unsafe_story())
    limits = card(bom_of(unsafe))["considerations"]["technicalLimitations"]
    assert "its parity check failed and was accepted as unsafe" in limits


def test_packages_have_purls_and_the_checkpoint_its_digest(version: Version) -> None:
    parts = {one["name"]: one for one in bom_of(version)["components"]}
    environment = Manifest.read(version.manifest).environment
    assert environment.torch is not None
    assert parts["torch"]["purl"] == f"pkg:pypi/torch@{environment.torch.replace('+', '%2B')}"
    assert parts["python"]["purl"] == f"pkg:generic/python@{environment.python}"
    assert parts["pets.pt"]["hashes"][0]["content"] == "0" * 64


def test_the_targets_container_is_a_part(version: Version) -> None:
    assert not [one for one in bom_of(version)["components"] if one["type"] == "container"]
    target = find_target("26.06-cpu")
    (image,) = [one for one in bom_of(version, target=target)["components"] if one["type"] == "container"]
    assert (image["name"], image["version"]) == ("nvcr.io/nvidia/tritonserver", "26.06-py3")
    assert image["purl"] == "pkg:docker/nvidia/tritonserver@26.06-py3?repository_url=nvcr.io"


def test_everything_is_a_dependency_of_the_model(version: Version) -> None:
    bom = bom_of(version)
    (model,) = [one for one in bom["dependencies"] if one["ref"] == str(version)]
    assert sorted(model["dependsOn"]) == sorted(one["bom-ref"] for one in bom["components"])


def test_equal_versions_give_equal_bytes_under_source_date_epoch(
    version: Version, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "1700000000")
    manifest = Manifest.read(version.manifest)
    first, second = make_bom(version, manifest), make_bom(version, manifest)
    assert first == second
    assert json.loads(first)["metadata"]["timestamp"] == "2023-11-14T22:13:20+00:00"


def test_nothing_of_this_machine_s_folders_is_in_it(version: Version) -> None:
    """The manifest holds the command as it was given, and so the paths of who packaged."""
    command = ("deployctl", "package", f"{version.repository}/best.pt", "--repository", str(version.repository))
    manifest = Manifest.read(version.manifest).model_copy(update={"command": command})
    assert str(version.repository) in manifest.to_json()
    assert str(version.repository) not in make_bom(version, manifest).decode()


def test_an_ensemble_names_the_versions_that_it_runs(version: Version) -> None:
    step = StepVersion(model="pets", version=3, digest="a" * 64)
    bom = bom_of(version, format="ensemble", steps=(step,))
    (part,) = [one for one in bom["components"] if one["type"] == "machine-learning-model"]
    assert (part["name"], part["version"], part["hashes"][0]["content"]) == ("pets", "3", "a" * 64)


def test_a_language_model_names_every_file_of_its_weights(version: Version) -> None:
    weights = ("weights/model-1.safetensors", "weights/model-2.safetensors", "weights/tokenizer.json", "model.json")
    others = ("config.pbtxt", "evidence/parity.json")
    files = tuple(FileEntry(path=path, sha256=f"{number}" * 64, size=1) for number, path in enumerate(weights + others))
    parts = {one["name"]: one for one in bom_of(version, format="vllm", files=files)["components"]}
    assert set(weights) <= parts.keys()
    assert not set(others) & parts.keys()
    assert parts["weights/model-2.safetensors"]["hashes"][0]["content"] == "1" * 64
