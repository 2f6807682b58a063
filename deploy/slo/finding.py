"""What one run showed: the queries that count, and how they were judged, before anything of it is written down.

Owns the value. Made by run; blame and summary read it.
"""

from collections import Counter
from dataclasses import dataclass
from typing import Self

import numpy as np

from deploy.slo.load import LoadRun, Observed
from deploy.slo.records import BoundResult

_MOST_ERRORS = 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """What one run showed: the queries that count, how they were judged, and what else was noted.

    `versions` are the numbers of answers by the version that they say they are by; empty where none says so.
    `by_clock`: the time was up before all queries had come; `cut_short`: the load ended before its time.
    """

    results: tuple[BoundResult, ...]
    seen: Observed
    warm_up: int
    sent: int
    looks: int
    errors: dict[str, int]
    versions: dict[str, int]
    cpu_seconds: float
    gaps: np.ndarray
    cut_short: bool = False
    by_clock: bool = False

    @classmethod
    def of(
        cls,
        run: LoadRun,
        warm_up: int,
        *,
        results: tuple[BoundResult, ...],
        seen: Observed,
        looks: int,
    ) -> Self:
        """The finding at this moment of a run that was not cut short. Errors count among the queries that do."""
        counted = range(warm_up, warm_up + len(seen))
        errors = Counter(why for number, why in run.failures.items() if number in counted)
        return cls(
            results=results,
            seen=seen,
            warm_up=warm_up,
            sent=run.sent,
            looks=looks,
            errors=dict(errors.most_common(_MOST_ERRORS)),
            versions=run.versions(warm_up, warm_up + len(seen)),
            cpu_seconds=run.cpu_seconds,
            gaps=run.gaps(warm_up, warm_up + len(seen)),
        )
