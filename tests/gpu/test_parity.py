"""resnet18 on the GPU keeps float32's own precision, and whatever allows TF32 there is caught by the same gate."""

import json
import os
import zipfile
from pathlib import Path

import pytest

from deploy.convert.model import Format
from deploy.errors import UsageError
from deploy.evidence import ParityEvidence, Verdict
from deploy.gpu import GpuStack
from deploy.processes import Worker
from deploy.repository.preflight import read_archive_metadata
from deploy.validate.executables import AotiModel, EagerModel, OnnxModel
from tests.gpu.models import RoundingArchive, RoundingEager, RoundingGraph
from tests.gpu.rig import GpuRig, make_gpu_rig

pytestmark = pytest.mark.gpu


@pytest.fixture(scope="module")
def rig(stack: GpuStack, tmp_path_factory: pytest.TempPathFactory) -> GpuRig:
    return make_gpu_rig(tmp_path_factory.mktemp("resnet18"), stack)


def path(rig: GpuRig, format_: Format) -> Path:
    return rig.conversion.artifacts[format_].path


def largest(evidence: ParityEvidence) -> float:
    """The largest error in units of eager's own; the limit is `evidence.max_limit`."""
    return max(output.max_multiple for output in evidence.outputs)


def test_the_archive_is_as_exact_as_eager(rig: GpuRig) -> None:
    evidence = rig.judge("aoti", AotiModel, path(rig, "aoti"))
    print(f"AOTInductor: {largest(evidence):.2f} times eager's error")
    assert evidence.judgement.passed, evidence.judgement.reason


@pytest.mark.usefixtures("onnx_on_gpu")
def test_the_graph_is_as_exact_as_eager(rig: GpuRig) -> None:
    evidence = rig.judge("onnx", OnnxModel, path(rig, "onnx"))
    print(f"ONNX Runtime: {largest(evidence):.2f} times eager's error")
    assert evidence.judgement.passed, evidence.judgement.reason


def test_eager_is_its_own_measure(rig: GpuRig) -> None:
    assert rig.judge("eager", EagerModel, rig.checkpoint).judgement.passed  # type: ignore[arg-type]


def test_tf32_in_eager_is_caught(rig: GpuRig) -> None:
    evidence = rig.judge("eager", RoundingEager, rig.checkpoint)  # type: ignore[arg-type]
    print(f"TF32 in eager: {largest(evidence):.0f} times eager's error")
    assert evidence.judgement.verdict is Verdict.FAIL
    assert largest(evidence) > evidence.max_limit


def test_tf32_where_an_archive_runs_is_caught(rig: GpuRig) -> None:
    evidence = rig.judge("aoti", RoundingArchive, path(rig, "aoti"))
    print(f"TF32 in the archive's process: {largest(evidence):.0f} times eager's error")
    assert evidence.judgement.verdict is Verdict.FAIL


@pytest.mark.usefixtures("onnx_on_gpu")
def test_tf32_in_onnx_runtime_is_caught(rig: GpuRig) -> None:
    evidence = rig.judge("onnx", RoundingGraph, path(rig, "onnx"))
    print(f"TF32 in ONNX Runtime: {largest(evidence):.0f} times eager's error")
    assert evidence.judgement.verdict is Verdict.FAIL


def test_an_archive_for_another_gpu_is_refused_before_it_is_loaded(rig: GpuRig, tmp_path: Path) -> None:
    other = tmp_path / "model.pt2"
    with zipfile.ZipFile(path(rig, "aoti")) as archive, zipfile.ZipFile(other, "w") as changed:
        for name in archive.namelist():
            content = archive.read(name)
            if name.endswith("metadata.json"):
                content = json.dumps(json.loads(content) | {"AOTI_COMPUTE_CAPABILITY": "75"}).encode()
            changed.writestr(name, content)
    assert read_archive_metadata(other)["AOTI_COMPUTE_CAPABILITY"] == "75"
    with (
        Worker("another GPU", log=Path(os.devnull)) as worker,
        pytest.raises(UsageError, match=r"kernels for compute capability 7\.5, and the GPU here has \d+\.\d"),
    ):
        worker.make(AotiModel, other, threads=1, device="cuda")


def test_an_archive_for_the_gpu_is_refused_on_the_cpu(rig: GpuRig) -> None:
    with (
        Worker("the CPU", log=Path(os.devnull)) as worker,
        pytest.raises(UsageError, match="compiled for cuda, and it is to run on cpu"),
    ):
        worker.make(AotiModel, path(rig, "aoti"), threads=1)
