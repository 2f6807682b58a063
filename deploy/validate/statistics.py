"""Percentiles and ratios of latencies, with intervals that assume no law.

Owns the arithmetic and says what each interval does and does not cover; measures nothing. Called by latency, and
by whoever else has samples to sum up. Samples come in rounds: calls made back to back, which resemble each other.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

Round = Sequence[float]

# A control whose interval, with 1 taken in, spans more than this factor shows a machine on which no difference between
# formats can be believed: runtimes do not suffer alike from a busy neighbour. Two threads of OpenMP that spin while
# they wait for each other lose far more to it than ONNX Runtime's do, and what is compared then is the neighbour.
TOO_NOISY = 1.5


@dataclass(frozen=True, slots=True, kw_only=True)
class Estimate:
    """A value and its two-sided confidence interval, in the unit of the samples."""

    value: float
    low: float
    high: float


def order_ranks(n: int, q: float, confidence: float) -> tuple[int, int] | None:
    """The ranks (from 1) of the two order statistics of `n` independent samples that enclose the q-quantile.

    Exact for every law, by the binomial number of samples below the quantile, with equal tails (Hahn, Meeker and
    Escobar, Statistical Intervals, 2nd ed. 2017, section 5.2). None where no sample lies far enough out at that n.
    """
    tail = (1.0 - confidence) / 2
    below = _binomial_cdf(n, q)
    low = int(np.searchsorted(below, tail, side="right"))
    high = int(np.searchsorted(below, 1.0 - tail, side="left")) + 1
    return (low, high) if low >= 1 and high <= n else None


def smallest_n(q: float, confidence: float) -> int:
    """The number of independent samples from which on the interval of the q-quantile exists."""
    return math.ceil(math.log((1.0 - confidence) / 2) / math.log(max(q, 1.0 - q)))


def percentile(rounds: Sequence[Round], q: float, confidence: float) -> Estimate | None:
    """The q-quantile of all samples and its interval; None where the interval does not exist.

    Calls of one round share whatever the machine did then, so they count as fewer than their number: the exact ranks
    are those of `effective_size` independent samples, stretched outwards to the samples there are (Woodruff, JASA
    1952, with the design effect of Kish, 1965). For independent samples that is the exact interval itself. It speaks
    of the conditions the run met, not of a machine busier or idler than that.

    Few correlated rounds cannot show how correlated their tail is, and an interval that exists only where they seemed
    independent is chosen for being too narrow. Simulated with normal logarithms (400 runs each; 12 to 300 rounds of 4
    to 40 calls; correlation within a round 0.2, 0.5, 0.8; p90, p95, p99 at 95 %), the design effect at the quantile
    alone gave a wrong interval in up to 8 % of the runs, and where it seldom existed (p99 of 50 rounds of 10 calls at
    0.8: in 23 % of the runs) it covered in only 67 % of those. With `effective_size` as it is, a wrong one is given in
    at most 5 % of the runs. What remains: where one seldom exists (p95 of 12 rounds of 10 calls at 0.5: in 6 % of the
    runs) it covers in 79 % of those; and where correlated rounds give one it may be twice as wide as need be.
    """
    pooled = np.sort(np.concatenate([np.asarray(samples, dtype=np.float64) for samples in rounds]))
    n, effective = len(pooled), effective_size(rounds, q)
    ranks = order_ranks(effective, q, confidence)
    if ranks is None:
        return None
    low = (ranks[0] - 1) * n // effective
    high = -(-ranks[1] * n // effective) - 1
    return Estimate(value=float(_quantile(pooled, q)), low=float(pooled[low]), high=float(pooled[high]))


def effective_size(rounds: Sequence[Round], q: float) -> int:
    """How many independent samples say as much about the q-quantile as these; between rounds and samples in number.

    The design effect is taken at the quantile and where the tail beyond it is four times as large, and the larger of
    the two counts: so few samples lie in a far tail that their own correlation is as good as unknown.
    """
    n = sum(map(len, rounds))
    tail = min(0.5, 4.0 * min(q, 1.0 - q))
    nearer = tail if q < 0.5 else 1.0 - tail
    design_effect = max(_design_effect(rounds, q), _design_effect(rounds, nearer))
    return n if design_effect <= 1.0 else max(len(rounds), int(n / design_effect))


def _design_effect(rounds: Sequence[Round], q: float) -> float:
    """The variance, over rounds, of how many samples lie at or below the quantile, over what independent ones give."""
    pooled = np.concatenate([np.asarray(samples, dtype=np.float64) for samples in rounds])
    threshold = _quantile(pooled, q)
    excess = [float(np.count_nonzero(np.asarray(samples) <= threshold)) - q * len(samples) for samples in rounds]
    return float(np.sum(np.square(excess))) / (len(pooled) * q * (1.0 - q))


def paired_ratio(ours: Sequence[Round], base: Sequence[Round], confidence: float) -> Estimate | None:
    """The median over rounds of (median of ours / median of base), with its exact order-statistic interval.

    A shared machine drifts, and its noise lasts longer than a call. Resampling pooled calls as if they were
    independent gives too narrow an interval from few rounds and too wide a one from many. Both sides of one round
    met the same conditions, which cancel in its ratio: randomised interleaved trials (Abedi and Brecht, ICPE 2017)
    judged by pairs (Bulej et al., Duet Benchmarking, ICPE 2020). What is left changes sign with the random order
    inside a round, so the ratios are nearly independent, and their median needs no law. None with too few rounds
    (6 at 95 %). One pair of processes is compared: how far another start could land, the A/A control shows.
    """
    ratios = [float(np.median(mine) / np.median(theirs)) for mine, theirs in zip(ours, base, strict=True)]
    return percentile([[ratio] for ratio in ratios], 0.5, confidence)


def span(low: float, high: float) -> float:
    """How far apart, as a factor, the ends of a ratio's interval lie with 1 taken in; 1 for no interval at all."""
    return max(high, 1.0) / min(low, 1.0)


def _quantile(samples: np.ndarray, q: float) -> float:
    """The smallest sample that at least a share q of the samples does not exceed: a latency that did occur."""
    return float(np.quantile(samples, q, method="inverted_cdf"))


def _binomial_cdf(n: int, q: float) -> np.ndarray:
    """P(B <= k) for k = 0..n and B binomial, summed from logarithms so that no term overflows."""
    k = np.arange(1, n + 1, dtype=np.float64)
    steps = np.log((n - k + 1) / k) + math.log(q) - math.log1p(-q)
    logs = n * math.log1p(-q) + np.concatenate([[0.0], np.cumsum(steps)])
    return np.asarray(np.minimum(np.cumsum(np.exp(logs)), 1.0))
