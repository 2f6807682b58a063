"""`deployctl docker`: what it writes for which target, and what it refuses before it writes anything."""

import json
import subprocess
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import CliRunner, Result

from deploy.cli.main import cli
from deploy.containers.dockerfiles import image_name
from deploy.errors import DeployError
from deploy.evidence import Verdict
from deploy.repository.attest import attest
from deploy.repository.config import ConfigPlan
from deploy.repository.find import find_version
from deploy.repository.publish import PublishOptions, publish
from deploy.repository.stage import open_stage
from deploy.targets import find_target
from tests.report.samples import slo
from tests.repository.samples import PETS, Sample, put
from tests.test_structure import HEAVY, PROBE

DIGEST = "sha256:" + "a" * 64


@dataclass(frozen=True, slots=True, kw_only=True)
class Packaged(Sample):
    """A sample whose config is one for another target."""

    target: str

    def plan(self, version: int = 1) -> ConfigPlan:
        """Its plan for that target."""
        return replace(Sample.plan(self, version), target=find_target(self.target))


def publish_sample(repository: Path, sample: Sample, **changes: Any) -> None:
    """A version whose manifest says otherwise than the sample's."""
    with open_stage(repository, sample.name, keep_failed=None, on_step=lambda _: None) as stage:
        sample.populate(stage)
        publish(stage, sample.manifest().model_copy(update=changes), PublishOptions())


def docker(folder: Path, *arguments: str) -> Result:
    """The command on a repository of pets; an error is raised as it is."""
    command = ["docker", str(folder / "models"), *arguments, "--output", str(folder / "out")]
    return CliRunner().invoke(cli, command, catch_exceptions=False)


def refused(folder: Path, *arguments: str) -> str:
    """The message of the error that the command ends in, having written nothing."""
    with pytest.raises(DeployError) as error:
        CliRunner().invoke(
            cli,
            ["docker", str(folder / "models"), *arguments, "--output", str(folder / "out")],
            catch_exceptions=False,
            standalone_mode=False,
        )
    assert not (folder / "out").exists()
    return str(error.value)


def onnx(opset: int = 20) -> dict[str, Any]:
    return {"artifact": {"opset": str(opset), "ir_version": "10"}}


def read(folder: Path, name: str) -> str:
    return (folder / "out" / name).read_text()


def test_a_gpu_target_reserves_a_gpu_and_shows_it(tmp_path: Path) -> None:
    publish_sample(tmp_path / "models", Packaged(target="26.08-cuda-sm90"), **onnx())
    result = docker(tmp_path, "pets", "--target", "26.08-cuda-sm90", "--p99-ms", "15", "--json")
    assert result.exit_code == 0, result.output
    compose = yaml.safe_load(read(tmp_path, "compose.yaml"))
    (device,) = compose["services"]["triton"]["deploy"]["resources"]["reservations"]["devices"]
    assert device["capabilities"] == ["gpu"]
    assert compose["services"]["triton"]["environment"] == {"NVIDIA_TF32_OVERRIDE": "0"}
    assert "--allow-gpu-metrics=true" in read(tmp_path, "server.Dockerfile")
    assert "nv_gpu_utilization" in read(tmp_path, "monitoring/dashboards/triton.json")
    written = json.loads(result.stdout)
    assert written["target"] == "26.08-cuda-sm90"
    assert sorted(written["files"]) == sorted(str(path) for path in (tmp_path / "out").rglob("*") if path.is_file())


def test_a_release_without_histograms_gets_summaries_and_a_note(tmp_path: Path) -> None:
    publish_sample(tmp_path / "models", PETS, **onnx())
    result = docker(tmp_path, "--target", "24.10-cpu", "--p99-ms", "15")
    assert "--metrics-config=summary_latencies=true" in read(tmp_path, "server.Dockerfile")
    assert "model_metrics" not in read(tmp_path, "models/pets/config.pbtxt")
    assert "lower bound" in result.stderr
    assert not (tmp_path / "out" / "packager.Dockerfile").exists()
    assert "no packager.Dockerfile" in result.stderr


