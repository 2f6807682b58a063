"""The evidence's own samples: inputs, reference values and budgets, kept so that a version can be proven again.

Owns `evidence/samples.npz` and `evidence/samples.json`. The checkpoint is not needed to judge a server's answers
later. Called by run, serve and verify.
"""

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from deploy.errors import UsageError
from deploy.evidence import OutputBudget
from deploy.records import Record
from deploy.spec import Spec
from deploy.validate.baseline import Baseline, Question, RowSet
from deploy.validate.cases import make_cases
from deploy.validate.families import Pool

ARRAYS = "samples.npz"
RECORD = "samples.json"
_BYTES = 24 * 1024 * 1024


class StoredFamily(Record):
    """One family in the stored samples; `origin` numbers its rows in the user's file, empty for seeded ones."""

    family: str
    rows: int
    origin: tuple[int, ...]


class StoredSamples(Record):
    """What `samples.npz` holds, in the order of its rows, and the budgets its reference values are judged by."""

    families: tuple[StoredFamily, ...]
    budgets: tuple[OutputBudget, ...]
    reference: str
    precision: str
    seed: int


def save_baseline(baseline: Baseline, folder: Path, *, limit: int = _BYTES) -> None:
    """Write the baseline's rows into `folder`: all of them, or as many per family as fit into `limit` bytes.

    At least one row of each family is kept. Rows in which eager overflows are left out. A tensor is one array of all
    families' rows, or an array per family (`inputs/<name>/<family>`) where their shapes differ.
    """
    kept = {family: _kept_rows(rows, _rows_that_fit(baseline, limit)) for family, rows in baseline.rows.items()}
    kept = {family: rows for family, rows in kept.items() if rows}
    record = StoredSamples(
        families=tuple(_stored_family(baseline.rows[family].pool, rows) for family, rows in kept.items()),
        budgets=tuple(baseline.budgets.values()),
        reference=baseline.reference,
        precision=baseline.question.precision,
        seed=baseline.question.seed,
    )
    folder.mkdir(parents=True, exist_ok=True)
    arrays: dict[str, np.ndarray] = {}
    for index, tensor in enumerate(baseline.question.spec.inputs):
        held = {family: baseline.rows[family].pool.inputs[index][rows] for family, rows in kept.items()}
        arrays |= _joined(f"inputs/{tensor.name}", held)
    for index, tensor in enumerate(baseline.question.spec.outputs):
        held = {family: baseline.rows[family].reference[index][rows] for family, rows in kept.items()}
        arrays |= _joined(f"reference/{tensor.name}", held)
    np.savez(folder / ARRAYS, allow_pickle=False, **arrays)
    record.write(folder / RECORD)


def load_baseline(folder: Path, spec: Spec) -> Baseline:
    """The baseline that `save_baseline` wrote. Raises UsageError if a file is absent or does not fit the spec."""
    record = StoredSamples.read(folder / RECORD)
    try:
        with np.load(folder / ARRAYS, allow_pickle=False) as archive:
            inputs = [_parted(archive, f"inputs/{tensor.name}", record) for tensor in spec.inputs]
            reference = [_parted(archive, f"reference/{tensor.name}", record) for tensor in spec.outputs]
    except (OSError, KeyError, ValueError) as error:
        raise UsageError(
            f"{folder / ARRAYS} cannot be read: {error}", expected="the file that packaging wrote, unedited"
        ) from error
    rows = {
        stored.family: RowSet(
            pool=Pool(family=stored.family, inputs=tuple(held[stored.family] for held in inputs), origin=stored.origin),
            reference=tuple(held[stored.family] for held in reference),
            judged=tuple(np.ones(held[stored.family].shape, bool) for held in reference),
        )
        for stored in record.families
    }
    pools = tuple(row_set.pool for row_set in rows.values())
    cases = make_cases(spec, pools, mixed=record.precision != "int8")
    question = Question(spec=spec, pools=pools, cases=cases, seed=record.seed, precision=record.precision)
    budgets = {(budget.output, budget.family): budget for budget in record.budgets}
    return Baseline(question=question, rows=rows, budgets=budgets, reference=record.reference)


def _joined(name: str, held: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """What is written of one tensor."""
    if len({array.shape[1:] for array in held.values()}) > 1:
        return {f"{name}/{family}": array for family, array in held.items()}
    return {name: np.concatenate(list(held.values()))}


def _parted(archive: Mapping[str, np.ndarray], name: str, record: StoredSamples) -> dict[str, np.ndarray]:
    """One tensor's rows by family. Raises KeyError if they are not there."""
    if name not in archive:
        return {stored.family: archive[f"{name}/{stored.family}"] for stored in record.families}
    ends = np.cumsum([stored.rows for stored in record.families])
    parts = np.split(archive[name], ends[:-1])
    return {stored.family: part for stored, part in zip(record.families, parts, strict=True)}


def _rows_that_fit(baseline: Baseline, limit: int) -> int:
    """Rows per family, so that all families together stay within `limit` bytes."""
    per_row = sum(
        array.nbytes // rows.pool.rows
        for rows in baseline.rows.values()
        for array in (*rows.pool.inputs, *rows.reference)
    )
    return max(1, limit // max(per_row, 1))


def _kept_rows(rows: RowSet, count: int) -> list[int]:
    whole = [row for row in range(rows.pool.rows) if all(judged[row].all() for judged in rows.judged)]
    return whole[:count]


def _stored_family(pool: Pool, rows: list[int]) -> StoredFamily:
    return StoredFamily(
        family=pool.family, rows=len(rows), origin=tuple(pool.origin[row] for row in rows) if pool.origin else ()
    )
