"""The values of this room: what was asked about a checkpoint, and what was found out.

Owns no reading and no torch; both values travel to child processes and into the manifest.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from deploy.records import Record
from deploy.spec import Dim, TensorSpec

WeightsChoice = Literal["ema", "raw"]


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckpointRequest:
    """What the user said about a checkpoint. `input_shapes` are without the batch dim, one per input."""

    path: Path
    arch: str | None = None
    factory: str | None = None
    weights: WeightsChoice | None = None
    input_shapes: tuple[tuple[int, ...], ...] = ()
    trust_pickle: bool = False


class Preprocessing(Record):
    """What turned an image into the input tensor during training. Lengths are pixels; None means unknown, or no step.

    `resize` is the shorter side, or height and width.

    `source` says where this is known from: the builder's default weights, the checkpoint, or nowhere (`unknown`).
    """

    source: str
    resize: int | tuple[int, int] | None = None
    crop: int | None = None
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    layout: str | None = None
    value_range: tuple[float, float] | None = None
    interpolation: str | None = None


class Checkpoint(Record):
    """A checkpoint that was read, understood and found whole. `build_module` turns it into a module.

    `architecture` is `torchvision/<builder>`, `timm/<name>`, `transformers/<class>` or
    `factory/<package.module:function>`; `how` says whether it was inferred from the weights, asked for by name, built
    by the user's factory, or named in a config.json. `options` are the builder's keyword arguments (`num_classes` and
    so on), with `in_channels` where it is not 3. Inputs have the names of the forward's parameters, where those are
    known; their shapes begin with the dynamic dim `batch`, and `dims` bounds every other dynamic dim in them. The
    parameters in `absent` are given None. `decisions` has the decision axis by output name, where the shape alone would
    not tell. `size` is that of all files, in bytes; `found_under` the dotted path to the weights, None for the top.
    `kept` are the files that a version keeps of a checkpoint that is a folder, relative to it: its tokenizer.
    """

    path: Path
    digest: str
    format: Literal["torch", "safetensors", "distributed"]
    name: str
    architecture: str
    how: Literal["inferred", "asked", "factory", "config"]
    options: dict[str, Any]
    inputs: tuple[TensorSpec, ...]
    dims: tuple[Dim, ...] = ()
    absent: tuple[str, ...] = ()
    decisions: dict[str, int | None] = Field(default_factory=dict)
    dtype: str
    parameters: int
    size: int
    classes: tuple[str, ...] | None
    num_classes: int | None
    preprocessing: Preprocessing
    found_under: str | None
    weights: WeightsChoice | None
    removed_prefixes: tuple[str, ...]
    trust_pickle: bool
    kept: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def origin(self) -> str:
        """How the architecture is known, in the words of every report."""
        words = {
            "inferred": "inferred",
            "asked": "as asked for",
            "factory": "from the factory",
            "config": "as config.json says",
        }
        return f"architecture: {words[self.how]}"