def test_without_an_objective_latency_is_not_watched_and_that_is_said(tmp_path: Path) -> None:
    publish_sample(tmp_path / "models", PETS, **onnx())
    result = docker(tmp_path, "--target", "26.08-cpu")
    assert "no alert watches latency" in result.stderr
    rules = yaml.safe_load(read(tmp_path, "monitoring/rules.yaml"))
    alerts = {rule["alert"] for group in rules["groups"] for rule in group["rules"]}
    assert "TritonBudgetBurn" not in alerts
    assert {"TritonNoServer", "TritonModelNotServed", "TritonRequestsFailing", "TritonQueueSaturated"} <= alerts


def test_the_bounds_that_a_version_was_last_shown_to_keep_are_watched(tmp_path: Path) -> None:
    publish_sample(tmp_path / "models", PETS, **onnx())
    version = find_version(tmp_path / "models", "pets")
    attest(version, "slo", slo())
    attest(version, "slo", slo(Verdict.FAIL, rate=400))
    docker(tmp_path, "--target", "26.08-cpu")
    rules = read(tmp_path, "monitoring/rules.yaml")
    assert "slo: p99-15ms" in rules
    assert "slo: answered-99.9" in rules
    assert "buckets: 15.0" in read(tmp_path, "models/pets/config.pbtxt")


def test_a_table_of_bounds_is_watched(tmp_path: Path) -> None:
    publish_sample(tmp_path / "models", PETS, **onnx())
    config = tmp_path / "deploy.toml"
    config.write_text("[slo]\np99_ms = 12.5\nerror_rate = 0.001\n")
    docker(tmp_path, "--target", "26.08-cpu", "--slo", str(config))
    rules = read(tmp_path, "monitoring/rules.yaml")
    assert "slo: p99-12.5ms" in rules
    assert "slo: answered-99.9" in rules
    assert 'le=~"12\\\\.5"' in rules


def test_images_are_pinned_by_the_digests_that_are_given(tmp_path: Path) -> None:
    publish_sample(tmp_path / "models", PETS, **onnx())
    pins = [word for role in ("server", "packager", "prometheus", "grafana") for word in ("--pin", f"{role}={DIGEST}")]
    docker(tmp_path, "--target", "26.08-cpu", *pins)
    assert f"FROM nvcr.io/nvidia/tritonserver:26.08-py3@{DIGEST}" in read(tmp_path, "server.Dockerfile")
    assert f"FROM nvcr.io/nvidia/pytorch:26.08-py3@{DIGEST}" in read(tmp_path, "packager.Dockerfile")
    assert read(tmp_path, "compose.yaml").count(f"@{DIGEST}") == 2


def test_an_archive_for_the_target_gets_room_to_be_unpacked(tmp_path: Path) -> None:
    sample = Sample(format="aoti", weights=b"0" * 50_000_000)
    publish_sample(tmp_path / "models", sample, target=find_target("26.08-cpu"), artifact={})
    docker(tmp_path)
    (tmp,) = yaml.safe_load(read(tmp_path, "compose.yaml"))["services"]["triton"]["tmpfs"]
    assert tmp.endswith("size=96m")


def test_an_archive_for_another_target_is_refused(tmp_path: Path) -> None:
    publish_sample(tmp_path / "models", Sample(format="aoti"), artifact={})
    said = refused(tmp_path, "--target", "26.08-cpu")
    assert "an AOTInductor archive for local-cpu" in said
    assert "--target 26.08-cpu in the packager image" in said


def test_an_opset_that_the_target_does_not_load_is_refused(tmp_path: Path) -> None:
    publish_sample(tmp_path / "models", PETS, **onnx(opset=26))
    assert "opset 26, and 24.10-cpu loads at most 21" in refused(tmp_path, "--target", "24.10-cpu")


