"""What is read from weights of other kinds than classification, and that they compute what torchvision computes."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from detections import Rule, detect
from torch import Tensor, nn

from deploy.checkpoint.load import build_module, read_checkpoint, read_to_package
from deploy.checkpoint.model import CheckpointRequest, PreprocessingRequest
from deploy.checkpoint.servable import servable
from deploy.checkpoint.vision import import_torchvision, non_maximum_suppression
from deploy.checkpoint.zoo import load_zoo
from deploy.errors import UsageError
from tests.checkpoint.checkpoints import saved, seeded
from tests.fixtures import calibrate

QUANTIZABLE = [name for name in load_zoo() if name.startswith("quantized_")]
LARGE = ("resnet50", "resnext", "inception")


def torchvision_model(builder: str, **options: Any) -> nn.Module:
    """The builder's module with seeded weights and no pre-trained backbone, in eval mode."""
    torch.manual_seed(0)
    if load_zoo()[builder].kind in ("segmentation", "detection", "two-stage detection"):
        options["weights_backbone"] = None
    module: nn.Module = import_torchvision().models.get_model(builder, weights=None, **options)
    return module.eval()


def test_a_segmentation(tmp_path: Path) -> None:
    module = torchvision_model("deeplabv3_mobilenet_v3_large", num_classes=3, aux_loss=True)
    request = saved(tmp_path / "weights.pt", module.state_dict())
    checkpoint = read_checkpoint(request)
    assert checkpoint.architecture == "torchvision/deeplabv3_mobilenet_v3_large+aux_loss"
    assert [(tensor.name, tensor.shape) for tensor in checkpoint.inputs] == [("image", ("batch", 3, 520, 520))]
    assert (checkpoint.preprocessing.resize, checkpoint.preprocessing.crop) == (520, None)
    notes = "\n".join(checkpoint.notes)
    assert "input size: 520 x 520" in notes
    assert "--arch deeplabv3_mobilenet_v3_large takes it" in notes
    image = torch.rand(1, 3, 64, 64)
    with torch.inference_mode():
        found, wanted = build_module(checkpoint)(image), module(image)
        assert torch.equal(found["out"], wanted["out"])
        assert torch.equal(found["aux"], wanted["aux"])
        plain = read_checkpoint(CheckpointRequest(path=request.path, arch="deeplabv3_mobilenet_v3_large"))
        assert list(build_module(plain)(image)) == ["out"]


def test_a_video_classifier(tmp_path: Path) -> None:
    request = saved(tmp_path / "weights.pt", torchvision_model("mc3_18", num_classes=3).state_dict())
    checkpoint = read_checkpoint(request)
    assert [(tensor.name, tensor.shape) for tensor in checkpoint.inputs] == [("video", ("batch", 3, 16, 112, 112))]
    found = checkpoint.preprocessing
    assert (found.resize, found.crop, found.layout) == ((128, 171), 112, "NCTHW, RGB")
    other = read_checkpoint(CheckpointRequest(path=request.path, input_shapes=((3, 8, 64, 96),)))
    assert other.inputs[0].shape == ("batch", 3, 8, 64, 96)
    assert any("resize and crop: unknown for 8 x 64 x 96" in note for note in other.notes)
    with pytest.raises(UsageError, match="3,FRAMES,HEIGHT,WIDTH"):
        read_checkpoint(CheckpointRequest(path=request.path, input_shapes=((3, 64, 64),)))


def test_a_video_classifier_of_one_size_takes_no_other(tmp_path: Path) -> None:
    request = saved(tmp_path / "weights.pt", torchvision_model("mvit_v2_s", num_classes=3).state_dict())
    assert read_checkpoint(request).inputs[0].shape == ("batch", 3, 16, 224, 224)
    with pytest.raises(UsageError, match="3,16,224,224"):
        read_checkpoint(CheckpointRequest(path=request.path, input_shapes=((3, 8, 224, 224),)))


