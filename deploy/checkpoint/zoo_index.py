"""The index of the zoo, made by looking at every torchvision builder without allocating weights.

Owns how an Architecture is derived from a builder; zoo_facts knows its default weights. Reads no checkpoint.
Called by zoo for a torchvision release without a shipped index; `python -m deploy.checkpoint.zoo_index
deploy/data docs/architectures.md` writes the index and the page.
"""

import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from deploy.checkpoint.architecture import EPSILON, QUANTIZABLE, Architecture, Kind, Shapes, Zoo, encode
from deploy.checkpoint.build import COUNTER, build_architecture
from deploy.checkpoint.vision import import_torchvision, minor_release
from deploy.checkpoint.zoo_facts import builder_kind, default_size, default_transforms, detector_facts
from deploy.checkpoint.zoo_page import architectures_page

_CLASSES = 1000
_OTHER_CLASSES = 7

# Auxiliary heads give nothing in eval mode, and fine-tunes often leave theirs at the old number of classes.
_WITHOUT_AUXILIARY: dict[str, Any] = {"aux_logits": False, "init_weights": False}
_OPTIONS: dict[str, dict[str, Any]] = {"googlenet": _WITHOUT_AUXILIARY, "inception_v3": _WITHOUT_AUXILIARY}
# `transform_input` rescales the input inside forward and leaves no trace in the weights.
_TRANSFORMED = ("googlenet", "inception_v3")
_PLAIN = "built with weights=None: the input goes in as it is"
_TRANSFORM = "built from torchvision's pre-trained weights, which sets transform_input=True: forward rescales the input"
# Those two segmentation families give a second output where they are built with aux_loss=True.
_WITH_AUXILIARY_OUTPUT = ("deeplabv3_", "fcn_")
_NO_AUXILIARY = "without the auxiliary output"
# The quantizable form replaces ReLU6 by ReLU. Of the others it leaves the computation as it is.
_OTHER_QUANTIZABLE = {"quantized_mobilenet_v2": "with ReLU where mobilenet_v2 has ReLU6"}
# Built from these weights, torchvision sets epsilon to 0 in the backbone; a fine-tune inherits that, unseen.
_WITHOUT_EPSILON = ("retinanet_resnet50_fpn",)
_EPSILON = "built with weights=None, whatever weights_backbone: batch normalisation has the epsilon 1e-5"
_NO_EPSILON = "built from COCO_V1 weights, which sets the epsilon of batch normalisation to 0"


def build_zoo() -> Zoo:
    """Every builder of the installed torchvision, in alphabetical order, with its forms. Takes half a minute."""
    models = import_torchvision().models
    zoo: Zoo = {}
    for builder in models.list_models():
        zoo.update((entry.name, entry) for entry in _forms(builder))
    return zoo


def _forms(builder: str) -> Iterator[Architecture]:
    """The builder's architectures: one, or several that it builds from other options."""
    plain = builder.removeprefix(QUANTIZABLE)
    entry = _look_at(builder, options=_OPTIONS.get(plain, {}))
    if plain != builder:
        yield replace(entry, second_to=plain, about=_OTHER_QUANTIZABLE.get(builder, ""))
    elif builder in _TRANSFORMED:
        yield replace(entry, about=_PLAIN)
        yield _form(entry, "transform_input", _TRANSFORM, transform_input=True)
    elif builder.startswith(_WITH_AUXILIARY_OUTPUT):
        both = replace(_look_at(builder, options={"aux_loss": True}), name=f"{builder}+aux_loss")
        extra = tuple(name for name in both.shapes if name not in entry.shapes)
        yield replace(entry, auxiliary=extra, second_to=both.name, about=_NO_AUXILIARY)
        yield both
    elif builder in _WITHOUT_EPSILON:
        yield replace(entry, about=f"{_EPSILON}. {entry.about}")
        yield _form(entry, "coco_v1", f"{_NO_EPSILON}. {entry.about}", **{EPSILON: 0.0})
    else:
        yield entry


