"""The example with FlexAttention learns, and what it leaves becomes a served version in both formats."""

import subprocess
import sys
from pathlib import Path

import pytest

from deploy.checkpoint.model import CheckpointRequest, InputRequest
from deploy.convert.model import Format
from deploy.errors import ExitCode
from deploy.evidence import Verdict
from deploy.package import package
from deploy.repository.find import read_manifest
from deploy.request import PackageRequest, Resources
from deploy.serve.engines import Engine
from deploy.targets import find_target
from tests.markdown import ROOT

WAYS: dict[Format, str] = {"aoti": "fused kernel", "onnx": "decomposed to plain attention"}


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("flex")
    command = [sys.executable, "examples/finetune_flex.py", "--out", str(folder)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "--factory finetune_flex:build" in done.stdout
    return folder


@pytest.mark.slow
@pytest.mark.engine
@pytest.mark.parametrize("format_", WAYS)
def test_what_it_leaves_is_served(trained: Path, format_: Format, engine: Engine, tmp_path: Path) -> None:
    request = PackageRequest(
        checkpoint=CheckpointRequest(
            path=trained / "digits_flex.pt",
            factory="finetune_flex:build",
            inputs=(InputRequest(name="rows", shape=(8, 8), dtype=None),),
        ),
        repository=tmp_path / "repository",
        target=find_target("local-cpu"),
        samples=trained / "samples.npz",
        labels=trained / "labels.txt",
        formats=(format_,),
        by_name=True,
        resources=Resources(seconds_per_cell=0.05, threads=1),
    )
    result = package(request)
    assert result.exit_code is ExitCode.OK, result.outcome.judgement.reason
    assert result.behaviour.judgement.verdict is Verdict.PASS
    assert result.behaviour.accuracy is not None
    assert result.behaviour.accuracy > 0.9
    manifest = read_manifest(result.outcome.published[0].version)
    assert manifest.artifact["flex_attention"] == WAYS[format_]
    assert manifest.verdicts.served is not None
    assert manifest.verdicts.served.passed
