"""The values of this room: what was asked about a checkpoint, and what was found out.

Owns no reading and no torch; both values travel to child processes and into the manifest.
"""

from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from deploy.records import Record
from deploy.spec import Dim, TensorSpec

WeightsChoice = Literal["ema", "raw"]
FusedStep = Literal["resize", "crop", "scale", "normalize"]


@dataclass(frozen=True, slots=True, kw_only=True)
class PreprocessingRequest:
    """What the user said about the preprocessing of training; None leaves it to the checkpoint. Lengths are pixels.

    `resize` is the shorter edge, or (height, width). `fuse` puts the preprocessing into the graph, which then takes
    uint8 images: of the network's own size, or of `image_size` (height, width), to be resized and cropped inside.
    """

    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    resize: int | tuple[int, int] | None = None
    crop: int | None = None
    interpolation: str | None = None
    fuse: bool = False
    image_size: tuple[int, int] | None = None

    @property
    def said(self) -> dict[str, Any]:
        """The facts of training that were given, by the names they have in `Preprocessing`."""
        facts = {one.name: getattr(self, one.name) for one in fields(self) if one.name in Preprocessing.model_fields}
        return {name: value for name, value in facts.items() if value is not None}


@dataclass(frozen=True, slots=True, kw_only=True)
class InputRequest:
    """One `--input-shape [NAME=][DTYPE:]SIZES`. `shape` is without the batch; None: the parameter is given None.

    Without a name it is the next parameter of the forward, without a dtype it has that of the weights.
    """

    shape: tuple[int, ...] | None
    name: str | None = None
    dtype: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class DynamicRequest:
    """One `--dynamic NAME:AXES[=MIN..MAX]`: each axis of the whole shape, with the name of its dim where one is given.

    Without bounds: from half the size that was asked for up to that size.
    """

    input: str
    axes: tuple[tuple[int, str | None], ...]
    bounds: tuple[int, int] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ValuesRequest:
    """One `--values NAME=LOW..HIGH`, the inclusive range of an integer input; or `NAME=mask`, with no range."""

    input: str
    range: tuple[int, int] | None


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckpointRequest:
    """What the user said about a checkpoint. `input_shapes` is short for `inputs` without names and dtypes."""

    path: Path
    base: Path | None = None
    arch: str | None = None
    head: str | None = None
    factory: str | None = None
    weights: WeightsChoice | None = None
    input_shapes: tuple[tuple[int, ...], ...] = ()
    inputs: tuple[InputRequest, ...] = ()
    dynamic: tuple[DynamicRequest, ...] = ()
    values: tuple[ValuesRequest, ...] = ()
    trust_pickle: bool = False
    preprocessing: PreprocessingRequest = field(default_factory=PreprocessingRequest)

    def __post_init__(self) -> None:
        inputs = self.inputs or tuple(InputRequest(shape=shape) for shape in self.input_shapes)
        object.__setattr__(self, "inputs", inputs)
        object.__setattr__(self, "input_shapes", tuple(one.shape for one in inputs if one.shape is not None))


class Preprocessing(Record):
    """What turned an image into the input tensor during training. Lengths are pixels; None means unknown, or no step.

    `source` says where this is known from: the builder's default weights, the checkpoint, the command, or nowhere
    (`unknown`). `resize` is the shorter edge, or (height, width). `fused` names the steps that happen inside the graph,
    in their order: a client that did them too would do them twice.
    """

    source: str
    resize: int | tuple[int, int] | None = None
    crop: int | None = None
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    layout: str | None = None
    value_range: tuple[float, float] | None = None
    interpolation: str | None = None
    fused: tuple[FusedStep, ...] = ()


class Checkpoint(Record):
    """A checkpoint that was read, understood and found whole. `build_module` turns it into a module.

    `architecture` is `torchvision/<builder>`, `timm/<name>`, `transformers/<class>`,
    `factory/<package.module:function>`, `program/<class>` or `torchscript/<class>`; `how` says whether it was
    inferred from the weights, asked for by name, built by the user's factory, named in a config.json, a program's own
    or an archive's. `options` are the builder's keyword arguments (`num_classes` and so on), with `in_channels` where
    it is not 3, and the layers of a `head` that is not the builder's. Inputs have the names of the forward's
    parameters, where those are known; their shapes begin with the dynamic dim `batch`, and `dims` bounds every other
    dynamic dim in them. The parameters in `absent` are given None. `decisions` has the decision axis by output name,
    where the shape alone would not tell. `size` is that of all files, in bytes; `found_under` the dotted path to the
    weights, None for the top. `base` is the checkpoint that an adapter at `path` changes; `digest` is then of both.
    `kept` are the files that a version keeps of a checkpoint that is a folder, relative to `network_path`: its
    tokenizer. Those in `own` lie at `path`: an adapter's own tokenizer.
    """

    path: Path
    base: Path | None = None
    digest: str
    format: Literal["torch", "safetensors", "distributed", "program", "torchscript"]
    name: str
    architecture: str
    how: Literal["inferred", "asked", "factory", "config", "program", "archive"]
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
    own: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def network_path(self) -> Path:
        """Where the network's own files lie: the base's, where `path` is an adapter."""
        return self.base or self.path

    @property
    def kept_files(self) -> dict[str, Path]:
        """Where each of the kept files lies, by its name in the version."""
        return {name: (self.path if name in self.own else self.network_path) / name for name in self.kept}

    @property
    def origin(self) -> str:
        """How the architecture is known, in the words of every report."""
        words = {
            "inferred": "inferred",
            "asked": "as asked for",
            "factory": "from the factory",
            "config": "as config.json says",
            "program": "the program's own",
            "archive": "the archive's own",
        }
        return f"architecture: {words[self.how]}"
