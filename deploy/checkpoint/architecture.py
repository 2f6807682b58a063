"""What one architecture looks like from outside: tensor names, shapes, how it is built, input and preprocessing.

Owns the value and its file form. Knows no torch and no torchvision.
Called by zoo and zoo_index, which make these values, and by identify, build and inputs, which use them.
"""

import gzip
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

PREFIX = "torchvision/"

Shape = tuple[int, ...]
Shapes = dict[str, Shape]


@dataclass(frozen=True, slots=True, kw_only=True)
class Transforms:
    """The preprocessing of a builder's default pre-trained weights; lengths in pixels."""

    source: str
    resize: int
    crop: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    interpolation: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Architecture:
    """One builder, called with `options` beside the number of classes.

    `head` names the tensors whose first dim is the number of classes; `stem` the one whose second dim is the number
    of input channels, None where those are fixed; `position` the one whose second dim follows from the image size.
    `auxiliary` names tensors that only training uses. `size_option` is the keyword that takes the image size.
    """

    name: str
    builder: str
    options: dict[str, Any]
    parameters: Shapes
    float_buffers: Shapes
    integer_buffers: Shapes
    auxiliary: tuple[str, ...]
    head: tuple[str, ...]
    stem: str | None
    position: str | None
    size_option: str | None
    transforms: Transforms | None
    about: str = ""
    shapes: Shapes = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "shapes", {**self.parameters, **self.float_buffers, **self.integer_buffers})


Zoo = dict[str, Architecture]


def encode(zoo: Mapping[str, Architecture]) -> bytes:
    """The index as compact gzip JSON; the same bytes for the same index."""
    rows = [{key: value for key, value in asdict(entry).items() if key != "shapes"} for entry in zoo.values()]
    return gzip.compress(json.dumps(rows, separators=(",", ":")).encode(), mtime=0)


def decode(data: bytes) -> Zoo:
    """The index that `encode` wrote."""
    return {row["name"]: _decode_row(row) for row in json.loads(gzip.decompress(data))}


def _decode_row(row: dict[str, Any]) -> Architecture:
    for kind in ("parameters", "float_buffers", "integer_buffers"):
        row[kind] = {name: tuple(shape) for name, shape in row[kind].items()}
    row["auxiliary"], row["head"] = tuple(row["auxiliary"]), tuple(row["head"])
    transforms = row["transforms"]
    if transforms:
        transforms["mean"], transforms["std"] = tuple(transforms["mean"]), tuple(transforms["std"])
        row["transforms"] = Transforms(**transforms)
    return Architecture(**row)
