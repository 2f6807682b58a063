"""The intervals cover what they promise, under laws and noises that latencies really have."""

import math
from collections.abc import Callable
from statistics import NormalDist

import numpy as np
import pytest

from deploy.validate.statistics import effective_size, order_ranks, paired_ratio, percentile, smallest_n

Rounds = list[list[float]]
RUNS = 1000


def coverage(draw: Callable[[], Rounds], q: float, truth: float) -> float:
    """The share of runs whose interval exists and encloses the truth, over those where it exists."""
    found = [percentile(draw(), q, 0.95) for _ in range(RUNS)]
    existing = [estimate for estimate in found if estimate is not None]
    assert len(existing) > 0.8 * RUNS
    return sum(estimate.low <= truth <= estimate.high for estimate in existing) / len(existing)


@pytest.mark.parametrize(("q", "n"), [(0.5, 6), (0.9, 36), (0.95, 72), (0.99, 368)])
def test_an_interval_exists_from_the_smallest_n_on_and_not_before(q: float, n: int) -> None:
    assert smallest_n(q, 0.95) == n
    assert order_ranks(n, q, 0.95) is not None
    assert order_ranks(n - 1, q, 0.95) is None
    assert percentile([[float(value)] for value in range(n - 1)], q, 0.95) is None


@pytest.mark.parametrize(
    ("n", "q", "ranks"),
    [(100, 0.5, (40, 61)), (10, 0.5, (2, 9)), (6, 0.5, (1, 6)), (100, 0.9, (84, 96))],
)
def test_ranks_agree_with_the_binomial_summed_in_whole_numbers(n: int, q: float, ranks: tuple[int, int]) -> None:
    below = [math.comb(n, k) * q**k * (1 - q) ** (n - k) for k in range(n + 1)]
    low = max(rank for rank in range(n + 1) if sum(below[:rank]) <= 0.025)
    high = min(rank for rank in range(1, n + 2) if sum(below[:rank]) >= 0.975)
    assert (low, high) == ranks == order_ranks(n, q, 0.95)


def test_ranks_of_very_many_samples_are_finite() -> None:
    ranks = order_ranks(1_000_000, 0.99, 0.95)
    assert ranks is not None
    assert ranks[0] < 990_000 < ranks[1] < 991_000


@pytest.mark.parametrize("q", [0.5, 0.9, 0.95, 0.99])
def test_percentiles_of_a_skewed_law_are_covered(q: float) -> None:
    random = np.random.default_rng(1)
    truth = math.exp(NormalDist().inv_cdf(q))
    assert coverage(lambda: random.lognormal(0.0, 1.0, (140, 5)).tolist(), q, truth) >= 0.93


@pytest.mark.parametrize("q", [0.5, 0.9])
def test_percentiles_are_covered_although_calls_of_a_round_resemble_each_other(q: float) -> None:
    random = np.random.default_rng(2)

    def draw() -> Rounds:
        shared = random.normal(0.0, 1.0, (40, 1))
        rounds: Rounds = np.exp(shared + random.normal(0.0, 1.0, (40, 10))).tolist()
        return rounds

    truth = math.exp(math.sqrt(2.0) * NormalDist().inv_cdf(q))
    assert coverage(draw, q, truth) >= 0.93
    naive = [percentile([[x] for row in draw() for x in row], q, 0.95) for _ in range(200)]
    assert sum(e is not None and e.low <= truth <= e.high for e in naive) / len(naive) < 0.85, "the noise is too tame"


@pytest.mark.parametrize(("rounds", "q"), [(25, 0.95), (50, 0.99)])
def test_a_wrong_tail_interval_is_rare_although_few_rounds_hide_how_alike_their_calls_are(
    rounds: int, q: float
) -> None:
    random = np.random.default_rng(6)
    truth, wrong = math.exp(math.sqrt(5.0) * NormalDist().inv_cdf(q)), 0
    for _ in range(RUNS):
        alike = random.normal(0.0, 2.0, (rounds, 1)) + random.normal(0.0, 1.0, (rounds, 10))
        found = percentile(np.exp(alike).tolist(), q, 0.95)
        wrong += found is not None and not found.low <= truth <= found.high
    assert wrong / RUNS <= 0.04


