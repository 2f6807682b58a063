"""torchvision beyond classification, from a bare state_dict to answers of a real tritonserver."""

import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from deploy.checkpoint.model import CheckpointRequest
from deploy.checkpoint.vision import import_torchvision
from deploy.convert.model import FORMATS, Format
from deploy.errors import ExitCode
from deploy.evidence import Verdict
from deploy.package import package
from deploy.request import PackageRequest, PackageResult, Resources
from deploy.serve.engines import Engine
from deploy.targets import find_target
from tests.fixtures import moving, save_state_dict, seeded_vision_model

COMMON = {"num_classes": 5}


@dataclass(frozen=True, slots=True, kw_only=True)
class Model:
    """A builder, the options it was trained with, an input's shape, and what packaging must find."""

    builder: str
    shape: tuple[int, ...]
    found: str
    outputs: tuple[tuple[str, int | None], ...]
    options: dict[str, object] = field(default_factory=lambda: dict(COMMON))
    arch: str | None = None
    inputs: tuple[str, ...] = ("image",)


LRASPP = Model(
    builder="lraspp_mobilenet_v3_large",
    shape=(3, 64, 64),
    found="lraspp_mobilenet_v3_large",
    outputs=(("out", 1),),
)
MODELS = {
    "segmentation": LRASPP,
    "segmentation with an auxiliary output": Model(
        builder="deeplabv3_mobilenet_v3_large",
        shape=(3, 64, 64),
        found="deeplabv3_mobilenet_v3_large+aux_loss",
        outputs=(("out", 1), ("aux", 1)),
        options={**COMMON, "aux_loss": True},
    ),
    "video": Model(builder="mc3_18", shape=(3, 4, 32, 32), found="mc3_18", outputs=(("output", 1),), inputs=("video",)),
    "optical flow": Model(
        builder="raft_small",
        shape=(3, 128, 128),
        found="raft_small",
        outputs=tuple((f"output_{step}", None) for step in range(12)),
        options={},
        inputs=("image1", "image2"),
    ),
    "quantizable": Model(
        builder="quantized_mobilenet_v2",
        shape=(3, 64, 64),
        found="quantized_mobilenet_v2",
        outputs=(("output", 1),),
        arch="quantized_mobilenet_v2",
    ),
    "detection": Model(
        builder="ssdlite320_mobilenet_v3_large",
        shape=(3, 320, 320),
        found="ssdlite320_mobilenet_v3_large",
        outputs=(("boxes", None), ("scores", 2)),
    ),
}


def packaged(model: Model, folder: Path, formats: tuple[Format, ...]) -> PackageResult:
    """What came of packaging the model's seeded weights, each format by name."""
    module = seeded_vision_model(
        model.builder,
        lambda rows: tuple(moving(rows, model.shape, seed=seed) for seed, _ in enumerate(model.inputs)),
        model.options,
    )
    checkpoint = save_state_dict(module, folder / "weights.pt")
    return package(
        PackageRequest(
            checkpoint=CheckpointRequest(path=checkpoint, arch=model.arch, input_shapes=(model.shape,)),
            repository=folder / "repository",
            target=find_target("local-cpu"),
            name="model",
            formats=formats,
            all_formats=len(formats) > 1,
            by_name=True,
            max_batch=4,
            resources=Resources(seconds_per_cell=0.1),
        )
    )


def check(model: Model, result: PackageResult, formats: tuple[Format, ...]) -> None:
    """That the right architecture was proven and served, its decisions taken on the right axes."""
    spec = result.conversion.program.spec
    assert result.checkpoint.architecture == f"torchvision/{model.found}"
    assert tuple(tensor.name for tensor in spec.inputs) == model.inputs
    assert tuple((tensor.name, tensor.decision_axis) for tensor in spec.outputs) == model.outputs
    assert result.outcome.judgement.verdict is Verdict.PASS, result.outcome.judgement.reason
    assert len(result.outcome.published) == len(formats)
    assert [served.judgement.passed for served in result.outcome.served] == [True] * len(formats)


@pytest.mark.engine
def test_a_segmentation_is_identified_proven_and_served(tmp_path: Path, engine: Engine) -> None:
    check(LRASPP, packaged(LRASPP, tmp_path, ("onnx",)), ("onnx",))


@pytest.mark.engine
@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("kind", MODELS)
def test_every_kind_is_identified_proven_and_served_in_both_formats(kind: str, tmp_path: Path, engine: Engine) -> None:
    check(MODELS[kind], packaged(MODELS[kind], tmp_path, FORMATS), FORMATS)


@pytest.mark.slow
def test_a_detector_of_two_stages_is_refused_and_nothing_is_published(tmp_path: Path) -> None:
    module = import_torchvision().models.get_model("fasterrcnn_resnet50_fpn", weights=None, weights_backbone=None)
    checkpoint = save_state_dict(module, tmp_path / "weights.pt")
    command = [
        sys.executable,
        "-m",
        "deploy",
        "package",
        str(checkpoint),
        "--input-shape",
        "3,64,64",
        "--no-serve-check",
    ]
    done = subprocess.run([*command, "--formats", "onnx"], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == ExitCode.USAGE, done.stderr
    assert "a detector of two stages" in done.stderr
    assert "SSD, RetinaNet or FCOS" in done.stderr
    assert "Traceback" not in done.stderr
    assert not list(tmp_path.glob("model_repository/*/1"))