def test_optical_flow_is_torchvision_s_own_and_runs_in_float64(tmp_path: Path) -> None:
    module = torchvision_model("raft_small")
    checkpoint = read_checkpoint(saved(tmp_path / "weights.pt", module.state_dict()))
    assert [tensor.name for tensor in checkpoint.inputs] == ["image1", "image2"]
    assert {tensor.shape for tensor in checkpoint.inputs} == {("batch", 3, 128, 128)}
    assert "the smallest that the network takes" in "\n".join(checkpoint.notes)
    images = torch.rand(2, 1, 3, 128, 136)
    with torch.inference_mode():
        wanted = module(*images)
        found = build_module(checkpoint)(*images)
        precise = build_module(checkpoint, dtype="float64")(*images.double())
    assert len(found) == len(wanted) == 12
    assert all(torch.equal(one, other) for one, other in zip(found, wanted, strict=True))
    assert precise[-1].dtype == torch.float64
    assert torch.allclose(precise[0].float(), wanted[0], atol=1e-3)


def test_raft_with_a_mask_is_torchvision_s_own_too() -> None:
    module = torchvision_model("raft_large")
    images = torch.rand(2, 1, 3, 128, 128)
    with torch.inference_mode():
        wanted = module(*images)
        found = servable(module)(*images)
    assert torch.equal(found[-1], wanted[-1])


@pytest.mark.parametrize("shapes", [((3, 64, 64),), ((3, 132, 128),), ((3, 128, 128), (3, 128, 136))])
def test_sizes_that_optical_flow_cannot_take(shapes: tuple[tuple[int, ...], ...], tmp_path: Path) -> None:
    request = saved(tmp_path / "weights.pt", torchvision_model("raft_small").state_dict())
    with pytest.raises(UsageError, match="--input-shape"):
        read_checkpoint(CheckpointRequest(path=request.path, input_shapes=shapes))


@pytest.mark.parametrize(
    "builder",
    [
        pytest.param(name, marks=[pytest.mark.slow] if any(part in name for part in LARGE) else [])
        for name in QUANTIZABLE
    ],
)
def test_which_quantizable_forms_compute_the_same_as_the_plain_builder(builder: str) -> None:
    entry = load_zoo()[builder]
    assert entry.second_to is not None
    plain = torchvision_model(entry.second_to, num_classes=5, **entry.options)
    quantizable = torchvision_model(builder, num_classes=5, **entry.options)
    quantizable.load_state_dict(plain.state_dict())
    image = torch.randn(2, 3, 96, 96) * 30
    with torch.inference_mode():
        found, wanted = quantizable(image), plain(image)
    scale = float(wanted.abs().max())
    assert torch.allclose(found, wanted, rtol=0, atol=1e-5 * scale) == (entry.about == "")


def test_the_form_that_computes_otherwise_is_said_and_can_be_asked_for(tmp_path: Path) -> None:
    request = saved(tmp_path / "weights.pt", seeded("mobilenet_v2", num_classes=3).state_dict())
    found = read_checkpoint(request)
    assert found.architecture == "torchvision/mobilenet_v2"
    assert "with ReLU where mobilenet_v2 has ReLU6): --arch quantized_mobilenet_v2" in "\n".join(found.notes)
    asked = read_checkpoint(CheckpointRequest(path=request.path, arch="quantized_mobilenet_v2"))
    assert not any(isinstance(part, nn.ReLU6) for part in build_module(asked).modules())
    assert "quantized" not in "\n".join(read_checkpoint(resnet18(tmp_path)).notes)


def resnet18(folder: Path) -> CheckpointRequest:
    return saved(folder / "resnet18.pt", seeded("resnet18", num_classes=3).state_dict())


@pytest.mark.filterwarnings("ignore:torch.quantize_per_tensor:UserWarning")
def test_weights_that_were_converted_to_int8_are_refused(tmp_path: Path) -> None:
    quantized = torch.quantize_per_tensor(torch.rand(4, 3, 3, 3), 0.1, 0, torch.qint8)
    request = saved(tmp_path / "int8.pt", {"conv1.weight": quantized, "conv1.scale": torch.tensor(0.1)})
    with pytest.raises(UsageError, match="before `convert`"):
        read_checkpoint(request)


DETECTORS = {
    "ssdlite320_mobilenet_v3_large": ({}, Rule(score=0.001, overlap=0.55, most=300, background=True)),
    "ssd300_vgg16": ({"score_thresh": 0.5}, Rule(score=0.5, overlap=0.45, most=200, background=True)),
    "retinanet_resnet50_fpn": ({"score_thresh": 0.01}, Rule(score=0.01, overlap=0.5, most=300)),
    "retinanet_resnet50_fpn_v2": ({"score_thresh": 0.01}, Rule(score=0.01, overlap=0.5, most=300)),
    "fcos_resnet50_fpn": ({"score_thresh": 0.05}, Rule(score=0.05, overlap=0.6, most=100)),
}


