"""How often a verdict is right where arrivals are few and a run may end by the clock: simulated, on a clock of its own.

Owns the simulated runs at low rates; `slo_verdicts` writes them into its table. Only the load generator's child is
simulated: looks, closing, clusters, bounds and the client's part are the product's own code.

Stated beforehand: at most 1 % of the runs is wrong, for any server, rate and time. How many are decided is counted.
"""

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from deploy.evidence import Verdict
from deploy.slo.blame import client_side, invalid
from deploy.slo.decision import overall
from deploy.slo.generator import LoadPlan
from deploy.slo.load import LoadRun
from deploy.slo.records import Bound
from deploy.slo.request import SloRequest
from deploy.slo.run import plan_of, watch
from deploy.slo.wire import Query
from tests.slo.law import Law

RATES = (0.05, 0.1, 0.2, 0.5, 1.0)
SECONDS = (30.0, 120.0, 600.0)
RATIOS = (0.7, 0.95, 1.05, 1.5)
# How long a stall lasts, as a share of the run.
STALLS = (1 / 120, 1 / 20, 1 / 10)
P99 = Bound(kind="latency", q=0.99, limit=1000.0)
P50 = Bound(kind="latency", q=0.5, limit=1000.0)
ERRORS = Bound(kind="errors", q=0.95, limit=0.05)
STALLED = Bound(kind="latency", q=0.99, limit=100.0)
# A server far below every bound, but for what is said of it.
_QUICK = Law(p99=0.02)
# The share of queries that meet a stall: less than p99 lets be slow, or so much that a run meets a dozen stalls.
_SOUND, _BROKEN = 0.007, 0.1
_ASKED = Query(model="law", version="1", inputs=({},), outputs=())
STATED = 0.01  # the share of runs that may be wrong, for any server, rate and time
Row = dict[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Served:
    """A server whose truth is known, and the bound that it keeps or breaks.

    `latency` draws, for scheduled seconds, how long each answer takes, infinite where none comes.
    """

    what: str
    bound: Bound
    keeps: bool
    latency: Callable[[np.ndarray, np.random.Generator], np.ndarray]


def servers(seconds: float) -> Iterator[Served]:
    """Every kind of server that runs of so many seconds judge: slow by chance, failing by chance, slow in stalls."""
    for ratio in RATIOS:
        yield Served(what=f"p99 at {ratio:g} of its bound", bound=P99, keeps=ratio < 1, latency=_lognormal(ratio))
        # The same spread round another middle: half of the answers take `ratio` of the bound.
        middle = ratio * Law(p99=1.0).p99 / Law(p99=1.0).median
        yield Served(what=f"p50 at {ratio:g} of its bound", bound=P50, keeps=ratio < 1, latency=_lognormal(middle))
        errors = _failing(ratio * ERRORS.limit)
        yield Served(what=f"errors at {ratio:g} of their bound", bound=ERRORS, keeps=ratio < 1, latency=errors)
    for stall in STALLS:
        what = f"{_SOUND * 100:g} % in stalls of 1/{1 / stall:g} of the run"
        yield Served(what=what, bound=STALLED, keeps=True, latency=_stalling(stall * seconds, _SOUND))
    what = f"{_BROKEN * 100:g} % in stalls of 1/{1 / STALLS[0]:g} of the run"
    yield Served(what=what, bound=STALLED, keeps=False, latency=_stalling(STALLS[0] * seconds, _BROKEN))


def rows(runs: int, *, rates: tuple[float, ...] = RATES, times: tuple[float, ...] = SECONDS) -> list[Row]:
    """Every server at every rate and time, `runs` runs each: what came of them, and how many ended by the clock."""
    cells = [(server, seconds, rate) for seconds in times for server in servers(seconds) for rate in rates]
    return [_row(*cell, runs=runs, seed=number) for number, cell in enumerate(cells)]


def _row(server: Served, seconds: float, rate: float, *, runs: int, seed: int) -> Row:
    right, wrong = (Verdict.PASS, Verdict.FAIL) if server.keeps else (Verdict.FAIL, Verdict.PASS)
    generator = np.random.default_rng(seed)
    found = [simulate(server, rate, seconds, generator) for _ in range(runs)]
    verdicts = Counter(verdict for verdict, _, _ in found)
    return {
        "server": server.what,
        "rate": rate,
        "seconds": seconds,
        "runs": runs,
        "right": verdicts[right],
        "wrong": verdicts[wrong],
        "undecided": verdicts[Verdict.UNDECIDED],
        "invalid": verdicts[None],
        "by_clock": sum(by_clock for _, by_clock, _ in found),
        "queries_median": float(np.median([queries for _, _, queries in found])),
    }


def simulate(
    server: Served, rate: float, seconds: float, generator: np.random.Generator
) -> tuple[Verdict | None, bool, int]:
    """The verdict of one run, None where it is invalid; whether it ended by the clock; how many queries counted."""
    request = SloRequest(
        reference="law",
        url="",
        bounds=(server.bound,),
        rate=rate,
        seconds=seconds,
        min_seconds=min(30.0, seconds),
    )
    run = SimulatedRun(plan_of(request, _ASKED), server, generator)
    found = watch(request, run, pause=run.pause)
    why = invalid(found, request, client_side(found, request))
    return overall(found.results).verdict if why is None else None, found.by_clock, len(found.seen)


def table(found: list[Row]) -> list[str]:
    """Markdown: for each server and time the share of right runs at each rate, and the most that were wrong."""
    rates = sorted({row["rate"] for row in found})
    runs = found[0]["runs"]
    by_clock = sum(row["by_clock"] for row in found) / sum(row["runs"] for row in found)
    above = sum(row["wrong"] / row["runs"] > STATED for row in found)
    wrong_in_all = sum(row["wrong"] for row in found) / sum(row["runs"] for row in found)
    lines = [
        "## At low rates",
        "",
        f"Simulated on a clock of its own, {runs} runs in each place, {100 * by_clock:.0f} % of which ended by the "
        "clock, since random arrivals outlast the time that was asked. Stated beforehand: at most "
        f"{100 * STATED:.0f} % wrong in each; {above} of the {len(found)} places lie above that, and "
        f"{100 * wrong_in_all:.2f} % of all runs is wrong. The longer a stall is, the less a run can tell it from a "
        "slow server: a tenth of the run was the longest tried.",
        "",
        "| server | seconds | "
        + " | ".join(f"right at {rate:g}/s" for rate in rates)
        + " | wrong, at most | invalid |",
        "| --- | --- | " + "--- | " * len(rates) + "--- | --- |",
    ]
    for server, seconds in dict.fromkeys((row["server"], row["seconds"]) for row in found):
        cells = [row for row in found if (row["server"], row["seconds"]) == (server, seconds)]
        right = " | ".join(f"{100 * row['right'] / row['runs']:.0f} %" for row in cells)
        wrong = max(row["wrong"] / row["runs"] for row in cells)
        invalid_ = max(row["invalid"] / row["runs"] for row in cells)
        lines.append(f"| {server} | {seconds:g} | {right} | {100 * wrong:.1f} % | {100 * invalid_:.0f} % |")
    return [*lines, ""]


class SimulatedRun(LoadRun):
    """A load run whose child is a few arrays, and whose clock moves when it is waited for."""

    def __init__(self, plan: LoadPlan, server: Served, generator: np.random.Generator) -> None:
        self._clock = 0.0
        super().__init__(plan, Path(), now=lambda: self._clock)
        arrivals = np.concatenate([[0.0], np.cumsum(generator.exponential(1 / plan.rate, plan.queries - 1))])
        taken = server.latency(arrivals, generator)
        self._arrivals = arrivals
        self._fails = taken > plan.deadline
        self._taken = np.where(self._fails, plan.deadline, taken)
        # Queries are known in order: one that is under way holds back those behind it.
        self._known_at = np.maximum.accumulate(arrivals + self._taken)
        self._moments = np.sort(np.concatenate([arrivals, self._known_at]))

    @property
    def ended(self) -> bool:
        """Whether the last query has come to its end."""
        return bool(self._clock >= self._known_at[-1])

    def read(self, *, to_the_end: bool = False) -> None:
        """Take in what has happened since the last call."""
        sent = int(np.searchsorted(self._arrivals, self._clock, side="right"))
        known = int(np.searchsorted(self._known_at, self._clock, side="right"))
        self._sent += self._arrivals[len(self._sent) : sent].tolist()
        new = slice(len(self._latency), known)
        self._failed |= {number: "refused" for number in range(new.start, known) if self._fails[number]}
        self._scheduled += self._arrivals[new].tolist()
        self._issued += self._arrivals[new].tolist()
        self._latency += self._taken[new].tolist()

    def pause(self, seconds: float) -> None:
        """Move the clock on, to where something happens."""
        self._clock += seconds
        after = int(np.searchsorted(self._moments, self._clock))
        self._clock = max(self._clock, float(self._moments[after])) if after < len(self._moments) else self._clock


def _lognormal(p99: float) -> Callable[[np.ndarray, np.random.Generator], np.ndarray]:
    law = Law(p99=p99)
    return lambda at, random: law.median * np.exp(law.sigma * random.standard_normal(len(at)))


def _failing(share: float) -> Callable[[np.ndarray, np.random.Generator], np.ndarray]:
    good = _lognormal(_QUICK.p99)
    return lambda at, random: np.where(random.random(len(at)) < share, np.inf, good(at, random))


def _stalling(stall: float, share: float) -> Callable[[np.ndarray, np.random.Generator], np.ndarray]:
    """Nothing is answered for `stall` seconds at a time, so often that `share` of the queries break `STALLED`."""
    good, period = _lognormal(_QUICK.p99), (stall - STALLED.limit / 1000) / share

    def latency(at: np.ndarray, random: np.random.Generator) -> np.ndarray:
        phase = (at + random.uniform(0, period)) % period
        return np.asarray(np.where(phase < stall, stall - phase, 0.0) + good(at, random))

    return latency
