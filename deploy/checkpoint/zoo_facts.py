"""What torchvision says of a builder beside its tensors: its kind, the input its default weights were made for.

Owns how those facts are read. Knows no tensor of a checkpoint.
Called by zoo_index.
"""

import re
from typing import Any

from torch import nn

from deploy.checkpoint.architecture import QUANTIZABLE, Kind, Shape, Transforms
from deploy.checkpoint.vision import import_torchvision

_KINDS: dict[str, Kind] = {
    "models": "classification",
    "quantization": "classification",
    "segmentation": "segmentation",
    "video": "video",
    "optical_flow": "flow",
    "detection": "detection",
}
_TWO_STAGE = ("fasterrcnn", "maskrcnn", "keypointrcnn")
_CLIP_LENGTH = re.compile(r"clip_len=(\d+)")


def builder_kind(builder: str) -> Kind:
    """What a builder's model is for, from the package that it is in; two-stage detectors are a kind of their own."""
    if builder.startswith(_TWO_STAGE):
        return "two-stage detection"
    package = import_torchvision().models.get_model_builder(builder).__module__.split(".")[-2]
    return _KINDS[package]


def default_size(builder: str, module: nn.Module) -> Shape | None:
    """Height and width that the default weights were made for, the number of frames before them for video.

    For segmentation a square of the side that images are resized to; for optical flow the least that the network takes;
    for detection the size that the network itself resizes to.
    """
    weights, kind = _weights(builder), builder_kind(builder)
    if kind.endswith("detection"):
        return _resized_to(module.transform)
    if weights is None:
        return None
    preset = weights.transforms()
    if kind == "flow":
        return tuple(weights.meta["min_size"])
    if kind == "segmentation":
        return (preset.resize_size[0],) * 2
    side = preset.crop_size[0]
    return (side, side) if kind == "classification" else (_frames(weights), side, side)


def default_transforms(builder: str) -> Transforms | None:
    """The preprocessing of the builder's default pre-trained weights, None where it has none."""
    weights, kind = _weights(builder), builder_kind(builder)
    if weights is None:
        return None
    source, preset = f"torchvision {weights!r}", weights.transforms()
    if kind.endswith("detection"):
        return Transforms(source=source, resize=None, crop=None, mean=(0.0,) * 3, std=(1.0,) * 3, interpolation=None)
    if kind == "flow":
        return Transforms(source=source, resize=None, crop=None, mean=(0.5,) * 3, std=(0.5,) * 3, interpolation=None)
    resize = preset.resize_size
    return Transforms(
        source=source,
        resize=resize[0] if len(resize) == 1 else (resize[0], resize[1]),
        crop=None if kind == "segmentation" else preset.crop_size[0],
        mean=tuple(preset.mean),
        std=tuple(preset.std),
        interpolation=preset.interpolation.value,
    )


def detector_facts(module: nn.Module) -> str:
    """Where torchvision's own detections come from, and how large a two-stage detector's images; else empty."""
    if hasattr(module, "rpn"):
        return f"{_resizing(module.transform)}; identified only: a detector of two stages cannot be packaged"
    if not hasattr(module, "score_thresh") or not hasattr(module, "nms_thresh"):
        return ""
    return (
        f"{_resizing(module.transform)}; outputs: every box before non-maximum suppression, and its score per class; "
        f"torchvision keeps scores above {module.score_thresh:g}, suppresses above an overlap of {module.nms_thresh:g} "
        f"per class, and takes the best {module.detections_per_img} (docs/detection.md)"
    )


def _weights(builder: str) -> Any:
    """The default weights; a quantizable builder's are those of the plain one, whose float form it shares."""
    models = import_torchvision().models
    return getattr(models.get_model_weights(builder.removeprefix(QUANTIZABLE)), "DEFAULT", None)


def _frames(weights: Any) -> int:
    """The clip length that the default weights are evaluated with, which torchvision tells in their documentation."""
    found = _CLIP_LENGTH.search(weights.meta["_docs"])
    assert found is not None
    return int(found[1])


def _resizing(transform: Any) -> str:
    if transform.fixed_size is not None:
        return f"images are resized inside to {' x '.join(map(str, _resized_to(transform)))}"
    return f"images are resized inside, the shorter side to {transform.min_size[-1]}, at most {transform.max_size}"


def _resized_to(transform: Any) -> Shape:
    if transform.fixed_size is not None:
        width, height = transform.fixed_size
        return height, width
    return (transform.min_size[-1],) * 2
