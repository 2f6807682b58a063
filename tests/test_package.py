"""The main job from file to served version, on a net so small that the whole pipe takes seconds."""

import io
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import torch

from deploy.errors import DeployError, ExitCode, MissingError, UsageError
from deploy.evidence import ServedEvidence, Verdict
from deploy.latency_evidence import LatencyEvidence
from deploy.package import package, plan_package
from deploy.report.stages import Stages
from deploy.repository.find import find_version, list_models, read_manifest
from deploy.repository.layout import Version, promoted_version
from deploy.repository.manifest import verify_files
from deploy.repository.promotion import promote, rollback
from deploy.repository.stage import stage_root
from deploy.request import PackageRequest, PackageResult
from deploy.serve.engines import Engine
from deploy.targets import find_target
from deploy.verify import verify
from tests.notes import Notes
from tests.packaging import CLASSES, lively, make_request, run, save_samples

PROJECT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def request_(tmp_path_factory: pytest.TempPathFactory) -> PackageRequest:
    return make_request(tmp_path_factory.mktemp("package"))


@pytest.fixture(scope="module")
def packaged(request_: PackageRequest, engine: Engine) -> PackageResult:
    """The net in both formats, served, published as `tiny`."""
    return run(request_, formats=("aoti", "onnx"), by_name=False)


@pytest.fixture(scope="module")
def unserved(request_: PackageRequest, tmp_path_factory: pytest.TempPathFactory) -> Version:
    """The net as ONNX, published as `tiny` in a repository of its own without having been served."""
    return published(run(request_, repository=tmp_path_factory.mktemp("unserved") / "repository", serve_check=False))


@pytest.fixture
def again(unserved: Version, request_: PackageRequest, tmp_path: Path) -> PackageRequest:
    """What is asked of a repository that has that version already: a copy, which the test may change."""
    repository = Path(shutil.copytree(unserved.repository, tmp_path / "repository"))
    return replace(request_, repository=repository, serve_check=False)


def published(result: PackageResult) -> Version:
    assert len(result.outcome.published) == 1
    return result.outcome.published[0].version


@pytest.mark.engine
def test_a_checkpoint_becomes_a_served_version(packaged: PackageResult) -> None:
    version = published(packaged)
    manifest = verify_files(version.folder)
    assert packaged.exit_code is ExitCode.OK
    assert {evidence.format for evidence in packaged.parity} == {"aoti", "onnx"}
    assert all(evidence.judgement.passed and evidence.rows > 0 for evidence in packaged.parity)
    assert manifest.verdicts.served is not None
    assert manifest.verdicts.served.passed
    assert manifest.classes == CLASSES
    assert manifest.verdicts.architecture.verdict is Verdict.PASS
    assert promoted_version(version.model_folder) == 1


@pytest.mark.engine
def test_the_evidence_says_what_was_measured_and_what_served(packaged: PackageResult) -> None:
    folder = published(packaged).evidence
    served = ServedEvidence.read(folder / "served.json")
    latency = LatencyEvidence.read(folder / "latency.json")
    assert served.mode == "served (adapted)"
    assert served.executions < served.inferences
    assert {check.protocol for check in served.checks} == {"grpc", "http"}
    assert {cell.contender for cell in latency.cells} == {"eager", "eager (A/A)", "aoti", "onnx"}
    assert {cell.batch for cell in latency.cells} == {1, 4}


@pytest.mark.engine
def test_verify_proves_it_again_and_sees_one_changed_byte(
    packaged: PackageResult, engine: Engine, tmp_path: Path
) -> None:
    version = published(packaged)
    again = verify(version.repository, "tiny:1", engine=engine)
    assert again.exit_code is ExitCode.OK
    assert list(again.versions[0].checks) == ["digests", "lint", "target", "served"]

    copy = tmp_path / "repository"
    shutil.copytree(version.repository, copy)
    artifact = copy / "tiny" / "1" / "evidence" / "parity.json"
    artifact.write_bytes(artifact.read_bytes().replace(b"pass", b"Pass", 1))
    broken = verify(copy, None, engine=engine)
    assert broken.exit_code is ExitCode.NO
    assert "evidence/parity.json has changed" in broken.versions[0].checks["digests"].reason
    assert "served" not in broken.versions[0].checks


