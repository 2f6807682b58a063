"""What a setting is worth: the highest rate at which short probes keep the bound.

Owns which rates are probed and when a setting is given up; how a probe is made belongs to `bed`. Called by run, and by
the benchmark, so that a grid and a search use the same measure.
"""

from collections.abc import Callable
from dataclasses import dataclass, field

from deploy.slo.tune_records import Probe

ProbeAt = Callable[[float], Probe]

RESOLUTION = 1.05
_MOST_RATES = 14
# A first step above a rate that passed; each further one is twice as large.
_FIRST_STEP = 1.1
_FACTOR = 64.0
# Where a setting that missed the best rate may be probed next, as shares of it, and how far below that the last time.
_NEAREST, _FARTHEST, _UNKNOWN = 0.93, 0.3, 0.6
_LOWER = 0.65
_UNPROVEN = 0.5
# From this share over the bound on, no hiccup of the machine can have been the reason.
HOPELESS = 0.5


@dataclass(frozen=True, slots=True, kw_only=True)
class Goal:
    """Where a search for a rate begins: at `best`, the best rate so far, or at `start` before there is one.

    `limit_ms` is the bound itself, to tell from a missed one how far the setting is from keeping it. No rate below
    `lowest` is probed, after the first one.
    """

    start: float
    best: float | None
    limit_ms: float
    lowest: float = 0.0


@dataclass(slots=True)
class Value:
    """What was found. `score` grades what did not reach the best rate; `rate` is what a probe really kept."""

    rate: float | None = None
    score: float = 0.0
    ended_early: bool = False
    client_limited: bool = False
    rates: int = 0
    probes: list[Probe] = field(default_factory=list)

    def kept(self, probe_at: ProbeAt, rate: float) -> bool:
        """Whether a probe at `rate` keeps the bound; one that may have failed for another reason is made once more.

        That is the client's limit, or a hiccup of the machine: one in a second of load breaks a p99, and would stand as
        the setting's own limit for the rest of its measurement.
        """
        self.rates += 1
        probe = probe_at(rate)
        self.probes.append(probe)
        if probe.kept is None or (not probe.kept and probe.over < HOPELESS * probe.queries):
            probe = probe_at(rate)
            self.probes.append(probe)
        self.client_limited |= probe.kept is None
        if probe.kept:
            self.rate = max(rate, self.rate or 0.0)
        return probe.kept is True


def measure(probe_at: ProbeAt, goal: Goal) -> Value:
    """The highest rate that is kept, within 5 %, for a setting that reaches the best one; less work for any other.

    A setting that misses the best rate is tried at most twice more below it, so that the sampler learns how far it is.
    """
    value = Value()
    if goal.best is not None:
        if not value.kept(probe_at, goal.best):
            return _graded(value, probe_at, goal)
        low, high = goal.best, None
    else:
        low_or_none, high = _descend(value, probe_at, goal)
        if low_or_none is None:
            return value
        low = low_or_none
    low, high = _climb(value, probe_at, low, high)
    while high is not None and high / low > RESOLUTION and value.rates < _MOST_RATES:
        middle = (low * high) ** 0.5
        low, high = (middle, high) if value.kept(probe_at, middle) else (low, middle)
    value.score = value.rate or 0.0
    return value


def _graded(value: Value, probe_at: ProbeAt, goal: Goal) -> Value:
    assert goal.best is not None
    value.ended_early = True
    share = _sustained(value.probes[-1], goal.limit_ms)
    for lower in (share, share * _LOWER):
        if value.kept(probe_at, lower * goal.best):
            value.score = lower * goal.best
            return value
    value.score = share * _LOWER * _UNPROVEN * goal.best
    return value


def _sustained(probe: Probe, limit_ms: float) -> float:
    """Which share of a rate that was too high a server sustains, by how late its answers were at the end.

    Under a load beyond its capacity the queue grows evenly: after `t` seconds at a rate `r` a server of capacity `c` is
    `t (1 - c / r)` behind. One step of the resolution below that, the bound is likely kept.
    """
    if probe.p99 is None or not probe.queries:
        return _UNKNOWN
    behind = max(0.0, probe.p99 - limit_ms) / 1000 / (probe.queries / probe.rate)
    return min(_NEAREST, max(_FARTHEST, (1.0 - behind) / RESOLUTION))


def _descend(value: Value, probe_at: ProbeAt, goal: Goal) -> tuple[float | None, float | None]:
    """A rate that is kept, and the lowest that was not; None for the first if none is, down to a 64th."""
    rate, high = goal.start, None
    while high is None or rate >= max(goal.start / _FACTOR, goal.lowest):
        if value.kept(probe_at, rate):
            return rate, high
        high, rate = rate, rate / 2
    return None, high


def _climb(value: Value, probe_at: ProbeAt, low: float, high: float | None) -> tuple[float, float | None]:
    """The highest rate that is kept and the next that is not, by steps that grow."""
    step, lowest = _FIRST_STEP, low
    while high is None and low < lowest * _FACTOR and value.rates < _MOST_RATES:
        if value.kept(probe_at, low * step):
            low, step = low * step, 1 + 2 * (step - 1)
        else:
            high = low * step
    return low, high
