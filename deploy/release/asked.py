"""The rows that two versions are asked, and their answers: each version runs in a child, on every row alike.

Owns where rows come from and who answers them; what the answers mean is in `difference`. Called by diff.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

import numpy as np

from deploy.convert.model import ARTIFACT_FILES, Device
from deploy.errors import UsageError
from deploy.processes import Limits, Worker
from deploy.repository.layout import Version
from deploy.repository.manifest import Manifest
from deploy.spec import Spec
from deploy.validate.compare import as_rows
from deploy.validate.contenders import artifact_entrant
from deploy.validate.difference_records import SampleSource
from deploy.validate.executables import Arrays
from deploy.validate.families import REAL
from deploy.validate.samples import digest_arrays, load_samples
from deploy.validate.script import ScriptModel
from deploy.validate.store import RECORD, load_baseline


@dataclass(frozen=True, slots=True, kw_only=True)
class Side:
    """One version that is compared: where it lies and what it says of itself. Its files were found unchanged.

    `digest` is the one that it had then.
    """

    version: Version
    manifest: Manifest
    digest: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """How the versions are run: where, on how many threads, within which limits, and which folder takes the logs."""

    device: Device
    threads: int
    logs: Path
    limits: Limits


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """Rows of one source. `origin` numbers them in it, `counted` marks those that no source before it holds.

    `units` is, by output, the error that parity takes as one unit here: eager's own and its floor. `truth` are the
    true classes, where known.
    """

    name: str
    real: bool
    inputs: tuple[np.ndarray, ...]
    origin: tuple[int, ...]
    counted: np.ndarray
    units: Mapping[str, float] = field(default_factory=dict)
    truth: np.ndarray | None = None

    @property
    def rows(self) -> int:
        """The number of rows."""
        return len(self.origin)

    def source(self) -> SampleSource:
        """What the record keeps of it."""
        return SampleSource(
            name=self.name,
            rows=self.rows,
            counted=int(self.counted.sum()),
            real=self.real,
            digest=digest_arrays(self.inputs),
        )


def gather_rows(sides: Sequence[Side], samples: Path | None) -> tuple[Asked, ...]:
    """The given samples first, then what lies in the evidence of each version; a row counts where it comes first.

    Rows in the evidence that the other version does not take, by its bounds, are left out. Raises UsageError for a
    samples file that does not fit both: a verdict is not to be had from other rows than those that were asked for.
    """
    given = [*(_given(samples, sides[0].manifest.spec) if samples else ())]
    for asked in given:
        _require_taken(asked, sides)
    stored = (
        asked for side in sides for asked in _stored(side) if all(_takes(one.manifest.spec, asked) for one in sides)
    )
    seen: set[str] = set()
    return tuple(replace(asked, counted=_first_seen(asked, seen)) for asked in (*given, *stored))


def answers(side: Side, asked: Sequence[Asked], *, run: Run) -> list[Arrays]:
    """The version's outputs for every row of each source, rows first, from a child of its own.

    Raises ChildFailed if it crashes, hangs past the limit, or cannot load the artifact.
    """
    name = f"answers of version {side.version.number}"
    with Worker(name, log=run.logs / f"{name.replace(' ', '-')}.log", limits=run.limits) as worker:
        worker.make(_factory(side, run))
        return [_run(worker, side.manifest.spec, one) for one in asked]


def _factory(side: Side, run: Run) -> Callable[[], object]:
    """What makes the version's model in a child, run as its manifest says."""
    manifest = side.manifest
    path = side.version.folder / ARTIFACT_FILES[manifest.compiled]
    if manifest.format == "torchscript":
        return partial(ScriptModel, path, threads=run.threads)
    return artifact_entrant(
        str(side.version),
        path,
        format=manifest.compiled,
        threads=run.threads,
        device=run.device,
        details=manifest.artifact,
    ).factory


def _given(path: Path, spec: Spec) -> Iterator[Asked]:
    samples = load_samples(path, spec.inputs, spec.dims)
    yield Asked(
        name=path.name,
        real=True,
        inputs=samples.inputs,
        origin=tuple(range(samples.rows)),
        counted=np.ones(samples.rows, bool),
        truth=samples.labels,
    )


def _stored(side: Side) -> Iterator[Asked]:
    if not (side.version.evidence / RECORD).exists():
        return
    baseline = load_baseline(side.version.evidence, side.manifest.spec)
    for family, rows in baseline.rows.items():
        budgets = {name: budget for (name, of), budget in baseline.budgets.items() if of == family}
        yield Asked(
            name=f"{family} rows in the evidence of {side.version}",
            real=family == REAL,
            inputs=rows.pool.inputs,
            origin=rows.pool.origin or tuple(range(rows.pool.rows)),
            counted=np.ones(rows.pool.rows, bool),
            units={name: budget.max_unit for name, budget in budgets.items()},
        )


def _require_taken(asked: Asked, sides: Sequence[Side]) -> None:
    for side in sides:
        try:
            _check_rows(side.manifest.spec, asked)
        except UsageError as error:
            raise UsageError(
                f"{asked.name} does not fit {side.version}: {error.found}",
                expected=error.expected,
                fix="give rows that both versions take, or leave --samples out",
            ) from error


def _takes(spec: Spec, asked: Asked) -> bool:
    try:
        _check_rows(spec, asked)
    except UsageError:
        return False
    return True


def _check_rows(spec: Spec, asked: Asked) -> None:
    """Raises UsageError if the rows do not fit in number, dtype or shape, in the smallest batch."""
    least = spec.batch.minimum if spec.batch else 1
    spec.check_inputs([np.resize(array, (least, *array.shape[1:])) for array in asked.inputs])


def _first_seen(asked: Asked, seen: set[str]) -> np.ndarray:
    first = np.zeros(asked.rows, bool)
    for row in range(asked.rows):
        digest = digest_arrays([array[row] for array in asked.inputs])
        first[row] = digest not in seen
        seen.add(digest)
    return first


def _run(worker: Worker, spec: Spec, asked: Asked) -> Arrays:
    calls: list[Arrays] = []
    for start in range(0, asked.rows, spec.max_batch):
        rows = list(range(start, min(start + spec.max_batch, asked.rows)))
        wanted = len(rows)
        # The last batch may be below what the program takes: its last row is asked again, and not counted.
        rows += [rows[-1]] * ((spec.batch.minimum if spec.batch else 1) - wanted)
        outputs = worker.call("run", [np.ascontiguousarray(array[rows]) for array in asked.inputs])
        calls.append([as_rows(array, output)[:wanted] for array, output in zip(outputs, spec.outputs, strict=True)])
    return [np.concatenate(arrays) for arrays in zip(*calls, strict=True)]