def test_independent_calls_count_in_full_and_identical_rounds_once_each() -> None:
    alternating = [[float(round_ % 2)] for round_ in range(100)]
    blocks = [[float(round_ % 2)] * 10 for round_ in range(100)]
    assert effective_size(alternating, 0.5) == 100
    assert effective_size(blocks, 0.5) == 100


def drifting_pair(random: np.random.Generator, rounds: int, ratio: float) -> tuple[Rounds, Rounds]:
    """Two contenders on a machine whose speed drifts: AR(1) noise from block to block, 0.97 alike, plus spikes."""
    slots, level, noise = 2 * rounds, 0.0, []
    for _ in range(slots):
        level = 0.97 * level + random.normal(0.0, 0.05)
        noise.append(level)
    ours: Rounds = []
    base: Rounds = []
    for index in range(rounds):
        first = int(random.integers(2))
        for contender, slot, typical in ((ours, 2 * index + first, ratio), (base, 2 * index + 1 - first, 1.0)):
            jitter = random.normal(0.0, 0.02, 5) + random.exponential(0.03, 5)
            contender.append((typical * np.exp(noise[slot] + jitter)).tolist())
    return ours, base


@pytest.mark.parametrize(("rounds", "ratio"), [(6, 1.0), (12, 0.7), (50, 1.0)])
def test_a_ratio_is_covered_although_the_machine_drifts(rounds: int, ratio: float) -> None:
    random = np.random.default_rng(3)
    hits = 0
    for _ in range(RUNS):
        found = paired_ratio(*drifting_pair(random, rounds, ratio), 0.95)
        assert found is not None
        hits += found.low <= ratio <= found.high
    assert hits / RUNS >= 0.93


def test_resampling_calls_would_cover_too_little_with_few_rounds() -> None:
    random = np.random.default_rng(4)
    intervals = [pooled_bootstrap(random, *drifting_pair(random, 6, 1.0)) for _ in range(RUNS)]
    assert sum(low <= 1.0 <= high for low, high in intervals) / RUNS < 0.9


def test_pairing_is_tighter_than_resampling_calls_with_many_rounds() -> None:
    random = np.random.default_rng(5)
    pairs = [drifting_pair(random, 50, 1.0) for _ in range(200)]
    pooled = [high - low for low, high in (pooled_bootstrap(random, *pair) for pair in pairs)]
    paired = [found.high - found.low for pair in pairs if (found := paired_ratio(*pair, 0.95))]
    assert np.median(paired) < 0.85 * np.median(pooled)


def pooled_bootstrap(random: np.random.Generator, ours: Rounds, base: Rounds) -> tuple[float, float]:
    """What one would do without thinking of drift: resample the calls of each side."""
    mine, theirs = (np.concatenate(side) for side in (ours, base))
    medians = [np.median(random.choice(side, (60, len(side))), axis=1) for side in (mine, theirs)]
    low, high = np.quantile(medians[0] / medians[1], [0.025, 0.975])
    return float(low), float(high)


def test_a_ratio_of_five_rounds_has_no_interval() -> None:
    assert paired_ratio([[1.0]] * 5, [[2.0]] * 5, 0.95) is None


def test_the_value_is_a_latency_that_occurred_and_lies_in_its_interval() -> None:
    samples = [[1.0, 9.0, 2.0], [3.0, 100.0, 4.0], [5.0, 6.0, 7.0]]
    found = percentile(samples, 0.5, 0.95)
    assert found is not None
    assert found.value == 5.0
    assert found.low <= found.value <= found.high
