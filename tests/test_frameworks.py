"""What training frameworks leave, from file to served parity."""

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import digits
import pytest
import torch
from torch.export import Dim

from deploy.checkpoint.model import CheckpointRequest
from deploy.errors import ExitCode
from deploy.evidence import Verdict
from deploy.files import sha256_file
from deploy.repository.manifest import verify_files
from deploy.request import PackageRequest, Resources
from deploy.serve.engines import Engine
from deploy.targets import find_target
from tests.checkpoint.programs import save, save_program
from tests.markdown import ROOT
from tests.models import IMAGE
from tests.packaging import lively, run, save_samples
from tests.trainers import CLASS_NAMES, trained


def ask(path: Path, **about: object) -> PackageRequest:
    """ONNX only, with the samples that lie beside what training left."""
    given = {"factory": "tests.models:ConvNet", "input_shapes": (IMAGE,), **about}
    return PackageRequest(
        checkpoint=CheckpointRequest(path=path, **given),  # type: ignore[arg-type]
        repository=path.parent / "repository",
        target=find_target("local-cpu"),
        name="tiny",
        samples=path.parent / "samples.npz",
        formats=("onnx",),
        by_name=True,
        max_batch=4,
        resources=Resources(seconds_per_cell=0.05, threads=1),
    )


@pytest.mark.engine
@pytest.mark.parametrize(
    ("kind", "ranks", "classes"),
    [
        ("fsdp", 2, tuple(CLASS_NAMES)),
        pytest.param("lightning", 1, tuple(CLASS_NAMES), marks=pytest.mark.slow),
        pytest.param("wrapped", 1, None, marks=pytest.mark.slow),
    ],
)
def test_it_is_served_and_computes_what_training_did(
    kind: str, ranks: int, classes: tuple[str, ...] | None, engine: Engine, tmp_path: Path
) -> None:
    result = run(ask(trained(kind, tmp_path, ranks=ranks)))
    assert result.exit_code is ExitCode.OK, result.outcome.judgement.reason
    manifest = verify_files(result.outcome.published[0].version.folder)
    assert manifest.verdicts.served is not None
    assert manifest.verdicts.served.passed
    assert manifest.verdicts.architecture.verdict is Verdict.PASS  # its outputs are those that training saved
    assert manifest.classes == classes


@pytest.mark.slow
@pytest.mark.engine
def test_an_adapter_that_peft_saved_is_served_as_peft_computes_it(engine: Engine, tmp_path: Path) -> None:
    result = run(ask(trained("lora", tmp_path), base=tmp_path / "base.pt"))
    assert result.exit_code is ExitCode.OK, result.outcome.judgement.reason
    manifest = verify_files(result.outcome.published[0].version.folder)
    assert manifest.verdicts.architecture.verdict is Verdict.PASS  # the samples are of PEFT's own, unmerged model
    assert any("base.pt" in note for note in manifest.checkpoint.notes)


def finetune(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """What the example said, started as its own text says; it gets two processes."""
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command = [*launcher, "examples/finetune_ddp.py", "--out", str(folder), *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)


@pytest.mark.slow
@pytest.mark.engine
@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_what_the_distributed_example_saves_is_served(strategy: str, engine: Engine, tmp_path: Path) -> None:
    done = finetune(tmp_path, "--strategy", strategy)
    assert done.returncode == 0, done.stdout + done.stderr
    asked = ask(tmp_path / "digits_resnet18_sharded", factory=None, input_shapes=((3, digits.SIZE, digits.SIZE),))
    result = run(asked)
    assert result.exit_code is ExitCode.OK, result.outcome.judgement.reason
    manifest = verify_files(result.outcome.published[0].version.folder)
    assert (manifest.checkpoint.architecture, manifest.checkpoint.format) == ("torchvision/resnet18", "distributed")
    assert manifest.verdicts.architecture.verdict is Verdict.PASS
    assert manifest.classes == digits.CLASSES


def test_the_distributed_example_says_how_it_is_started() -> None:
    command = [sys.executable, "examples/finetune_ddp.py"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr.strip().endswith("torchrun --nproc-per-node 2 examples/finetune_ddp.py")


@pytest.mark.engine
def test_an_exported_program_is_served(engine: Engine, tmp_path: Path) -> None:
    module = save_program(tmp_path / "net.pt2")
    save_samples(tmp_path / "samples.npz", module)
    result = run(ask(tmp_path / "net.pt2", factory=None, input_shapes=()))
    assert result.exit_code is ExitCode.OK, result.outcome.judgement.reason
    version = result.outcome.published[0].version
    manifest = verify_files(version.folder)
    assert (manifest.checkpoint.how, manifest.checkpoint.sha256) == ("program", sha256_file(tmp_path / "net.pt2"))
    assert manifest.verdicts.served is not None
    assert manifest.verdicts.served.passed
    assert {evidence.reference for evidence in result.parity} == {"float64"}
    assert manifest.verdicts.architecture.verdict is Verdict.PASS


@pytest.mark.slow
@pytest.mark.engine
def test_a_program_with_dynamic_sizes_is_served_in_both_formats(engine: Engine, tmp_path: Path) -> None:
    shapes = ({0: Dim("n", max=16), 2: Dim("h", min=16, max=40), 3: Dim("w", min=16, max=48)},)
    save(tmp_path / "net.pt2", lively(0), (torch.randn(4, *IMAGE),), dynamic_shapes=shapes)
    asked = ask(tmp_path / "net.pt2", factory=None, input_shapes=())
    result = run(replace(asked, samples=None), formats=("aoti", "onnx"), by_name=False, all_formats=True)
    assert result.exit_code is ExitCode.OK, result.outcome.judgement.reason
    assert len(result.outcome.published) == 2
    for published in result.outcome.published:
        manifest = verify_files(published.version.folder)
        assert manifest.verdicts.served is not None
        assert manifest.verdicts.served.passed
        assert manifest.spec.inputs[0].shape == ("batch", 3, "image_2", "image_3")