@pytest.mark.parametrize(
    ("packaged", "target", "words"),
    [
        (
            "26.08-cpu",
            "26.08-cuda-sm90",
            "its instances are KIND_CPU, so that 26.08-cuda-sm90 would leave the GPU idle",
        ),
        ("26.08-cuda-sm90", "26.08-cpu", "its instances are KIND_GPU, and 26.08-cpu has no GPU"),
        ("26.08-cpu", "24.10-cpu", "its config has model_metrics, which 24.10-cpu has not"),
    ],
)
def test_a_config_that_the_target_does_not_serve_is_refused(
    packaged: str, target: str, words: str, tmp_path: Path
) -> None:
    publish_sample(tmp_path / "models", Packaged(target=packaged), target=find_target(packaged), **onnx())
    said = refused(tmp_path, "--target", target)
    assert f"pets:1 was packaged for {packaged}: {words}" in said
    assert f"package it with --target {target}" in said


def test_this_machine_has_no_image(tmp_path: Path) -> None:
    publish_sample(tmp_path / "models", PETS, **onnx())
    assert "target local-cpu has no image" in refused(tmp_path)


def test_a_version_that_changed_is_refused(tmp_path: Path) -> None:
    publish_sample(tmp_path / "models", PETS, **onnx())
    (tmp_path / "models/pets/1/model.onnx").write_bytes(b"other")
    assert "model.onnx has changed" in refused(tmp_path, "--target", "26.08-cpu")


def test_a_warm_up_sample_that_changed_is_refused(tmp_path: Path) -> None:
    publish_sample(tmp_path / "models", PETS, **onnx())
    (sample,) = (tmp_path / "models/pets/warmup").iterdir()
    sample.write_bytes(b"other")
    assert f"{sample.name} is not the sample of that digest" in refused(tmp_path, "--target", "26.08-cpu")
    sample.unlink()
    assert "is missing or has changed" in refused(tmp_path, "--target", "26.08-cpu")


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        (["--pin", "server=latest"], "digest of server"),
        (["--pin", "sever=" + DIGEST], "--pin is"),
        (["--pin", f"server={DIGEST}", "--pin", f"server={DIGEST}"], "--pin is"),
        (["--p99-ms", "15", "--slo", "deploy.toml"], "one of them"),
        (["--target", "26.80-cpu"], "no target '26.80-cpu'"),
    ],
)
def test_wrong_use_is_refused(arguments: list[str], word: str, tmp_path: Path) -> None:
    put(tmp_path / "models")
    target = [] if "--target" in arguments else ["--target", "26.08-cpu"]
    assert word in refused(tmp_path, *arguments, *target)


def test_rendering_imports_no_torch(tmp_path: Path) -> None:
    publish_sample(tmp_path / "models", PETS, **onnx())
    arguments = ["docker", str(tmp_path / "models"), "--target", "26.08-cpu", "--output", str(tmp_path / "out")]
    heavy = [name for name in HEAVY if name != "tritonclient"]
    command = [sys.executable, "-c", PROBE, json.dumps(heavy), *arguments]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    assert json.loads(result.stderr.splitlines()[-1]) == {"code": 0, "loaded": []}


def test_two_versions_of_a_model_are_refused(tmp_path: Path) -> None:
    put(tmp_path / "models")
    put(tmp_path / "models")
    assert "two versions of one model" in refused(tmp_path, "pets:1", "pets:2", "--target", "26.08-cpu")


def test_a_second_rendering_replaces_the_first(tmp_path: Path) -> None:
    publish_sample(tmp_path / "models", PETS, **onnx())
    docker(tmp_path, "--target", "26.08-cpu")
    docker(tmp_path, "--target", "26.07-cpu")
    assert ":26.07-py3" in read(tmp_path, "server.Dockerfile")


@pytest.mark.parametrize(("model", "name"), [("Pets_v2.1", "pets-v2-1"), ("a..b__C-", "a-b-c")])
def test_names_of_images_are_those_that_docker_takes(model: str, name: str) -> None:
    assert image_name(model) == name
