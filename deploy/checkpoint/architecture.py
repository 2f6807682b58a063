"""What one architecture looks like from outside: tensor names, shapes, how it is built, input and preprocessing.

Owns the value and its file form. Knows no torch and no torchvision.
Called by zoo and zoo_index, which make these values, and by identify, build and inputs, which use them.
"""

import gzip
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

PREFIX = "torchvision/"
QUANTIZABLE = "quantized_"
# Options of ours, which no builder has: the epsilon of every batch norm, and the layers of another head by their paths.
EPSILON = "norm_epsilon"
HEAD = "head"

Shape = tuple[int, ...]
Shapes = dict[str, Shape]
Kind = Literal["classification", "segmentation", "video", "flow", "detection", "two-stage detection"]

INPUTS: dict[Kind, tuple[str, ...]] = {
    "classification": ("image",),
    "segmentation": ("image",),
    "video": ("video",),
    "flow": ("image1", "image2"),
    "detection": ("image",),
    "two-stage detection": ("image",),
}
_SHAPES = ("parameters", "float_buffers", "integer_buffers")


@dataclass(frozen=True, slots=True, kw_only=True)
class Transforms:
    """The preprocessing of a builder's default pre-trained weights; lengths in pixels.

    `resize` is the shorter side, or height and width. None stands for a step that those weights do not have.
    """

    source: str
    resize: int | tuple[int, int] | None
    crop: int | None
    mean: tuple[float, ...]
    std: tuple[float, ...]
    interpolation: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Architecture:
    """One builder, called with `options` beside the number of classes.

    `head` holds the tensors whose first dim is a multiple of the number of classes, with that multiple; `stem` names
    the one whose second dim is the number of input channels, None where those are fixed; `position` the one whose
    second dim follows from the image size. `auxiliary` names tensors that are left out. `size_option` is the keyword
    that takes the image size; `resize_option` the one that takes the shorter side which a detector resizes images to,
    None where that is fixed. `size` is the input's size that the default weights were made for, frames first for
    video; `size_is_fixed` where the weights hold for no other. `second_to` names an architecture that is taken instead
    where the weights fit both and nothing is asked for; `about` says how this one differs, empty where it does not.
    """

    name: str
    builder: str
    kind: Kind
    options: dict[str, Any]
    parameters: Shapes
    float_buffers: Shapes
    integer_buffers: Shapes
    auxiliary: tuple[str, ...]
    head: dict[str, int]
    stem: str | None
    position: str | None
    size_option: str | None
    resize_option: str | None = None
    size: Shape | None
    size_is_fixed: bool = False
    transforms: Transforms | None
    second_to: str | None = None
    about: str = ""
    shapes: Shapes = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "shapes", {**self.parameters, **self.float_buffers, **self.integer_buffers})

    @property
    def is_form(self) -> bool:
        """Whether its builder gives it only when called with options of its own: `fcn_resnet50+aux_loss`."""
        return self.name != self.builder

    @property
    def differs_as_quantizable(self) -> bool:
        """Whether it is a quantizable form that computes otherwise than the plain builder, whose weights fit it too."""
        return self.name.startswith(QUANTIZABLE) and bool(self.about)

    @property
    def is_frozen(self) -> bool:
        """Whether its batch norms are the frozen ones of its pre-trained weights, which count no batches."""
        return EPSILON in self.options

    @property
    def inputs(self) -> tuple[str, ...]:
        """The names of the inputs, in the order of the module's forward."""
        return INPUTS[self.kind]


Zoo = dict[str, Architecture]


def encode(zoo: Mapping[str, Architecture]) -> bytes:
    """The index as compact gzip JSON; the same bytes for the same index.

    Each shape is written once, and so is each set of tensors: reading them is most of what loading the index takes.
    """
    numbers: dict[Shape, int] = {}
    rows: list[dict[str, Any]] = []
    written: dict[str, str] = {}
    for entry in zoo.values():
        row = {key: value for key, value in asdict(entry).items() if key != "shapes"}
        tensors = [
            {name: numbers.setdefault(tuple(shape), len(numbers)) for name, shape in row.pop(kind).items()}
            for kind in _SHAPES
        ]
        row["tensors"] = written.setdefault(json.dumps(tensors), entry.name)
        if row["tensors"] == entry.name:
            row["tensors"] = tensors
        rows.append(row)
    index = {"shapes": list(numbers), "architectures": rows}
    return gzip.compress(json.dumps(index, separators=(",", ":")).encode(), mtime=0)


def decode(data: bytes) -> Zoo:
    """The index that `encode` wrote."""
    index = json.loads(gzip.decompress(data))
    shapes = [tuple(shape) for shape in index["shapes"]]
    zoo: Zoo = {}
    for row in index["architectures"]:
        zoo[row["name"]] = _decode_row(row, shapes, zoo)
    return zoo


def _decode_row(row: dict[str, Any], shapes: list[Shape], zoo: Zoo) -> Architecture:
    tensors = row.pop("tensors")
    for position, kind in enumerate(_SHAPES):
        if isinstance(tensors, str):
            row[kind] = getattr(zoo[tensors], kind)
        else:
            row[kind] = {name: shapes[number] for name, number in tensors[position].items()}
    row["auxiliary"] = tuple(row["auxiliary"])
    row["size"] = _as_tuple(row["size"])
    if row["transforms"]:
        row["transforms"] = Transforms(**{key: _as_tuple(value) for key, value in row["transforms"].items()})
    return Architecture(**row)


def _as_tuple(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value