@pytest.mark.parametrize(
    "builder", [pytest.param(name, marks=[pytest.mark.slow] if name == "ssd300_vgg16" else []) for name in DETECTORS]
)
def test_boxes_and_scores_lead_to_torchvision_s_own_detections(builder: str) -> None:
    options, rule = DETECTORS[builder]
    if not builder.startswith("ssd"):
        options = {**options, "min_size": 96, "max_size": 128}
    module = torchvision_model(builder, num_classes=4, topk_candidates=100_000, **options)
    images = torch.rand(2, 3, 72, 100)
    with torch.inference_mode():
        if builder.startswith("ssdlite"):  # whose initial weights let every signal fade
            calibrate(module.get_submodule("backbone"), lambda rows: torch.randn(rows, 3, 320, 320))
        for name, parameter in module.named_parameters():
            if "classification_head" in name and parameter.dim() == 4:
                parameter.normal_(std={"ssdlite": 0.3, "ssd300_": 0.004}.get(builder[:7], 0.02))
        wanted = module(list(images))
        served = servable(module)(images)
    assert served["boxes"].shape[:2] == served["scores"].shape[:2]
    for row, own in enumerate(wanted):
        boxes, scores, labels = detect(served["boxes"][row].numpy(), served["scores"][row].numpy(), rule)
        assert len(own["scores"]) > 10
        assert len(scores) == len(own["scores"])
        np.testing.assert_allclose(scores, own["scores"].numpy(), rtol=1e-3)
        # Which of nearly equal boxes stays can hang on a rounding; that each of them was served cannot.
        gaps = np.abs(served["boxes"][row].numpy()[:, None] - own["boxes"].numpy()[None]).max(axis=2)
        given = np.where(gaps < 1e-2, served["scores"][row].numpy()[:, own["labels"].numpy()], np.inf)
        assert (np.abs(given - own["scores"].numpy()).min(axis=0) < 1e-4).all()
        assert (labels == own["labels"].numpy()).mean() > 0.9
        assert (np.abs(boxes - own["boxes"].numpy()).max(axis=1) < 1e-2).mean() > 0.9


def test_a_detector_says_what_torchvision_makes_of_its_outputs(tmp_path: Path) -> None:
    module = torchvision_model("ssdlite320_mobilenet_v3_large", num_classes=3)
    checkpoint = read_checkpoint(saved(tmp_path / "weights.pt", module.state_dict()))
    assert checkpoint.num_classes == 3
    assert checkpoint.inputs[0].shape == ("batch", 3, 320, 320)
    assert "scores above 0.001, suppresses above an overlap of 0.55" in "\n".join(checkpoint.notes)
    assert (checkpoint.preprocessing.mean, checkpoint.preprocessing.std) == ((0.0,) * 3, (1.0,) * 3)


def test_a_detector_resizes_inside_as_training_is_said_to_have(tmp_path: Path) -> None:
    module = torchvision_model("fcos_resnet50_fpn", num_classes=3, min_size=96)
    request = replace(
        saved(tmp_path / "weights.pt", module.state_dict()), preprocessing=PreprocessingRequest(resize=96)
    )
    checkpoint = read_checkpoint(request)
    assert checkpoint.inputs[0].shape == ("batch", 3, 96, 96)
    notes = "\n".join(checkpoint.notes)
    assert "input size: 96 x 96" in notes
    assert "the shorter side to 96, as asked for, at most 1333" in notes
    image = torch.rand(1, 3, 72, 80)
    with torch.inference_mode():
        found, wanted = build_module(checkpoint)(image), servable(module)(image)
    assert torch.equal(found["boxes"], wanted["boxes"])


