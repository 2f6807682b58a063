"""The calls that every check makes: which rows go together in one batch.

Owns batch sizes and groupings, nothing about values. Called by run.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from deploy.spec import Dim, Spec
from deploy.validate.families import LARGEST, SMALLEST, Pool, rows_in_memory

_SMALL = (2, 3)


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """One call: these rows of a family's pool as one batch."""

    name: str
    family: str
    rows: tuple[int, ...]

    @property
    def alone(self) -> bool:
        """True for a batch of one row."""
        return len(self.rows) == 1


def make_cases(spec: Spec, pools: Sequence[Pool]) -> tuple[Case, ...]:
    """For each family: batches of 2, 3 (an odd one) and the maximum, and each row of the odd batch alone.

    Only batch sizes within the program's bounds; a static program gets each row alone. A batch larger than its pool
    repeats rows. At the ends of other dynamic dims: one row alone, and the largest batch that memory holds.
    """
    return tuple(case for pool in pools for case in _family_cases(spec, pool))


def _family_cases(spec: Spec, pool: Pool) -> list[Case]:
    batch = spec.batch
    if batch is None:
        return [_alone(pool, row) for row in range(pool.rows)]
    if pool.family in (SMALLEST, LARGEST):
        return _extreme_cases(spec, pool, batch)
    sizes = sorted({size for size in (*_SMALL, batch.maximum) if max(2, batch.minimum) <= size <= batch.maximum})
    alone = [_alone(pool, row) for row in range(min(max(_SMALL), pool.rows))] if batch.minimum == 1 else []
    return alone + [_batch(pool, size) for size in sizes]


def _extreme_cases(spec: Spec, pool: Pool, batch: Dim) -> list[Case]:
    largest = max(batch.minimum, pool.rows, min(batch.maximum, rows_in_memory(spec, pool.family)))
    alone = [_alone(pool, 0)] if batch.minimum == 1 else []
    return alone + ([_batch(pool, min(largest, batch.maximum))] if largest > 1 else [])


def _alone(pool: Pool, row: int) -> Case:
    return Case(name=f"{pool.family}, row {row} alone", family=pool.family, rows=(row,))


def _batch(pool: Pool, size: int) -> Case:
    return Case(
        name=f"{pool.family}, batch {size}", family=pool.family, rows=tuple(row % pool.rows for row in range(size))
    )
