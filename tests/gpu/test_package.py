"""A checkpoint becomes a version on the GPU: compiled, proven, measured and served there, TF32 off."""

from dataclasses import replace
from pathlib import Path

import pytest

from deploy.convert.model import FORMATS, Format
from deploy.errors import ExitCode
from deploy.evidence import ServedEvidence
from deploy.gpu import GpuStack
from deploy.latency_evidence import LatencyEvidence
from deploy.repository.layout import Version
from deploy.repository.manifest import verify_files
from deploy.request import PackageRequest, PackageResult
from deploy.serve.engines import Engine
from deploy.targets import LOCAL_CUDA, find_target
from deploy.verify import verify
from tests.packaging import make_request, run

pytestmark = pytest.mark.gpu


def on_gpu(request: PackageRequest, stack: GpuStack, engine: Engine | None) -> PackageRequest:
    """The request for the GPU, in the formats that run on it here, served where an engine is installed."""
    formats: tuple[Format, ...] = tuple(name for name in FORMATS if name != "onnx" or not stack.onnx)
    return replace(
        request,
        device="cuda",
        target=find_target(LOCAL_CUDA),
        formats=formats,
        by_name=True,
        all_formats=True,
        serve_check=engine is not None,
    )


@pytest.fixture(scope="module")
def request_(stack: GpuStack, installed: Engine | None, tmp_path_factory: pytest.TempPathFactory) -> PackageRequest:
    return on_gpu(make_request(tmp_path_factory.mktemp("gpu")), stack, installed)


@pytest.fixture(scope="module")
def packaged(request_: PackageRequest) -> PackageResult:
    """The tiny net in every format that runs on the GPU here, each a model of its own."""
    return run(request_, resources=replace(request_.resources, cache=False))


def version_of(result: PackageResult, format_: Format) -> Version:
    (version,) = [one.version for one in result.outcome.published if one.version.name == f"tiny_{format_}"]
    return version


def test_every_format_is_published_and_says_where_it_was_made(packaged: PackageResult, stack: GpuStack) -> None:
    assert packaged.exit_code is ExitCode.OK, packaged.outcome.judgement.reason
    assert packaged.outcome.published
    for one in packaged.outcome.published:
        manifest = verify_files(one.version.folder)
        assert (manifest.target.name, manifest.target.device, manifest.target.sm) == (
            "local-cuda",
            "cuda",
            stack.gpu.sm,
        )
        assert manifest.environment.gpu == stack.gpu
        assert manifest.artifact["device"] == "cuda"
        assert manifest.artifact["tf32"] == "off"
        assert manifest.artifact["driver"] == stack.gpu.driver
        assert manifest.verdicts.parity.passed
        assert "proven on" not in manifest.verdicts.parity.reason


def test_an_archive_names_its_gpu_in_its_own_metadata(packaged: PackageResult, stack: GpuStack) -> None:
    manifest = verify_files(version_of(packaged, "aoti").folder)
    assert manifest.artifact["device_key"] == "cuda"
    assert manifest.artifact["compute_capability"] == str(stack.gpu.sm)


def test_the_reference_is_float64_on_the_gpu(packaged: PackageResult) -> None:
    assert {evidence.reference for evidence in packaged.parity} == {"float64"}
    assert packaged.parity
    assert all(evidence.rows > 0 for evidence in packaged.parity)


def test_latency_was_measured_on_the_gpu(packaged: PackageResult, stack: GpuStack) -> None:
    latency = packaged.latency
    assert latency is not None
    assert not latency.lost
    assert latency.device.startswith(f"cuda: {stack.gpu.name} (compute capability ")
    assert "synchronised" in latency.method
    formats = {evidence.format for evidence in packaged.parity}
    assert {cell.contender for cell in latency.cells} == {"eager", "eager (A/A)", *formats}
    assert all(cell.p50 is not None for cell in latency.cells)
    assert LatencyEvidence.read(version_of(packaged, "aoti").evidence / "latency.json") == latency


def test_it_was_served_on_the_gpu(packaged: PackageResult, installed: Engine | None) -> None:
    if installed is None:
        pytest.skip("the local engine is not installed: `deployctl engine install`")
    assert packaged.outcome.published
    for one in packaged.outcome.published:
        served = ServedEvidence.read(one.version.evidence / "served.json")
        assert served.judgement.passed, served.judgement.reason
        assert served.backend.endswith(" on cuda)")
        assert any("deployctl_device added" in line for line in served.config_difference)
        assert "KIND_GPU" in one.version.config.read_text()


def test_this_gpu_can_run_it_and_a_cpu_cannot(packaged: PackageResult) -> None:
    assert packaged.outcome.published
    for one in packaged.outcome.published:
        name = f"{one.version.name}:{one.version.number}"
        assert verify(one.version.repository, name, engine=None).exit_code is ExitCode.OK
        other = verify(one.version.repository, name, engine=None, target=find_target("26.08-cpu"))
        assert other.exit_code is ExitCode.NO


def test_the_next_fine_tune_takes_the_code_of_before(
    request_: PackageRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DEPLOYCTL_CACHE", str(tmp_path / "cache"))
    plain = replace(request_, serve_check=False, all_formats=False, formats=("aoti",))
    first = run(plain, repository=tmp_path / "first")
    again = make_request(tmp_path / "again", seed=1)
    second = run(plain, repository=tmp_path / "second", checkpoint=again.checkpoint, samples=again.samples)
    assert first.conversion.artifacts["aoti"].reused is None
    assert second.conversion.artifacts["aoti"].reused is not None
    assert (first.exit_code, second.exit_code) == (ExitCode.OK, ExitCode.OK)