def _form(entry: Architecture, suffix: str, about: str, **options: Any) -> Architecture:
    stem = None if "transform_input" in options else entry.stem
    name = f"{entry.name}+{suffix}"
    return replace(entry, name=name, about=about, stem=stem, options={**entry.options, **options})


def _look_at(builder: str, *, options: dict[str, Any]) -> Architecture:
    kind = builder_kind(builder)
    bare = Architecture(
        name=builder, builder=builder, kind=kind, options=options, parameters={}, float_buffers={}, integer_buffers={},
        auxiliary=(), head={}, stem=None, position=None, size_option=None, size=None, transforms=None,
    )  # fmt: skip
    module = build_architecture(bare, {**options, **_classes(kind, _CLASSES)})
    other = build_architecture(bare, {**options, **_classes(kind, _OTHER_CLASSES)}).state_dict()
    state = {key: tensor for key, tensor in module.state_dict().items() if not key.endswith(COUNTER)}
    parameters = dict(module.named_parameters())
    buffers = {key: tensor for key, tensor in state.items() if key not in parameters}
    return replace(
        bare,
        parameters=_shapes(parameters),
        float_buffers=_shapes({key: tensor for key, tensor in buffers.items() if tensor.is_floating_point()}),
        integer_buffers=_shapes({key: tensor for key, tensor in buffers.items() if not tensor.is_floating_point()}),
        auxiliary=_auxiliary(bare, state),
        head={key: len(tensor) // _CLASSES for key, tensor in state.items() if tensor.shape != other[key].shape},
        stem=_stem(module, kind),
        position=next((key for key in parameters if key.endswith("pos_embedding")), None),
        size_option=_size_option(module),
        resize_option=_resize_option(module, kind),
        size=default_size(builder, module),
        size_is_fixed=type(module).__name__ == "MViT",
        transforms=default_transforms(builder),
        about=detector_facts(module),
    )


def _classes(kind: Kind, number: int) -> dict[str, int]:
    return {} if kind == "flow" else {"num_classes": number}


def _shapes(tensors: dict[str, Any]) -> Shapes:
    return {name: tuple(tensor.shape) for name, tensor in tensors.items()}


def _auxiliary(bare: Architecture, state: dict[str, Tensor]) -> tuple[str, ...]:
    if "aux_logits" not in bare.options:
        return ()
    whole = build_architecture(bare, {**bare.options, "aux_logits": True}).state_dict()
    return tuple(name for name in whole if name not in state and not name.endswith(COUNTER))


def _stem(module: nn.Module, kind: Kind) -> str | None:
    """The weight of the one convolution that reads the image. A detector normalises three channels before it."""
    if kind in ("detection", "two-stage detection"):
        return None
    convolutions = [
        name
        for name, part in module.named_modules()
        if isinstance(part, nn.Conv2d | nn.Conv3d) and part.in_channels == 3
    ]
    return f"{convolutions[0]}.weight" if len(convolutions) == 1 else None


def _size_option(module: nn.Module) -> str | None:
    """The keyword that fixes the image size, for the two families whose forward depends on it."""
    return {"VisionTransformer": "image_size", "MaxVit": "input_size"}.get(type(module).__name__)


def _resize_option(module: nn.Module, kind: Kind) -> str | None:
    """The keyword that sets the shorter side a detector of one stage resizes to; an SSD is made for one size."""
    return "min_size" if kind == "detection" and getattr(module.transform, "fixed_size", None) is None else None


def main() -> None:
    """Write the index into the folder, and the page to the path, given as arguments."""
    zoo = build_zoo()
    folder, page = Path(sys.argv[1]), Path(sys.argv[2])
    folder.joinpath(f"zoo-{minor_release()}.json.gz").write_bytes(encode(zoo))
    page.write_text(architectures_page(zoo))


if __name__ == "__main__":
    main()