@pytest.mark.parametrize(
    ("builder", "said", "refused"),
    [
        ("fcos_resnet50_fpn", {"mean": (0.5,) * 3, "std": (0.5,) * 3}, "--mean and --std were given"),
        ("fcos_resnet50_fpn", {"resize": (96, 128)}, "--resize 96x128 is nothing"),
        ("ssdlite320_mobilenet_v3_large", {"resize": 256}, "--resize 256 is nothing"),
    ],
)
def test_what_a_detector_cannot_be_told_is_refused(
    tmp_path: Path, builder: str, said: dict[str, Any], refused: str
) -> None:
    request = saved(tmp_path / "weights.pt", torchvision_model(builder, num_classes=3).state_dict())
    with pytest.raises(UsageError, match=refused):
        read_checkpoint(replace(request, preprocessing=PreprocessingRequest(**said)))


def test_the_epsilon_that_pre_trained_weights_bring_is_a_form_of_its_own(tmp_path: Path) -> None:
    state = torchvision_model("retinanet_resnet50_fpn", num_classes=3).state_dict()
    assert read_checkpoint(saved(tmp_path / "weights.pt", state)).architecture == "torchvision/retinanet_resnet50_fpn"
    frozen = {name: tensor for name, tensor in state.items() if not name.endswith("num_batches_tracked")}
    request = saved(tmp_path / "weights.pt", frozen)
    with pytest.raises(UsageError, match=r"--arch retinanet_resnet50_fpn or --arch retinanet_resnet50_fpn\+coco_v1"):
        read_checkpoint(request)
    for form, epsilon in (("", 1e-5), ("+coco_v1", 0.0)):
        arch = f"retinanet_resnet50_fpn{form}"
        module = build_module(read_checkpoint(CheckpointRequest(path=request.path, arch=arch)))
        assert {part.eps for part in module.modules() if isinstance(part, nn.BatchNorm2d)} == {epsilon}


def test_a_detector_of_two_stages_is_identified_and_cannot_be_built(tmp_path: Path) -> None:
    request = saved(tmp_path / "weights.pt", torchvision_model("fasterrcnn_resnet50_fpn", num_classes=3).state_dict())
    checkpoint = read_checkpoint(request)
    assert checkpoint.architecture == "torchvision/fasterrcnn_resnet50_fpn"
    assert any("a detector of two stages cannot be packaged" in note for note in checkpoint.notes)
    for refused in (lambda: build_module(checkpoint), lambda: read_to_package(request)):
        with pytest.raises(UsageError, match=r"two stages[\s\S]*SSD, RetinaNet or FCOS"):
            refused()


def naive_suppression(boxes: Tensor, scores: Tensor, overlap: float) -> list[int]:
    """The definition, one pair at a time."""
    overlaps = import_torchvision().ops.box_iou(boxes, boxes)
    stays: list[int] = []
    for index in sorted(range(len(boxes)), key=lambda box: -float(scores[box])):
        if all(overlaps[index, kept] <= overlap for kept in stays):
            stays.append(index)
    return stays


@pytest.mark.parametrize("count", [0, 1, 40])
def test_the_reference_suppression_follows_the_definition(count: int) -> None:
    generator = torch.Generator().manual_seed(count)
    corners = torch.rand(count, 2, generator=generator) * 40
    boxes = torch.cat([corners, corners + 5 + 20 * torch.rand(count, 2, generator=generator)], 1)
    scores = torch.rand(count, generator=generator)
    found = import_torchvision().ops.nms(boxes, scores, 0.4)
    assert found.tolist() == naive_suppression(boxes, scores, 0.4)
    assert torch.equal(found, non_maximum_suppression(boxes, scores, 0.4))


def test_suppression_over_more_boxes_than_are_compared_at_once() -> None:
    generator = torch.Generator().manual_seed(1)
    corners = torch.rand(1500, 2, generator=generator) * 200
    boxes = torch.cat([corners, corners + 30], 1)
    scores = torch.rand(1500, generator=generator)
    kept = non_maximum_suppression(boxes, scores, 0.5)
    overlaps = import_torchvision().ops.box_iou(boxes[kept], boxes[kept]).fill_diagonal_(0)
    assert 10 < len(kept) < 1500
    assert float(overlaps.max()) <= 0.5
    gone = torch.ones(1500, dtype=torch.bool).index_fill_(0, kept, False)
    better = scores[kept][None] > scores[gone][:, None]
    assert bool(((import_torchvision().ops.box_iou(boxes[gone], boxes[kept]) > 0.5) & better).any(1).all())
