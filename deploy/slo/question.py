"""What a load run asks: which model version, with which rows, and what its answers must look like.

Owns where the samples come from and that they fit what the server declares. Called by run and tune.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from deploy.errors import UsageError
from deploy.repository.find import find_version, parse_reference, read_manifest
from deploy.repository.integrity import require_compiled
from deploy.repository.layout import Version
from deploy.repository.manifest import version_digest
from deploy.repository.protobuf import parse_config
from deploy.serve.asking import ServedModel
from deploy.slo.counters import ServedInput, ServedMetadata
from deploy.slo.stream import StreamQuestion
from deploy.slo.tensors import BFLOAT16, as_bfloat16
from deploy.slo.wire import Query, WireOutput
from deploy.spec import BATCH, TensorSpec
from deploy.validate.baseline import Baseline
from deploy.validate.encoded import load_encoded
from deploy.validate.families import REAL
from deploy.validate.samples import load_samples
from deploy.validate.store import load_baseline

_MOST_ROWS = 64
# Triton's word for texts and files.
_FILES = "BYTES"
# NumPy has no such numbers: they are kept as two bytes each.
_HALF = "BF16"
_DTYPES = {"BOOL": "bool", "FP16": "float16", "FP32": "float32", "FP64": "float64"} | {
    f"{sign}INT{width}": f"{sign.lower()}int{width}" for sign in ("", "U") for width in (8, 16, 32, 64)
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Subject:
    """The model that is asked: its name and number on the server, and its place where a repository is at hand.

    `number` is None where the server chooses.
    """

    name: str
    number: int | None
    version: Version | None

    def __str__(self) -> str:
        return self.name if self.number is None else f"{self.name}:{self.number}"

    @property
    def on_the_wire(self) -> str:
        """The version as a request names it; empty where the server chooses."""
        return "" if self.number is None else str(self.number)

    def digest(self) -> str | None:
        """The digest of the version that lies there now, None without a repository."""
        return None if self.version is None else version_digest(self.version.folder)


@dataclass(frozen=True, slots=True, kw_only=True)
class Rows:
    """Inputs by their name on the wire, all with the same number of rows, and where they come from."""

    arrays: dict[str, np.ndarray]
    source: str


def find_subject(reference: str, repository: Path | None) -> Subject:
    """Who `NAME[:N]` is; with a repository, without N, the promoted version. Raises UsageError if there is none."""
    if repository is None:
        name, number = parse_reference(reference)
        return Subject(name=name, number=number, version=None)
    version = find_version(repository, reference)
    return Subject(name=version.name, number=version.number, version=version)


def find_rows(subject: Subject, samples: Path | None, metadata: ServedMetadata) -> Rows:
    """The user's samples, or else the version's own: the real ones where packaging had some.

    Raises UsageError if there are none, or they do not fit.
    """
    if subject.version is not None:
        return _rows_of_version(subject.version, samples)
    if samples is None:
        raise UsageError(
            f"nothing to ask {subject} with", expected="--repository with the version's own samples, or --samples FILE"
        )
    specs = [_spec(tensor) for tensor in metadata.inputs]
    found = load_samples(samples, specs)
    halved = {tensor.name for tensor in metadata.inputs if tensor.datatype == _HALF}
    arrays = {
        spec.name: as_bfloat16(array) if spec.name in halved else array
        for spec, array in zip(specs, found.inputs, strict=True)
    }
    return Rows(arrays=arrays, source=f"{samples.name}, {found.rows} rows, sha256 {found.digest[:12]}")


def make_query(subject: Subject, rows: Rows, metadata: ServedMetadata) -> Query:
    """One query per row, and what the server says its answers look like. Raises UsageError if a row does not fit."""
    declared = {tensor.name: tensor for tensor in metadata.inputs}
    if set(declared) != set(rows.arrays):
        raise UsageError(
            f"the server's {subject} takes {_listed(declared)}; the samples have {_listed(rows.arrays)}",
            expected="the same inputs on both sides",
            fix="check that the server runs this version",
        )
    for name, array in rows.arrays.items():
        _check_fits(subject, declared[name], array)
    count = min(_MOST_ROWS, len(next(iter(rows.arrays.values()))))
    batched = all(tensor.shape[:1] == (-1,) for tensor in metadata.inputs)
    return Query(
        model=subject.name,
        version=subject.on_the_wire,
        inputs=tuple(
            {name: _sample(declared[name], array, row) for name, array in rows.arrays.items()} for row in range(count)
        ),
        outputs=tuple(_one_row(output) if batched else output for output in metadata.outputs),
    )


def make_stream_query(subject: Subject, question: StreamQuestion, metadata: ServedMetadata) -> tuple[Query, str]:
    """One query per prompt, and where the prompts come from. Raises UsageError if the model takes no text."""
    if "text_input" not in {tensor.name for tensor in metadata.inputs}:
        raise UsageError(
            f"the server's {subject} takes {_listed(tensor.name for tensor in metadata.inputs)}",
            expected="text_input, as a language model of the vLLM backend has it",
            fix="leave --llm out",
        )
    nothing: tuple[dict[str, np.ndarray], ...] = tuple({} for _ in question.prompts)
    query = Query(model=subject.name, version=subject.on_the_wire, inputs=nothing, outputs=())
    return query, f"{len(question.prompts)} prompts, {question.tokens} tokens each"


def _rows_of_version(version: Version, samples: Path | None) -> Rows:
    manifest = require_compiled(version, read_manifest(version), doing="ask it for tensors")
    if manifest.format == "ensemble":
        return _files_of_ensemble(version, samples)
    _ = manifest.compiled  # a step in Python is asked by its ensemble
    if samples is not None:
        found = load_samples(samples, manifest.spec.inputs, manifest.spec.dims)
        inputs: Sequence[np.ndarray] = found.inputs
        source = f"{samples.name}, {found.rows} rows, sha256 {found.digest[:12]}"
    else:
        baseline = load_baseline(version.evidence, manifest.spec)
        families = [REAL] if REAL in baseline.rows else _alike(baseline)
        pools = [baseline.rows[family].pool for family in families]
        inputs = [np.concatenate(arrays) for arrays in zip(*(pool.inputs for pool in pools), strict=True)]
        source = f"evidence of {version}: {', '.join(families)}, {len(inputs[0])} rows"
    model = ServedModel(version=version, config=parse_config(version.config.read_text()), classes=manifest.classes)
    return Rows(arrays=model.to_wire(inputs), source=source)


def _files_of_ensemble(version: Version, samples: Path | None) -> Rows:
    """The whole images or texts that an ensemble was proven with, each a row of its one input."""
    if samples is not None:
        raise UsageError(
            f"--samples was given for {version}, an ensemble that takes files or texts",
            expected="those that it was proven with",
            fix="leave --samples out; --images or --texts of `package` says which those are",
        )
    kind, whole = load_encoded(version.evidence)
    rows = np.array([[one] for one in whole], dtype=object)
    (name,) = (tensor.name for tensor in parse_config(version.config.read_text()).input)
    return Rows(arrays={name: rows}, source=f"evidence of {version}: {len(rows)} {kind}s")


def _alike(baseline: Baseline) -> list[str]:
    """The families whose rows are as large as the first one's; those at the ends of dynamic dims are others."""
    shapes = {family: [array.shape[1:] for array in rows.pool.inputs] for family, rows in baseline.rows.items()}
    return [family for family in shapes if shapes[family] == next(iter(shapes.values()))]


