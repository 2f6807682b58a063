"""The index of the zoo, made by looking at every torchvision classification builder without allocating weights.

Owns how an Architecture is derived from a builder, and the page docs/architectures.md. Reads no checkpoint.
Called by zoo for a torchvision release without a shipped index; `python -m deploy.checkpoint.zoo_index
deploy/data docs/architectures.md` writes both files.
"""

import sys
from collections import defaultdict
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from deploy.checkpoint.architecture import Architecture, Shapes, Transforms, Zoo, encode
from deploy.checkpoint.build import COUNTER, build_architecture
from deploy.checkpoint.vision import import_torchvision, minor_release

_CLASSES = 1000
_OTHER_CLASSES = 7

# Auxiliary heads give nothing in eval mode, and fine-tunes often leave theirs at the old number of classes.
_WITHOUT_AUXILIARY: dict[str, Any] = {"aux_logits": False, "init_weights": False}
_OPTIONS: dict[str, dict[str, Any]] = {"googlenet": _WITHOUT_AUXILIARY, "inception_v3": _WITHOUT_AUXILIARY}
# `transform_input` rescales the input inside forward and leaves no trace in the weights.
_TRANSFORMED = ("googlenet", "inception_v3")
_PLAIN = "built with weights=None: the input goes in as it is"
_TRANSFORM = "built from torchvision's pre-trained weights, which sets transform_input=True: forward rescales the input"


def build_zoo() -> Zoo:
    """Every classification builder of the installed torchvision, in alphabetical order. Takes some ten seconds."""
    models = import_torchvision().models
    zoo: Zoo = {}
    for name in models.list_models(module=models):
        entry = _look_at(name)
        zoo[name] = entry
        if name in _TRANSFORMED:
            zoo[name] = replace(entry, about=_PLAIN)
            options = {**entry.options, "transform_input": True}
            form = f"{name}+transform_input"
            zoo[form] = replace(entry, name=form, options=options, about=_TRANSFORM, stem=None)
    return zoo


def _look_at(name: str) -> Architecture:
    bare = Architecture(
        name=name, builder=name, options=_OPTIONS.get(name, {}), parameters={}, float_buffers={}, integer_buffers={},
        auxiliary=(), head=(), stem=None, position=None, size_option=None, transforms=_default_transforms(name),
    )  # fmt: skip
    module = build_architecture(bare, {**bare.options, "num_classes": _CLASSES})
    other = build_architecture(bare, {**bare.options, "num_classes": _OTHER_CLASSES}).state_dict()
    state = {key: tensor for key, tensor in module.state_dict().items() if not key.endswith(COUNTER)}
    parameters = dict(module.named_parameters())
    buffers = {key: tensor for key, tensor in state.items() if key not in parameters}
    return replace(
        bare,
        parameters=_shapes(parameters),
        float_buffers=_shapes({key: tensor for key, tensor in buffers.items() if tensor.is_floating_point()}),
        integer_buffers=_shapes({key: tensor for key, tensor in buffers.items() if not tensor.is_floating_point()}),
        auxiliary=_auxiliary(bare, state),
        head=tuple(key for key in state if state[key].shape != other[key].shape),
        stem=_stem(module),
        position=next((key for key in parameters if key.endswith("pos_embedding")), None),
        size_option=_size_option(module),
    )


def _shapes(tensors: dict[str, Any]) -> Shapes:
    return {name: tuple(tensor.shape) for name, tensor in tensors.items()}


def _auxiliary(bare: Architecture, state: dict[str, Tensor]) -> tuple[str, ...]:
    if "aux_logits" not in bare.options:
        return ()
    whole = build_architecture(bare, {**bare.options, "aux_logits": True}).state_dict()
    return tuple(name for name in whole if name not in state and not name.endswith(COUNTER))


def _stem(module: nn.Module) -> str | None:
    """The weight of the one convolution that reads the image."""
    convolutions = [
        name for name, part in module.named_modules() if isinstance(part, nn.Conv2d) and part.in_channels == 3
    ]
    return f"{convolutions[0]}.weight" if len(convolutions) == 1 else None


def _size_option(module: nn.Module) -> str | None:
    """The keyword that fixes the image size, for the two families whose forward depends on it."""
    return {"VisionTransformer": "image_size", "MaxVit": "input_size"}.get(type(module).__name__)


def _default_transforms(name: str) -> Transforms | None:
    models = import_torchvision().models
    weights = getattr(models.get_model_weights(name), "DEFAULT", None)
    if weights is None:
        return None
    preset = weights.transforms()
    return Transforms(
        source=f"torchvision {weights!r}",
        resize=preset.resize_size[0],
        crop=preset.crop_size[0],
        mean=tuple(preset.mean),
        std=tuple(preset.std),
        interpolation=preset.interpolation.value,
    )


def architectures_page(zoo: Zoo) -> str:
    """docs/architectures.md: each architecture, whether its weights identify it, and what is read from them."""
    groups: defaultdict[object, list[str]] = defaultdict(list)
    for entry in zoo.values():
        groups[frozenset(entry.shapes.items())].append(entry.name)
    rows = [_row(entry, groups[frozenset(entry.shapes.items())]) for entry in zoo.values()]
    alone = sum(len(names) == 1 for names in groups.values())
    return _PAGE.format(release=minor_release(), count=len(zoo), alone=alone, rows="\n".join(rows))


def _row(entry: Architecture, group: list[str]) -> str:
    others = [name for name in group if name != entry.name]
    identified = f"no: `--arch` chooses between it and {', '.join(others)}" if others else "yes"
    size = entry.transforms.crop if entry.transforms else "asked"
    read = ["classes"] + ["channels"] * bool(entry.stem) + ["image size"] * bool(entry.position)
    return f"| {entry.name} | {identified} | {size} | {', '.join(read)} |"


_PAGE = """# Architectures that are identified from weights

Generated from the index for torchvision {release} by `python -m deploy.checkpoint.zoo_index`; a test keeps it current.

A checkpoint's tensor names and shapes are compared with every torchvision classification builder. {alone} of the
{count} architectures below have names and shapes of their own and are identified from the weights alone. The number of
classes is read from the head and the number of input channels from the first convolution, so both may differ from the
pre-trained model's; no builder takes the channels as an argument, so its first convolution is changed after building.
An identified architecture is still inferred: epsilons, activations and preprocessing leave no trace in weights.

The rest come in two forms that share every name and shape but compute differently. `googlenet` and `inception_v3`
built from pre-trained weights rescale their input inside `forward` (`transform_input=True`), which a fine-tune
inherits; built with `weights=None` they do not. `--arch` says which one was trained. Their auxiliary heads serve
training only and are left out, whether the checkpoint has them or not.

A builder whose head was replaced by one of another structure, such as `fc = nn.Sequential(Dropout, Linear)`, is no
longer that builder: it is refused with the nearest three, and `--factory package.module:function` gives its code.

Input size: from the positional embedding where there is one, else the crop size of the builder's default pre-trained
weights; `--input-shape` overrides the latter. `--arch` takes a name of the first column, with or without
`torchvision/`.

| architecture | identified | input size | read from the tensors |
| --- | --- | --- | --- |
{rows}
"""


def main() -> None:
    """Write the index into the folder, and the page to the path, given as arguments."""
    zoo = build_zoo()
    folder, page = Path(sys.argv[1]), Path(sys.argv[2])
    folder.joinpath(f"zoo-{minor_release()}.json.gz").write_bytes(encode(zoo))
    page.write_text(architectures_page(zoo))


if __name__ == "__main__":
    main()
