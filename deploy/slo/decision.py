"""The rule that turns counted queries into pass, fail or undecided, and says how many more would decide.

Owns the statistics of a verdict; knows nothing of servers, files or clocks. Called by run, and by whoever wants to
know beforehand what a run can prove.

Pass is LoadGen's early-stopping rule: with so many queries over the bound among n, a server that kept it only just
would have had so few with a probability of at most 1 %. Fail is its mirror image. Looking several times, and at
several bounds, shares that 1 %. Both suppose that queries are slow independently of each other; a stall makes many slow
at once. So the same test must hold for the *effective* number of queries too, their number over the design effect. And
a stall that a run has met early is held against the whole run, not against the little that was seen: what fails in
clusters must fail even if every query that is still to come were quick.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from deploy.evidence import Judgement, Verdict
from deploy.slo.records import Bound, BoundResult

_FIRST_LOOK = 50
_LOOK_GROWTH = 1.5
# A cluster is judged at 95 %, by one test and not by look: it is a second condition, never a substitute.
CLUSTER_ERROR = 0.05
# Standard deviations from which on clusters are more than the luck of independent queries, over all widths looked at.
_CLUSTER_SURPRISE = 3.5
_NARROWEST_SECONDS = 0.25
_FEWEST_BLOCKS = 8
# Where a fail depends on it: blocks that begin later, by shares of their width, hold whole what others cut in two, and
# fewer slow queries than these can hardly surprise so much, so that of them a hint of a cluster is enough.
_SHIFTS, _FEW_SLOW, _HINT, _BLOCKS_OF_A_HINT = (0.0, 0.25, 0.5, 0.75), 20, 0.5, 4
_MOST_QUERIES = 50_000_000


@dataclass(frozen=True)
class Looks:
    """When a run is looked at, and the error each look may make. `total` is the most queries it may take.

    All looks but the last share half the error evenly; the last, which most undecided runs reach, has the other half.
    """

    total: int
    error: float = 0.01

    @cached_property
    def counts(self) -> tuple[int, ...]:
        """The numbers of queries, ascending, the last of them the total."""
        steps = max(0, math.ceil(math.log(max(1.0, self.total / _FIRST_LOOK), _LOOK_GROWTH)))
        early = (math.ceil(_FIRST_LOOK * _LOOK_GROWTH**step) for step in range(steps))
        return (*(count for count in early if count < self.total), self.total)

    def share(self, count: int) -> float:
        """The error that the look at `count` queries may make."""
        if len(self.counts) == 1:
            return self.error
        return self.error / 2 if count >= self.total else self.error / 2 / (len(self.counts) - 1)


@dataclass(frozen=True, slots=True, kw_only=True)
class Counted:
    """What one look saw of one bound: `over` of `n` queries broke it, in clusters of this design effect.

    `failed` of those that broke it got no good answer at all, however long that took. `at_best` are the effective
    numbers of all queries of the run and of those over, if all that are still to come were quick; None without any
    cluster.
    """

    n: int
    over: int
    design_effect: float = 1.0
    failed: int = 0
    at_best: tuple[float, float] | None = None


def too_few(over: float, n: float, allowed: float) -> float:
    """The probability of at most `over` in `n` independent queries, if each breaks the bound with `allowed`.

    For counts this is the binomial sum that LoadGen's early stopping computes (`loadgen/early_stopping.cc`); its
    continuation to fractions, the incomplete beta function, serves effective numbers.
    """
    from scipy.special import betainc

    return 1.0 if over >= n else float(betainc(n - over, over + 1.0, 1.0 - allowed))


def too_many(over: float, n: float, allowed: float) -> float:
    """The probability of at least `over` in `n` independent queries, if each breaks the bound with `allowed`."""
    from scipy.special import betainc

    return 1.0 if over <= 0 else float(betainc(over, max(n - over, 0.0) + 1.0, allowed))


def interval(over: float, n: float, error: float) -> tuple[float, float]:
    """The exact two-sided interval of a share (Clopper and Pearson, Biometrika 1934), wrong with at most `error`."""
    from scipy.special import betaincinv

    low = 0.0 if over <= 0 else float(betaincinv(over, n - over + 1.0, error / 2))
    high = 1.0 if over >= n else float(betaincinv(over + 1.0, n - over, 1.0 - error / 2))
    return low, high


def fewest_queries(allowed: float, error: float) -> int:
    """The queries from which on a bound can pass at all, none of them over it: 459 for p99 at 99 %."""
    return math.ceil(math.log(error) / math.log1p(-allowed))


def at_best(seconds: np.ndarray, over: np.ndarray, *, left: int, rate: float) -> tuple[float, float] | None:
    """The effective number of all queries and of those over, if the `left` ones to come, `rate` a second, were quick.

    None where nothing hints at a cluster: slow queries that are spread evenly are not luck, whatever follows.
    """
    if _sharpest_effect(seconds, over) == 1.0:
        return None
    to_come = seconds[-1] + np.arange(1, left + 1) / rate
    whole, slow = np.concatenate([seconds, to_come]), np.concatenate([over, np.zeros(left, dtype=bool)])
    effect = _sharpest_effect(whole, slow)
    return len(whole) / effect, float(slow.sum()) / effect


def _sharpest_effect(seconds: np.ndarray, over: np.ndarray) -> float:
    if int(np.count_nonzero(over)) >= _FEW_SLOW:
        return max(design_effect(seconds, over, shift=shift) for shift in _SHIFTS)
    return max(design_effect(seconds, over, shift=shift, surprise=_HINT, blocks=_BLOCKS_OF_A_HINT) for shift in _SHIFTS)


def design_effect(
    seconds: Sequence[float] | np.ndarray,
    over: Sequence[bool] | np.ndarray,
    *,
    shift: float = 0.0,
    surprise: float = _CLUSTER_SURPRISE,
    blocks: int = _FEWEST_BLOCKS,
) -> float:
    """By how much the number of slow queries varies from stretch to stretch, beyond what independence gives; 1 if not.

    `seconds` are the scheduled times, ascending. Blocks of several widths are looked at, `blocks` of them at least,
    since a stall may last long, and the largest effect counts (Kish, Survey Sampling, 1965; batch means). With a
    `shift`, a share of the width, they begin later, and the last one goes on at the beginning. Luck is not taken for a
    cluster: the dispersion must lie `surprise` standard deviations beyond what independent queries show.
    """
    times, slow = np.asarray(seconds, dtype=np.float64), np.asarray(over, dtype=bool)
    total = int(slow.sum())
    if total < 2 or total == len(slow):
        return 1.0
    times = times - times[0]
    span, found = float(times[-1]), 1.0
    width = _NARROWEST_SECONDS
    while width * blocks <= span:
        even = span / math.floor(span / width)
        block = ((times + even * shift) % span / even if shift else times / width).astype(np.int64)
        found = max(found, _dispersion(block, slow, surprise))
        width *= 2
    return found


def _dispersion(block: np.ndarray, slow: np.ndarray, surprise: float) -> float:
    """The index of dispersion of slow queries over the blocks that they lie in; 1 where luck explains it."""
    share = float(slow.mean())
    sizes = np.bincount(block).astype(np.float64)
    counts = np.bincount(block, weights=slow)
    sizes, counts = sizes[sizes > 0], counts[sizes > 0]
    variance = sizes * share * (1.0 - share)
    statistic = float(np.sum((counts - sizes * share) ** 2 / variance))
    freedom = len(sizes) - 1
    if freedom < 1:
        return 1.0
    # The fourth moment of a binomial adds 1/variance to the 2 of a normal law: what makes sparse counts jumpy.
    deviation = math.sqrt(float(np.sum(2.0 + 1.0 / variance)))
    return statistic / freedom if statistic > freedom + surprise * deviation else 1.0


def judge(bound: Bound, counted: Counted, *, pass_error: float, fail_error: float, confidence: float) -> BoundResult:
    """The verdict on one bound from one look, with the interval of the true share at `confidence`."""
    allowed, n, over = 1.0 - bound.q, counted.n, counted.over
    effective_n, effective_over = n / counted.design_effect, over / counted.design_effect
    low, high = interval(effective_over, effective_n, 1.0 - confidence) if n else (0.0, 1.0)
    verdict = _verdict(counted, allowed, pass_error, fail_error)
    more = None
    if verdict is Verdict.UNDECIDED and n:
        more = more_queries(counted, allowed, pass_error=pass_error, fail_error=fail_error)
    judgement = Judgement(verdict=verdict, reason=_reason(bound, counted, verdict, more, (low, high)))
    return BoundResult(
        bound=bound,
        judgement=judgement,
        n=n,
        over=over,
        allowed=allowed,
        low=low,
        high=high,
        design_effect=counted.design_effect,
        more_queries=more,
    )


def overall(results: Sequence[BoundResult]) -> Judgement:
    """One failure fails, all must pass; the reason is that of the bound that decided it, or keeps it open."""
    for verdict in (Verdict.FAIL, Verdict.UNDECIDED):
        found = [result for result in results if result.judgement.verdict is verdict]
        if found:
            reason = "; ".join(f"{result.bound.wanted}: {result.judgement.reason}" for result in found)
            return Judgement(verdict=verdict, reason=reason)
    reason = "; ".join(f"{result.bound.wanted}: {result.over} of {result.n} over" for result in results)
    return Judgement.yes(reason)


def more_queries(counted: Counted, allowed: float, *, pass_error: float, fail_error: float) -> int | None:
    """How many more queries would decide if the share over the bound stayed as it is; None beyond 50 million."""

    def decided(n: int) -> bool:
        over = counted.over / counted.n * n
        seen = Counted(n=n, over=round(over), design_effect=counted.design_effect)
        return _verdict(seen, allowed, pass_error, fail_error) is not Verdict.UNDECIDED

    high = max(2 * counted.n, 2)
    while not decided(high):
        high *= 2
        if high > _MOST_QUERIES:
            return None
    low = high // 2
    while high - low > max(1, low // 1000):
        middle = (low + high) // 2
        low, high = (low, middle) if decided(middle) else (middle, high)
    return max(1, high - counted.n)


def _verdict(counted: Counted, allowed: float, pass_error: float, fail_error: float) -> Verdict:
    n, over, effect = counted.n, counted.over, counted.design_effect
    if not n:
        return Verdict.UNDECIDED
    clustered = max(pass_error, CLUSTER_ERROR), max(fail_error, CLUSTER_ERROR)
    if too_few(over, n, allowed) <= pass_error and too_few(over / effect, n / effect, allowed) <= clustered[0]:
        return Verdict.PASS
    if too_many(over, n, allowed) <= fail_error and too_many(over / effect, n / effect, allowed) <= clustered[1]:
        best_n, best_over = counted.at_best or (n, over)
        return Verdict.FAIL if too_many(best_over, best_n, allowed) <= clustered[1] else Verdict.UNDECIDED
    return Verdict.UNDECIDED


def _reason(bound: Bound, counted: Counted, verdict: Verdict, more: int | None, truth: tuple[float, float]) -> str:
    if not counted.n:
        return "no query was counted"
    said = f"{counted.over} of {counted.n} queries {_broke(bound, counted)} and {_percent(1.0 - bound.q)} may"
    said += f"; the true share lies in {_percent(truth[0])} to {_percent(truth[1])}"
    if verdict is not Verdict.UNDECIDED:
        return said
    return f"{said}, {'too near for any run' if more is None else f'and about {more} more queries would decide'}"


def _broke(bound: Bound, counted: Counted) -> str:
    """What the queries did that broke the bound."""
    if bound.kind == "errors":
        return "failed"
    late = f"took over {bound.limit:g} ms"
    if not counted.failed:
        return late
    return "failed" if counted.failed == counted.over else f"failed ({counted.failed}) or {late}"


def _percent(share: float) -> str:
    return f"{share * 100:.3g} %"
