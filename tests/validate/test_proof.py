"""The whole proof with real children: who is asked, what a crash costs, and models that are not image classifiers."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from deploy.convert.model import Artifact
from deploy.errors import UnfinishedError
from deploy.processes import ChildFailed, Limits
from deploy.validate.baseline import Baseline
from deploy.validate.pace import Pace
from deploy.validate.run import measure_baseline, prove
from deploy.validate.samples import Samples, digest_arrays
from tests.fixtures import seeded_module
from tests.validate import models
from tests.validate.models import SIZE, seeded_tiny
from tests.validate.rig import Rig, convert, image_rig, load_factory, make_rig

SAMPLES = np.random.default_rng(3).standard_normal((12, 3, SIZE, SIZE)).astype(np.float32)


@pytest.fixture(scope="module")
def rig(tmp_path_factory: pytest.TempPathFactory) -> Rig:
    return image_rig(seeded_tiny(), "tiny", tmp_path_factory.mktemp("rig"))


@pytest.fixture(scope="module")
def onnx(rig: Rig) -> Artifact:
    return convert(rig.program, "onnx", rig.folder / "onnx")


def real_samples(expected: np.ndarray | None = None) -> Samples:
    named = {} if expected is None else {"logits": expected}
    return Samples(path=Path("s.npz"), inputs=(SAMPLES,), expected=named, digest=digest_arrays([SAMPLES]))


def trained_outputs() -> np.ndarray:
    with torch.inference_mode():
        logits: np.ndarray = seeded_tiny()(torch.from_numpy(SAMPLES))["logits"].numpy()
    return logits


def test_a_broken_artifact_fails_with_the_reason_and_the_other_lives(rig: Rig, onnx: Artifact, tmp_path: Path) -> None:
    (tmp_path / "model.pt2").write_bytes(b"broken")
    broken = Artifact(format="aoti", folder=tmp_path, files=("model.pt2",), seconds=0.0, peak_memory=0, details={})
    pace = Pace(artifacts=1)  # the broken one is asked nothing
    plan = replace(rig.plan, pace=pace)
    proof = prove(rig.checkpoint, [broken, onnx], real_samples(trained_outputs()), plan)
    assert pace.done == pace.rows > 0
    assert not proof.evidence["aoti"].judgement.passed
    assert "could not be loaded" in proof.evidence["aoti"].judgement.reason
    assert proof.evidence["onnx"].judgement.passed, proof.evidence["onnx"].judgement.reason
    assert any(case.startswith("real, ") for case in proof.evidence["onnx"].cases)
    assert proof.behaviour.status == "confirmed"


def test_another_training_sides_outputs_fail_every_format(rig: Rig, onnx: Artifact) -> None:
    proof = prove(rig.checkpoint, [onnx], real_samples(np.maximum(trained_outputs(), 0)), rig.plan)
    assert proof.behaviour.status == "refuted"
    assert "not the architecture that was trained" in proof.evidence["onnx"].judgement.reason
    assert not proof.evidence["onnx"].judgement.passed


def test_an_artifact_that_hangs_fails_with_the_reason(rig: Rig, onnx: Artifact) -> None:
    hanging = replace(rig, plan=replace(rig.plan, limits=Limits(seconds=0.001)))
    evidence = hanging.judge(onnx)
    assert evidence.failures[0].check == "run"
    assert "did not end within" in evidence.judgement.reason


def test_limits_too_low_for_float64_do_not_make_the_check_a_weaker_one(rig: Rig) -> None:
    with pytest.raises(ChildFailed, match="reference did not end within"):
        measure_baseline(rig.checkpoint, None, replace(rig.plan, limits=Limits(seconds=0.001)))


def vector_baseline(module: nn.Module, factory: str, folder: Path, *shapes: tuple[int, ...]) -> Baseline:
    torch.manual_seed(0)
    for parameter in module.parameters():
        nn.init.normal_(parameter)
    return make_rig(load_factory(module, factory, folder, shapes=shapes), folder).baseline


def test_a_zero_head_is_a_vacuous_reference(tmp_path: Path) -> None:
    module = seeded_tiny()
    nn.init.zeros_(module.head.weight)
    rig = image_rig(module, "tiny", tmp_path)
    assert [(failure.check, failure.output) for failure in rig.baseline.failures] == [("vacuous", "logits")]


def test_a_model_that_mixes_the_rows_of_a_batch_is_refused(tmp_path: Path) -> None:
    failures = vector_baseline(models.BatchMean(), "batch_mean", tmp_path, (4,)).failures
    assert [failure.check for failure in failures] == ["rows"]


def test_a_model_that_cannot_run_in_float64_gets_a_declared_tolerance(tmp_path: Path) -> None:
    baseline = vector_baseline(models.SingleOnly(), "single_only", tmp_path, (4,))
    assert baseline.reference.startswith("declared tolerance (float64 cannot run: ")
    assert "double" in baseline.reference or "dtype" in baseline.reference
    assert baseline.failures == ()


def test_a_reference_that_finds_no_memory_is_no_reason_for_a_weaker_check(tmp_path: Path) -> None:
    with pytest.raises(UnfinishedError, match=r"reference ran out of memory: (.|\n)*2\.00 GiB") as caught:
        vector_baseline(models.NoRoom(), "no_room", tmp_path, (4,))
    assert "--max-batch" in caught.value.fix


@pytest.mark.parametrize(
    ("builder", "module", "shapes"),
    [("scaled", models.Scaled, ((4,),)), ("indices", models.Indices, ((4,), ()))],
    ids=["exact arithmetic", "two inputs and an integer output"],
)
def test_unusual_models_pass_through_onnx(
    builder: str, module: Callable[[], nn.Module], shapes: tuple[tuple[int, ...], ...], tmp_path: Path
) -> None:
    torch.manual_seed(0)
    rig = make_rig(load_factory(module(), builder, tmp_path, shapes=shapes), tmp_path)
    evidence = rig.judge(convert(rig.program, "onnx", tmp_path / "onnx"))
    assert evidence.judgement.passed, evidence.judgement.reason


def test_a_static_program_passes_row_by_row(tmp_path: Path) -> None:
    checkpoint = load_factory(seeded_tiny(), "tiny", tmp_path, shapes=((3, SIZE, SIZE),))
    rig = make_rig(checkpoint, tmp_path, max_batch=1)
    evidence = rig.judge(convert(rig.program, "onnx", tmp_path / "onnx"))
    assert evidence.judgement.passed, evidence.judgement.reason
    assert {case.split(", ")[1].split()[0] for case in evidence.cases} == {"row"}


def test_the_same_seed_gives_the_same_baseline(rig: Rig) -> None:
    again, _ = measure_baseline(rig.checkpoint, None, rig.plan)
    assert again.budgets == rig.baseline.budgets


@pytest.mark.slow
@pytest.mark.parametrize("builder", ["resnet18", "mobilenet_v3_small"])
def test_clean_torchvision_models_raise_no_alarm(builder: str, tmp_path: Path) -> None:
    from deploy.checkpoint.load import read_checkpoint
    from deploy.checkpoint.model import CheckpointRequest
    from tests.fixtures import save_state_dict

    path = save_state_dict(seeded_module(builder), tmp_path / "checkpoint.pt")
    rig = make_rig(read_checkpoint(CheckpointRequest(path=path, arch=builder)), tmp_path)
    evidence = rig.judge(convert(rig.program, "onnx", tmp_path / "onnx"))
    assert evidence.judgement.passed, evidence.judgement.reason
    assert all(output.max_multiple < 5 for output in evidence.outputs)