def test_a_later_version_waits_for_promotion_and_can_be_rolled_back(again: PackageRequest) -> None:
    model = again.repository / "tiny"
    config = (model / "config.pbtxt").read_bytes()
    second = published(run(again))
    assert second.number == 2
    assert (model / "config.pbtxt").read_bytes() == config
    promote(again.repository, "tiny", 2)
    assert promoted_version(model) == 2
    rollback(again.repository, "tiny")
    assert promoted_version(model) == 1
    assert published(run(again, promote=True)).number == 3
    assert promoted_version(model) == 3


def test_a_version_published_without_serving_says_so(unserved: Version) -> None:
    manifest = read_manifest(unserved)
    assert manifest.served_check == "skipped"
    assert manifest.verdicts.served is None
    assert not (unserved.evidence / "served.json").exists()


def test_weights_of_another_training_run_are_refuted_and_nothing_is_published(
    request_: PackageRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_samples(tmp_path / "samples.npz", lively(seed=1))
    asked = replace(request_, repository=tmp_path / "repository", samples=tmp_path / "samples.npz", serve_check=False)
    monkeypatch.setattr("deploy.steps._LONG_PROOF", 0.0)
    notes = Notes()
    result = package(asked, progress=notes)
    assert [text for text in notes.said if text.startswith("the proof takes its time: ")]
    assert result.exit_code is ExitCode.NO
    assert "not the architecture that was trained" in result.outcome.judgement.reason
    assert result.outcome.published == ()
    assert list((tmp_path / "repository").iterdir()) == []
    assert not stage_root(tmp_path / "repository").exists()


def test_a_failure_that_is_accepted_marks_the_manifest_for_ever(request_: PackageRequest, tmp_path: Path) -> None:
    save_samples(tmp_path / "samples.npz", lively(seed=1))
    asked = replace(request_, repository=tmp_path / "repository", samples=tmp_path / "samples.npz", serve_check=False)
    manifest = read_manifest(published(run(asked, accept_parity_failure=True)))
    assert set(manifest.unsafe_accepted) == {"parity", "architecture"}
    assert manifest.verdicts.parity.verdict is Verdict.FAIL


def test_a_failed_stage_is_kept_where_asked(request_: PackageRequest, tmp_path: Path) -> None:
    save_samples(tmp_path / "samples.npz", lively(seed=1))
    run(
        request_,
        repository=tmp_path / "repository",
        samples=tmp_path / "samples.npz",
        serve_check=False,
        keep_failed=tmp_path / "kept",
    )
    assert list((tmp_path / "kept").rglob("model.onnx"))


def test_an_slo_that_cannot_be_met_publishes_nothing(request_: PackageRequest, tmp_path: Path) -> None:
    result = run(request_, repository=tmp_path / "repository", slo_p99_ms=1e-6, serve_check=False)
    assert result.exit_code is ExitCode.NO
    assert result.outcome.judgement.verdict is Verdict.FAIL
    assert list((tmp_path / "repository").iterdir()) == []


def test_all_formats_are_models_of_their_own(request_: PackageRequest, tmp_path: Path) -> None:
    asked = replace(request_, repository=tmp_path / "repository", serve_check=False, by_name=False)
    run(asked, formats=("aoti", "onnx"), all_formats=True)
    assert [model.name for model in list_models(asked.repository)] == ["tiny_aoti", "tiny_onnx"]


def test_a_bound_name_refuses_another_format_before_any_work(again: PackageRequest) -> None:
    with pytest.raises(UsageError, match=r"bound to the format onnx by its version 1(.|\n)*--new-contract"):
        run(again, formats=("aoti",))


def test_a_bound_name_refuses_another_label_order_before_any_work(again: PackageRequest, tmp_path: Path) -> None:
    labels = tmp_path / "labels.txt"
    labels.write_text("\n".join(reversed(CLASSES)))
    passed: list[str] = []
    with pytest.raises(UsageError, match=r"label 0: ant -> eel|label 0"):
        package(replace(again, labels=labels), on_step=passed.append)
    assert passed == []


def test_labels_in_another_order_are_refused(request_: PackageRequest, tmp_path: Path) -> None:
    training = tmp_path / "training.pt"
    state = torch.load(request_.checkpoint.path, weights_only=True)  # noqa: TID251 - written by this test
    torch.save({"model": state, "classes": list(CLASSES)}, training)
    labels = tmp_path / "labels.txt"
    labels.write_text("\n".join([*CLASSES[1:], CLASSES[0]]))
    with pytest.raises(UsageError, match="shifted by one"):
        run(request_, checkpoint=replace(request_.checkpoint, path=training), labels=labels, serve_check=False)


def test_without_an_engine_it_stops_before_any_work(
    request_: PackageRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DEPLOYCTL_CACHE", str(tmp_path / "empty"))
    missing = replace(request_.checkpoint, path=tmp_path / "absent.pt")
    with pytest.raises(MissingError, match=r"deployctl engine install(.|\n)*--no-serve-check"):
        run(request_, checkpoint=missing)


def test_without_a_compiler_it_stops_before_any_work(
    request_: PackageRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    missing = replace(request_.checkpoint, path=tmp_path / "absent.pt")
    with pytest.raises(MissingError, match="no-such-compiler"):
        run(request_, checkpoint=missing, formats=("aoti", "onnx"), serve_check=False)


@pytest.mark.parametrize("changes", [{}, {"new_contract": True}, {"all_formats": True}], ids=["one", "new", "all"])
def test_a_name_whose_config_cannot_be_parsed_is_refused_before_any_work(
    changes: dict[str, Any], request_: PackageRequest, tmp_path: Path
) -> None:
    for name in ("tiny", "tiny_aoti", "tiny_onnx"):
        (tmp_path / name / "1").mkdir(parents=True)
        (tmp_path / name / "config.pbtxt").write_text("nonsense {")
    with pytest.raises(UsageError, match="cannot be parsed, so it does not say which version"):
        plan_package(replace(request_, repository=tmp_path, serve_check=False, **changes))


def test_a_dry_run_reads_all_and_writes_nothing(request_: PackageRequest, tmp_path: Path) -> None:
    plan = plan_package(replace(request_, repository=tmp_path / "repository", serve_check=False))
    assert plan.next_versions == {"tiny": 1}
    assert plan.formats == ("onnx",)
    assert not (tmp_path / "repository").exists()


def test_what_was_left_out_of_the_file_is_said(request_: PackageRequest, tmp_path: Path) -> None:
    weights = lively(0).state_dict()
    torch.save({"state_dict": weights, "best_state_dict": weights}, tmp_path / "two.pt")
    checkpoint = replace(request_.checkpoint, path=tmp_path / "two.pt")
    said = io.StringIO()
    with Stages(stream=said) as stages:
        plan_package(replace(request_, checkpoint=checkpoint, serve_check=False), progress=stages)
    assert "other weights in the file were left out: 'best_state_dict'; taken were 'state_dict'" in said.getvalue()


@pytest.fixture(scope="module")
def for_gpu(request_: PackageRequest, engine: Engine, tmp_path_factory: pytest.TempPathFactory) -> PackageResult:
    """The net for a GPU that this machine has not, with the formats left to the packager."""
    repository = tmp_path_factory.mktemp("gpu") / "repository"
    target = find_target("26.08-cuda-sm90")
    return run(request_, repository=repository, target=target, formats=("aoti", "onnx"), by_name=False)


@pytest.mark.engine
def test_for_a_gpu_that_is_absent_onnx_is_proven_and_served_on_cpu_and_says_so(for_gpu: PackageResult) -> None:
    version = published(for_gpu)
    manifest = verify_files(version.folder)
    assert (for_gpu.exit_code, manifest.format, manifest.target.sm) == (ExitCode.OK, "onnx", 90)
    assert "compiled on the device they run on" in for_gpu.outcome.lost["aoti"]
    assert "proven on CPU, the target runs on cuda" in manifest.verdicts.parity.reason
    assert manifest.verdicts.latency is not None
    assert "not measured" in manifest.verdicts.latency.reason
    served = ServedEvidence.read(version.evidence / "served.json")
    assert (served.mode, served.judgement.passed) == ("served (adapted)", True)
    assert any(line.startswith("instance_group: ") and "KIND_GPU" in line for line in served.config_difference)
    assert "KIND_GPU" in version.config.read_text()


@pytest.mark.engine
def test_a_gpu_version_fits_its_own_target_and_not_that_of_a_cpu(for_gpu: PackageResult) -> None:
    version = published(for_gpu)
    assert verify(version.repository, "tiny:1", engine=None).exit_code is ExitCode.OK
    other = verify(version.repository, "tiny:1", engine=None, target=find_target("26.08-cpu"))
    assert other.exit_code is ExitCode.NO
    reason = other.versions[0].checks["target"].reason
    assert "its instances are KIND_GPU, and 26.08-cpu has no GPU" in reason
    assert "targets that can run it: 26.08-cuda-sm75, 26.08-cuda-sm80" in reason


def test_a_latency_bound_on_a_gpu_that_is_absent_is_undecided_and_publishes_nothing(
    request_: PackageRequest, tmp_path: Path
) -> None:
    target = find_target("26.08-cuda-sm90")
    result = run(request_, repository=tmp_path / "repository", target=target, slo_p99_ms=1e6, serve_check=False)
    assert result.exit_code is ExitCode.NO
    assert result.outcome.judgement.verdict is Verdict.UNDECIDED
    assert "not measured: the target runs on cuda" in result.outcome.judgement.reason
    assert list((tmp_path / "repository").iterdir()) == []


@pytest.mark.parametrize(
    ("target", "kind", "words"),
    [
        ("26.08-cpu", MissingError, r"runs torch 2\.14\.0a0\+4fdf77b940\.nv26\.08, and the one here is"),
        ("26.09-cpu", UsageError, "which torch 26.09-cpu runs is not known"),
        ("26.08-cuda-sm90", UsageError, "compiled on the device they run on"),
        ("24.10-cpu", UsageError, "24.10-cpu cannot load an AOTInductor artifact"),
    ],
)
def test_aoti_by_name_for_a_foreign_target_is_refused_before_any_work(
    request_: PackageRequest, tmp_path: Path, target: str, kind: type[DeployError], words: str
) -> None:
    asked = replace(request_.checkpoint, path=tmp_path / "absent.pt")
    with pytest.raises(kind, match=words):
        run(request_, checkpoint=asked, target=find_target(target), formats=("aoti",), serve_check=False)


def test_by_default_a_foreign_target_gets_onnx_and_the_plan_says_what_is_left_out(
    request_: PackageRequest, tmp_path: Path
) -> None:
    asked = replace(request_, repository=tmp_path / "repository", serve_check=False, by_name=False)
    plan = plan_package(replace(asked, target=find_target("26.08-cpu"), formats=("aoti", "onnx")))
    assert plan.formats == ("onnx",)
    assert "26.08-cpu runs torch" in plan.left_out["aoti"]


def test_two_runs_differ_in_measurements_only(
    request_: PackageRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "1700000000")
    versions = [published(run(request_, repository=tmp_path / name, serve_check=False)) for name in ("one", "two")]
    texts = [{entry.path: entry.sha256 for entry in read_manifest(version).files} for version in versions]
    measured = {"evidence/latency.json", "evidence/report.html"}
    assert {path for path in texts[0] if texts[0][path] != texts[1][path]} <= measured
    manifests = [read_manifest(version).model_dump(exclude={"files"}) for version in versions]
    for manifest in manifests:
        del manifest["verdicts"]["latency"]
    assert manifests[0] == manifests[1]
    assert manifests[0]["created"] == "2023-11-14T22:13:20Z"


# The boundaries of the pipe; those inside publication are killed in tests/repository.
STEPS = (("stage-made", 1), ("converted", 1), ("proven", 1), ("measured", 1), ("stage-made", 2), ("evidence-added", 1))
# Slow, since the steps before them have left nothing else on disk: what was converted lies there as it did.
SAME_ON_DISK = ("proven", "measured")


@pytest.mark.parametrize(
    ("step", "occurrence"),
    [pytest.param(*one, marks=pytest.mark.slow) if one[0] in SAME_ON_DISK else one for one in STEPS],
)
def test_kill_9_leaves_nothing_and_the_next_run_cleans_up(
    step: str, occurrence: int, tmp_path: Path, request_: PackageRequest
) -> None:
    died = subprocess.run(
        [sys.executable, "-m", "tests.packaging", str(tmp_path), step, str(occurrence)], cwd=PROJECT, check=False
    )
    assert died.returncode == -signal.SIGKILL
    repository = tmp_path / "repository"
    assert list(repository.iterdir()) == []
    assert list(stage_root(repository).iterdir()) != []
    if (step, occurrence) == STEPS[-1]:
        run(request_, repository=repository, serve_check=False)
        assert find_version(repository, "tiny").number == 1
        assert not stage_root(repository).exists()


def test_ctrl_c_ends_with_130_and_leaves_nothing(request_: PackageRequest, tmp_path: Path) -> None:
    assert request_.checkpoint.factory is not None
    command = [
        sys.executable, "-m", "deploy", "package", str(request_.checkpoint.path), "--factory",
        request_.checkpoint.factory, "--input-shape", "3,16,16", "--repository", str(tmp_path / "repository"),
        "--formats", "aoti", "--no-serve-check",
    ]  # fmt: skip
    process = subprocess.Popen(command, cwd=PROJECT, stderr=subprocess.PIPE, text=True, start_new_session=True)
    assert process.stderr is not None
    for line in process.stderr:
        if "convert to aoti ..." in line:
            break
    time.sleep(1.0)
    below = psutil.Process(process.pid).children(recursive=True)
    os.killpg(process.pid, signal.SIGINT)
    rest = process.stderr.read()
    process.stderr.close()
    assert process.wait(timeout=60) == ExitCode.INTERRUPTED
    assert "Traceback" not in rest
    assert list((tmp_path / "repository").iterdir()) == []
    assert not stage_root(tmp_path / "repository").exists()
    _, alive = psutil.wait_procs(below, timeout=20)
    assert alive == []


def test_the_command_line_prints_json_and_an_error_as_json(request_: PackageRequest, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "deploy", "package", str(tmp_path / "absent.pt"), "--no-serve-check", "--json"]
    done = subprocess.run(command, cwd=PROJECT, capture_output=True, text=True, check=False)
    assert done.returncode == ExitCode.USAGE
    assert "absent.pt" in json.loads(done.stdout)["error"]["found"]
    assert "Traceback" not in done.stderr


def test_samples_of_another_shape_are_refused(request_: PackageRequest, tmp_path: Path) -> None:
    np.savez(tmp_path / "samples.npz", allow_pickle=False, input=np.zeros((4, 3, 8, 8), np.float32))
    with pytest.raises(UsageError, match=r"\[4, 3, 8, 8\]|\[3, 8, 8\]"):
        run(request_, repository=tmp_path / "repository", samples=tmp_path / "samples.npz", serve_check=False)
