"""What training wrote beside the weights: class names and preprocessing, from a training dict or safetensors metadata.

Owns the keys people use for them. Decides nothing about the weights.
Called by load.
"""

import json
from argparse import Namespace
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

_CLASS_KEYS = (
    "classes", "class_names", "labels", "label_names", "categories", "idx_to_class", "class_to_idx", "CLASSES",
)  # fmt: skip
_NESTED = frozenset((
    "meta", "metadata", "dataset_meta", "config", "hparams", "hyper_parameters", "hyperparameters", "args", "extra",
    "info", "preprocessing", "preprocess", "transform", "transforms", "normalize", "normalization",
    "data_config", "pretrained_cfg", "default_cfg",
))  # fmt: skip
_ARCH_KEYS = ("arch", "architecture", "model_name", "model_arch", "backbone", "model")
_SETTINGS = ("hyper_parameters", "hparams", "config", "args")
_SIZE_KEYS = ("val_crop_size", "crop", "crop_size", "input_size", "image_size", "img_size")
_RESIZE_KEYS = ("val_resize_size", "resize", "resize_size")


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingFacts:
    """What a checkpoint says about its own training; None where it says nothing. Sizes are pixels.

    `arch` is the network's name as training called it; `settings` its hyper-parameters, those with plain values.
    """

    classes: tuple[str, ...] | None = None
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    size: int | None = None
    resize: int | tuple[int, int] | None = None
    interpolation: str | None = None
    arch: str | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)

    @property
    def knows_preprocessing(self) -> bool:
        """Whether any of the preprocessing is told."""
        return any(value is not None for value in (self.mean, self.std, self.size, self.resize, self.interpolation))


def training_facts(content: Mapping[Any, Any], metadata: Mapping[str, str]) -> TrainingFacts:
    """The facts in a training dict, or in the text metadata of a safetensors file (values as JSON)."""
    groups = list(_groups(content)) + list(_groups(_parsed(metadata)))
    interpolation = _first(groups, ("interpolation",))
    return TrainingFacts(
        classes=next(
            (names for group in groups for key in _CLASS_KEYS if (names := _class_names(group.get(key)))), None
        ),
        mean=_numbers(_first(groups, ("mean",))),
        std=_numbers(_first(groups, ("std",))),
        # A bare `size` at the top of a training dict is anything; inside a preprocessing dict it is pixels.
        size=_side(_first(groups, _SIZE_KEYS)) or _side(_first(groups[1:], ("size",))),
        resize=_resize(_first(groups, _RESIZE_KEYS)),
        interpolation=interpolation if isinstance(interpolation, str) and interpolation else None,
        arch=next((group[key] for group in groups for key in _ARCH_KEYS if isinstance(group.get(key), str)), None),
        settings=_settings(content),
    )


def _settings(content: Mapping[Any, Any]) -> dict[str, Any]:
    """The hyper-parameters that a factory can be called with: of Lightning's key, or of others' usual ones."""
    found = next((group for key in _SETTINGS if (group := _mapping(content.get(key)))), {})
    return {name: _plain(value) for name, value in found.items() if isinstance(name, str) and _is_plain(value)}


def _is_plain(value: Any) -> bool:
    if isinstance(value, list | tuple):
        return all(_is_plain(item) for item in value)
    return value is None or type(value) in (bool, int, float, str)


def _plain(value: Any) -> Any:
    """The value as it is after a way through JSON, so that every call of a factory gets the same."""
    return [_plain(item) for item in value] if isinstance(value, list | tuple) else value


def _mapping(value: Any) -> Mapping[Any, Any] | None:
    """Settings as a mapping, from a dict or what argparse makes; None for anything else."""
    if isinstance(value, Namespace):
        return vars(value)
    return value if isinstance(value, Mapping) else None


def _groups(content: Mapping[Any, Any]) -> Iterator[Mapping[Any, Any]]:
    """The dict itself, then those inside it that hold settings, down to two levels."""
    yield content
    for key, held in content.items():
        value = _mapping(held) if isinstance(key, str) and key.lower() in _NESTED else None
        if value is not None:
            yield value
            yield from (inner for name, inner in value.items() if name in _NESTED and isinstance(inner, Mapping))


def _parsed(metadata: Mapping[str, str]) -> dict[str, Any]:
    values: dict[str, Any] = dict(metadata)
    for key, text in metadata.items():
        with suppress(json.JSONDecodeError):
            values[key] = json.loads(text)
    return values


def _first(groups: Sequence[Mapping[Any, Any]], keys: Sequence[str]) -> Any:
    return next((group[key] for group in groups for key in keys if group.get(key) is not None), None)


def _class_names(value: Any) -> tuple[str, ...] | None:
    """The names in order, from a list, an index-to-name dict or a name-to-index dict; None for anything else."""
    if isinstance(value, str) and "," in value:
        value = [name.strip() for name in value.split(",")]
    if isinstance(value, Mapping):
        return _ordered(value)
    if isinstance(value, Sequence) and not isinstance(value, str) and value and all(_is_name(name) for name in value):
        return tuple(str(name) for name in value)
    return None


def _ordered(value: Mapping[Any, Any]) -> tuple[str, ...] | None:
    pairs = list(value.items())
    if all(isinstance(index, int) for _, index in pairs):
        pairs = [(index, name) for name, index in pairs]
    with suppress(TypeError, ValueError):
        by_index = {int(index): str(name) for index, name in pairs}
        if by_index and sorted(by_index) == list(range(len(pairs))):
            return tuple(by_index[index] for index in range(len(pairs)))
    return None


def _is_name(value: Any) -> bool:
    return isinstance(value, str | int) and not isinstance(value, bool)


def _numbers(value: Any) -> tuple[float, ...] | None:
    values = _as_list(value)
    return tuple(float(number) for number in values) if values else None


def _side(value: Any) -> int | None:
    """The pixels of a square: from one number, [H, W] or [C, H, W]."""
    values = _as_list(value)
    if not values or any(number != int(number) or number < 1 for number in values):
        return None
    sides = values[-2:]
    return int(sides[-1]) if sides[0] == sides[-1] else None


def _resize(value: Any) -> int | tuple[int, int] | None:
    """The shorter edge from one number, height and width from two: as torchvision's Resize takes them."""
    values = _as_list(value)
    if values is None or len(values) > 2 or any(number != int(number) or number < 1 for number in values):
        return None
    return int(values[0]) if len(values) == 1 else (int(values[0]), int(values[1]))


def _as_list(value: Any) -> list[float] | None:
    """Plain numbers from a number, a sequence of them, or a small tensor."""
    if hasattr(value, "tolist"):
        value = value.tolist()
    values = list(value) if isinstance(value, list | tuple) else [value]
    good = all(isinstance(number, int | float) and not isinstance(number, bool) for number in values)
    return values if values and good else None