def _spec(tensor: ServedInput) -> TensorSpec:
    dtype = "float32" if tensor.datatype == _HALF else _DTYPES.get(tensor.datatype)
    if dtype is None:
        raise UsageError(
            f"input {tensor.name} is {tensor.datatype}, which --samples cannot hold",
            expected=f"one of {', '.join([*_DTYPES, _HALF])}",
            fix="give --repository: an ensemble is asked with the images or texts that it was proven with",
        )
    batched = [BATCH, *tensor.shape[1:]] if tensor.shape[:1] == (-1,) else list(tensor.shape)
    shape = [BATCH, *tensor.shape] if _is_whole(tensor) else batched
    sizes = tuple(f"{tensor.name}:{axis}" if size == -1 else size for axis, size in enumerate(shape))
    return TensorSpec(name=tensor.name, dtype=dtype, shape=sizes)


def _is_whole(tensor: ServedInput) -> bool:
    """Whether the first size is no batch: of a model that batches nothing, a sample is the whole tensor."""
    return tensor.shape[:1] > (1,)


def _sample(tensor: ServedInput, array: np.ndarray, row: int) -> np.ndarray:
    return np.asarray(array[row] if _is_whole(tensor) else array[row : row + 1])


def _one_row(output: WireOutput) -> WireOutput:
    sizes = (1, *output.shape[1:]) if output.shape[:1] == (-1,) else output.shape
    return WireOutput(name=output.name, datatype=output.datatype, shape=sizes)


def _check_fits(subject: Subject, declared: ServedInput, array: np.ndarray) -> None:
    others = {_FILES: "object", _HALF: BFLOAT16.name}
    wanted = others.get(declared.datatype) or _DTYPES.get(declared.datatype, declared.datatype)
    shape = array.shape[1:] if _is_whole(declared) else (1, *array.shape[1:])
    fits = len(shape) == len(declared.shape) and all(
        size in (-1, actual) for size, actual in zip(declared.shape, shape, strict=True)
    )
    if array.dtype.name != wanted or not fits:
        raise UsageError(
            f"a row of {declared.name} is {array.dtype} {list(shape)}",
            expected=f"{wanted} {list(declared.shape)}, as the server's {subject} declares it",
            fix="check that the server runs this version, or pass --samples that fit",
        )


def _listed(names: Iterable[str]) -> str:
    return ", ".join(sorted(names))
