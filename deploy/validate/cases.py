"""The calls that every check makes: which rows go together in one batch.

Owns batch sizes and groupings, nothing about values. Called by run, and by what asks a server.
"""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate, cycle, groupby, islice, pairwise

import numpy as np

from deploy.spec import Dim, Spec
from deploy.validate.families import LARGEST, SMALLEST, Pool, rows_in_memory

_SMALL = (2, 3)


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """These rows of a family's pool as one batch; `shared` names the call in which rows of other families follow.

    `repeat` is false for a batch between a single row and the largest: its rows are asked twice in others.
    """

    name: str
    family: str
    rows: tuple[int, ...]
    shared: str = ""
    repeat: bool = True

    @property
    def alone(self) -> bool:
        """True for a batch of one row."""
        return len(self.rows) == 1 and not self.shared


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """One batch: a case, or the cases that share it, one after the other."""

    cases: tuple[Case, ...]

    @property
    def size(self) -> int:
        """The number of rows."""
        return sum(len(case.rows) for case in self.cases)

    @property
    def repeat(self) -> bool:
        """True where the same call is made again."""
        return any(case.repeat for case in self.cases)

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

    Families of one shape share their largest batches: those show what the size does, and a row next to those of
    other families shows what leaks. Together they hold the first row of each and those that were not asked alone.
    With `mixed` false each family has a batch of its own: for programs whose arithmetic on a row depends on its
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
    return alone + [_batch(pool, size, repeat=size == batch.maximum) for size in sizes]


def _largest_cases(batch: Dim, pools: Sequence[Pool], *, mixed: bool) -> list[Case]:
    """The largest batch, of each family or of all; none where it is one of the small ones."""
    size = batch.maximum
    if size in _SMALL or size < 2:
        return []
    if not mixed or len(pools) == 1:
        return [_batch(pool, size) for pool in pools]
    alone = range(max(_SMALL) if batch.minimum == 1 else 0)
    # One that was asked alone, to see whether the batch changes it, and those that were not.
    owed = [[0, *(row for row in range(1, pool.rows) if row not in alone)] for pool in pools]
    rest = [[row for row in range(pool.rows) if row not in rows] for pool, rows in zip(pools, owed, strict=True)]
    order = [*_interleaved(pools, owed), *_interleaved(pools, rest)]
    count = math.ceil(sum(len(rows) for rows in owed) / size)
    chosen = list(islice(cycle(order), count * size))
    return [
        case for number in range(count) for case in _shared_batch(chosen[number * size : (number + 1) * size], number)
    ]


def _interleaved(pools: Sequence[Pool], rows: Sequence[Sequence[int]]) -> list[tuple[str, int]]:
    """Family and row, so that neighbours come from different families: the first of each, then the second of each."""
    longest = max(map(len, rows))
    pairs = list(zip(pools, rows, strict=True))
    return [(pool.family, held[place]) for place in range(longest) for pool, held in pairs if place < len(held)]


def _shared_batch(chosen: Sequence[tuple[str, int]], number: int) -> list[Case]:
    """One case for each family that has rows in it."""
    size, rows = len(chosen), dict[str, list[int]]()
    for family, row in chosen:
        rows.setdefault(family, []).append(row)
    which = f" ({number + 1})" if number else ""
    return [
        Case(
            name=f"{family}, in a batch of {size}{which}", family=family, rows=tuple(held),
            shared=f"batch of {size}{which}",
        )
        for family, held in rows.items()
    ]  # fmt: skip


def _extreme_cases(spec: Spec, pool: Pool, batch: Dim) -> list[Case]:
    largest = max(batch.minimum, pool.rows, min(batch.maximum, rows_in_memory(spec, pool.family)))
    alone = [_alone(pool, 0)] if batch.minimum == 1 else []
    return alone + ([_batch(pool, min(largest, batch.maximum))] if largest > 1 else [])


def _alone(pool: Pool, row: int) -> Case:
    return Case(name=f"{pool.family}, row {row} alone", family=pool.family, rows=(row,))


def _batch(pool: Pool, size: int, *, repeat: bool = True) -> Case:
    rows = tuple(row % pool.rows for row in range(size))
    return Case(name=f"{pool.family}, batch {size}", family=pool.family, rows=rows, repeat=repeat)
