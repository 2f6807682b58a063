"""The calls that every check makes: which rows go together in one batch.

Owns batch sizes and groupings, nothing about values. Called by run.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from deploy.spec import Dim, Spec
from deploy.validate.families import LARGEST, SMALLEST, Pool, rows_in_memory

_SMALL = (2, 3)


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """One call: these rows of a family's pool as one batch, made a second time where `twice`."""

    name: str
    family: str
    rows: tuple[int, ...]
    twice: bool = False

    @property
    def alone(self) -> bool:
        """True for a batch of one row."""
        return len(self.rows) == 1


def make_cases(spec: Spec, pools: Sequence[Pool]) -> tuple[Case, ...]:
    """Every family's rows, alone and in a batch; the first family, of real rows if there are any, in every batch size.

    Those are 2, 3 (an odd one) and the maximum, each call made twice: what a batch size or a second call changes is in
    the code, whatever the values, while what a family changes is in the values. The others are asked row by row and in
    one batch of all their rows. Only batch sizes within the program's bounds; a static program gets each row alone. A
    batch larger than its pool repeats rows. At the ends of other dynamic dims: one row alone, and the largest batch
    that memory holds.
    """
    first = pools[0].family if pools else ""
    return tuple(
        replace(case, twice=pool.family == first)
        for pool in pools
        for case in _family_cases(spec, pool, every_size=pool.family == first)
    )


def _family_cases(spec: Spec, pool: Pool, *, every_size: bool) -> list[Case]:
    batch = spec.batch
    if batch is None:
        return [_alone(pool, row) for row in range(pool.rows)]
    if pool.family in (SMALLEST, LARGEST):
        return _extreme_cases(spec, pool, batch)
    wanted = (*_SMALL, batch.maximum) if every_size else (min(pool.rows, batch.maximum),)
    sizes = sorted({max(2, batch.minimum, size) for size in wanted if size <= batch.maximum})
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
