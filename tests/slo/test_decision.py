"""The rule of a verdict: LoadGen's numbers, its mirror, shared errors, clusters, and how many queries would decide."""

import math

import numpy as np
import pytest

from deploy.evidence import Verdict
from deploy.slo.decision import (
    Counted,
    Looks,
    design_effect,
    fewest_queries,
    interval,
    judge,
    more_queries,
    too_few,
    too_many,
)
from deploy.slo.records import Bound, BoundResult
from tests.slo.law import Law

P99 = Bound(kind="latency", q=0.99, limit=15.0)
QUERIES = 8000
RUNS = 100


def judged(over: int, n: int, *, bound: Bound = P99, error: float = 0.01, effect: float = 1.0) -> BoundResult:
    return judge(
        bound, Counted(n=n, over=over, design_effect=effect), pass_error=error, fail_error=error, confidence=0.99
    )


# The query counts of MLPerf's rules for early stopping at 99 % confidence, appendix of its inference rules: to pass
# with one query over, 64 at p90, 662 at p99, 6,636 at p99.9.
@pytest.mark.parametrize(("q", "needed"), [(0.9, 64), (0.99, 662), (0.999, 6636)])
def test_the_rule_for_pass_is_loadgens(q: float, needed: int) -> None:
    assert too_few(1, needed, 1 - q) <= 0.01 < too_few(1, needed - 1, 1 - q)


def test_tails_are_binomial_sums() -> None:
    n, share = 40, 0.07
    mass = [math.comb(n, k) * share**k * (1 - share) ** (n - k) for k in range(n + 1)]
    for over in range(n + 1):
        assert too_few(over, n, share) == pytest.approx(sum(mass[: over + 1]))
        assert too_many(over, n, share) == pytest.approx(sum(mass[over:]))


def test_nothing_over_passes_from_the_stated_number_on() -> None:
    needed = fewest_queries(0.01, 0.01)
    assert needed == 459
    assert judged(0, needed).judgement.verdict is Verdict.PASS
    assert judged(0, needed - 1).judgement.verdict is Verdict.UNDECIDED


def test_fail_is_the_mirror() -> None:
    fewest = next(over for over in range(1000) if judged(over, 1000).judgement.verdict is Verdict.FAIL)
    assert too_many(fewest, 1000, 0.01) <= 0.01 < too_many(fewest - 1, 1000, 0.01)


def test_nothing_counted_decides_nothing() -> None:
    assert judged(0, 0).judgement.verdict is Verdict.UNDECIDED


@pytest.mark.parametrize("over", [4, 6, 14, 17])
def test_as_many_more_queries_as_stated_do_decide(over: int) -> None:
    found = judged(over, 1000)
    assert found.judgement.verdict is Verdict.UNDECIDED
    assert found.more_queries is not None
    n = 1000 + found.more_queries
    assert judged(round(over / 1000 * n), n).judgement.verdict is not Verdict.UNDECIDED
    fewer = 1000 + found.more_queries * 2 // 3
    assert judged(round(over / 1000 * fewer), fewer).judgement.verdict is Verdict.UNDECIDED


def test_a_share_on_the_bound_is_decided_by_no_number() -> None:
    assert more_queries(Counted(n=1000, over=10), 0.01, pass_error=0.01, fail_error=0.01) is None
    assert "too near" in judged(10, 1000).judgement.reason


def test_the_interval_is_clopper_and_pearsons() -> None:
    low, high = interval(3, 100, 0.05)
    assert (low, high) == pytest.approx((0.006230, 0.085176), rel=1e-3)


def test_looks_share_one_error_and_end_at_the_total() -> None:
    looks = Looks(12000, 0.01)
    assert looks.counts[-1] == 12000
    assert sorted(set(looks.counts)) == list(looks.counts)
    assert sum(looks.share(count) for count in looks.counts) == pytest.approx(0.01)
    assert Looks(30).counts == (30,)
    assert Looks(30).share(30) == 0.01


def test_independent_slow_queries_are_no_cluster() -> None:
    random = np.random.default_rng(3)
    found = 0
    for _ in range(200):
        seconds = np.cumsum(random.exponential(1 / 200, 6000))
        found += design_effect(seconds, random.random(6000) < 0.01) > 1.0
    assert found <= 4


def test_a_stall_is_one_event_and_not_two_hundred() -> None:
    seconds = np.arange(0, 60, 1 / 200)
    over = (seconds > 30) & (seconds < 31)
    effect = design_effect(seconds, over)
    assert effect > 50
    once = judged(int(over.sum()), len(over), effect=effect)
    assert once.judgement.verdict is Verdict.UNDECIDED
    assert judged(int(over.sum()), len(over)).judgement.verdict is Verdict.FAIL


def test_a_stall_in_every_twenty_seconds_fails() -> None:
    seconds = np.arange(0, 60, 1 / 200)
    over = seconds % 20 > 19
    effect = design_effect(seconds, over)
    assert judged(int(over.sum()), len(over), effect=effect).judgement.verdict is Verdict.FAIL


@pytest.mark.parametrize(
    ("ratio", "right", "decided"),
    [(0.7, Verdict.PASS, 0.95), (0.95, Verdict.PASS, 0.0), (1.05, Verdict.FAIL, 0.0), (1.5, Verdict.FAIL, 0.95)],
)
def test_verdicts_of_simulated_runs_are_right(ratio: float, right: Verdict, decided: float) -> None:
    """All looks of a run, without a server: 100 runs at each ratio of the true p99 to the bound."""
    random = np.random.default_rng(int(ratio * 100))
    share = Law(p99=ratio).share_over(1.0)
    verdicts = [_simulated(random.random(QUERIES) < share, random) for _ in range(RUNS)]
    wrong = [verdict for verdict in verdicts if verdict not in (right, Verdict.UNDECIDED)]
    assert len(wrong) <= (0 if decided else 0.01 * RUNS)
    assert verdicts.count(right) >= decided * RUNS


def _simulated(over: np.ndarray, random: np.random.Generator) -> Verdict:
    seconds = np.cumsum(random.exponential(1 / 400, len(over)))
    looks = Looks(len(over))
    for count in looks.counts:
        effect = design_effect(seconds[:count], over[:count])
        found = judged(int(over[:count].sum()), count, error=looks.share(count), effect=effect)
        if found.judgement.verdict is not Verdict.UNDECIDED:
            return found.judgement.verdict
    return Verdict.UNDECIDED


@pytest.mark.parametrize(
    ("failed", "words"),
    [(0, "20 of 1000 queries took over"), (5, "failed (5) or took over"), (20, "queries failed and")],
)
def test_what_got_no_answer_is_not_called_slow(failed: int, words: str) -> None:
    bound = Bound(kind="latency", q=0.99, limit=10.0)
    counted = Counted(n=1000, over=20, failed=failed)
    found = judge(bound, counted, pass_error=0.01, fail_error=0.01, confidence=0.99)
    assert words in found.judgement.reason
