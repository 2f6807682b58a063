"""The calls that every check makes: which rows go together in one batch.

Owns batch sizes and groupings, nothing about values. Called by run, and by what asks a server.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate, cycle, groupby, islice, pairwise

import numpy as np

from deploy.spec import Dim, Spec
from deploy.validate.families import LARGEST, SMALLEST, Pool, rows_in_memory

_SMALL = (2, 3)


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """These rows of a family's pool as one batch; `shared` names the call in which rows of other families follow."""

    name: str
    family: str
    rows: tuple[int, ...]
    shared: str = ""

    @property
    def alone(self) -> bool:
        """True for a batch of one row."""
        return len(self.rows) == 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """One batch: a case, or the cases that share it, one after the other."""

    cases: tuple[Case, ...]

    @property
    def size(self) -> int:
        """The number of rows."""
        return sum(len(case.rows) for case in self.cases)

    def inputs(self, pools: Mapping[str, Pool]) -> list[np.ndarray]:
        """One array per input in the spec's order, from the pools by family."""
        parts = [pools[case.family].take(case.rows) for case in self.cases]
        return parts[0] if len(parts) == 1 else [np.concatenate(arrays) for arrays in zip(*parts, strict=True)]

    def part(self, outputs: Sequence[np.ndarray]) -> list[list[np.ndarray]]:
        """Each case's rows of the outputs. Rows too many or too few are the last case's, whose shape then is wrong."""
        if len(self.cases) == 1:
            return [list(outputs)]
        ends = list(accumulate((len(case.rows) for case in self.cases), initial=0))
        bounds = [*pairwise(ends[:-1]), (ends[-2], None)]
        return [[array[start:end] if array.ndim else array for array in outputs] for start, end in bounds]


def calls_of(cases: Iterable[Case]) -> Iterator[Call]:
    """The batches that the cases are asked in."""
    for _, together in groupby(cases, key=lambda case: case.shared or case.name):
        yield Call(cases=tuple(together))


def call_with(case: Case, cases: Iterable[Case]) -> Call:
    """The batch that a case was asked in."""
    return next(call for call in calls_of(cases) if case in call.cases)


def make_cases(spec: Spec, pools: Sequence[Pool], *, mixed: bool = True) -> tuple[Case, ...]:
    """For each family: batches of 2, 3 (an odd one) and the maximum, and each row of the odd batch alone.

    Only batch sizes within the program's bounds; a static program gets each row alone. A batch larger than its pool
    repeats rows. At the ends of other dynamic dims: one row alone, and the largest batch that memory holds.

    A maximum that holds the rows of all families is one batch of them all: what it shows beyond the small batches is
    the size. With `mixed` false each family has one of its own: for programs whose arithmetic on a row depends on its
    neighbours, as that of int8 with a scale taken from the batch does.
    """
    parted = [_family_cases(spec, pool) for pool in pools]
    if spec.batch is None:
        return tuple(case for cases in parted for case in cases)
    plain = [pool for pool in pools if pool.family not in (SMALLEST, LARGEST)]
    for together in _alike(plain):
        cases = _largest_cases(spec.batch, together, mixed=mixed)
        parted += [cases] if cases else []
    return tuple(case for cases in parted for case in cases)


def _alike(pools: Sequence[Pool]) -> list[list[Pool]]:
    """The pools whose rows fit into one batch, in their order."""
    found: dict[tuple[tuple[int, ...], ...], list[Pool]] = {}
    for pool in pools:
        found.setdefault(tuple(array.shape[1:] for array in pool.inputs), []).append(pool)
    return list(found.values())


def _family_cases(spec: Spec, pool: Pool) -> list[Case]:
    """All but the largest batch, which families may share."""
    batch = spec.batch
    if batch is None:
        return [_alone(pool, row) for row in range(pool.rows)]
    if pool.family in (SMALLEST, LARGEST):
        return _extreme_cases(spec, pool, batch)
    sizes = [size for size in _SMALL if max(2, batch.minimum) <= size <= batch.maximum]
    alone = [_alone(pool, row) for row in range(min(max(_SMALL), pool.rows))] if batch.minimum == 1 else []
    return alone + [_batch(pool, size) for size in sizes]


def _largest_cases(batch: Dim, pools: Sequence[Pool], *, mixed: bool) -> list[Case]:
    """The largest batch, of each family or of all; none where it is one of the small ones."""
    size = batch.maximum
    if size in _SMALL or size < 2:
        return []
    if not mixed or len(pools) == 1 or size < sum(pool.rows for pool in pools):
        return [_batch(pool, size) for pool in pools]
    # Neighbours come from different families: the first row of each, then the second of each.
    longest = max(pool.rows for pool in pools)
    every = [(pool.family, row) for row in range(longest) for pool in pools if row < pool.rows]
    rows: dict[str, list[int]] = {}
    for family, row in islice(cycle(every), size):
        rows.setdefault(family, []).append(row)
    return [
        Case(name=f"{family}, in a batch of {size}", family=family, rows=tuple(held), shared=f"batch of {size}")
        for family, held in rows.items()
    ]


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
