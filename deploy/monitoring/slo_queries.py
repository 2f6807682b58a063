"""PromQL for a promise: which share of requests broke it, and how fast its budget burns.

Owns what is known of latency from each way of exporting it, and what is not. Called by rules and dashboard.

    histograms  requests per bucket: the share over a bound is exact where a bucket ends at the bound
    summaries   quantiles of each server's last minute: a lower bound of that share, by the moment
    counters    a mean, which says nothing about a share: an objective on latency cannot be watched

Triton has had the histogram for every model since core #464 of December 2025, for decoupled ones since 24.11; whether
a release has it is the target's `latency_histograms`. Summaries are older than any target, and cost throughput: server
#8561 measured a third of a fast model's.
"""

from typing import Literal

from deploy.errors import UsageError
from deploy.monitoring.burn import BURNS, Burn
from deploy.monitoring.objective import Objective
from deploy.monitoring.queries import FAILURES, LEAST, SUCCESSES, Subject, failure_share, matchers

HISTOGRAM = "nv_inference_first_response_histogram_ms"
SUMMARY = "nv_inference_request_summary_us"
SLOW_NOW = "model:triton_slo_slow:share"
"""The recorded series of `slow_now`."""

Measure = Literal["histograms", "summaries"]

_HAIR = 1.001
_LOW_QUANTILES = (0.05, 0.5)


def bad_share(objective: Objective, subject: Subject, window: str, *, measure: Measure) -> str:
    """The share of the window's requests that broke the promise, slow or failed; 0 without traffic."""
    if objective.bound_ms is None:
        return failure_share(subject, window)
    if measure == "histograms":
        return _from_histogram(objective, subject, window)
    return _from_summaries(objective, subject, window)


def latency_quantile(subject: Subject, quantile: float, window: str) -> str:
    """Milliseconds by which that share of requests was answered, interpolated between buckets; histograms only."""
    return f"histogram_quantile({quantile:g}, {subject.sum_rate(f'{HISTOGRAM}_bucket', window, by=('le',))})"


def slow_now(objective: Objective, subject: Subject, burns: tuple[Burn, ...] = BURNS) -> str:
    """A lower bound of the share over the bound in the last minute of the worst server, from summaries.

    Where the q-quantile is over the bound, at least 1 - q of the requests were. The quantiles are those of
    `summary_quantiles`, and each that is over adds what it proves beyond the next higher one. Not known are the share
    between two quantiles, and how many requests the worst server had of all.
    """
    assert objective.bound_ms is not None
    steps, proven = [], 0.0
    for quantile in reversed(summary_quantiles((objective,), burns)):
        series = subject.select(SUMMARY, extra=f'quantile="{quantile:g}"')
        over = f"max by ({', '.join(subject.by)}) ({series} > bool {objective.bound_ms * 1000:.15g})"
        steps.append(f"{1 - quantile - proven:.6g} * {over}")
        proven = 1 - quantile
    return " + ".join(steps)


def summary_quantiles(objectives: tuple[Objective, ...], burns: tuple[Burn, ...] = BURNS) -> tuple[float, ...]:
    """The quantiles whose crossing proves that a budget burns fast enough for an alarm, ascending.

    A budget of 1 % burns 14.4 times too fast when 14.4 % are slow, that is when the 85.6 % quantile is over the bound.
    Set a hair below, so that reaching it is over the alarm's limit. Below these a few tell a bad hour from an outage.
    """
    watched = [objective for objective in objectives if objective.bound_ms is not None]
    found = {
        round(1.0 - burn.factor * objective.budget * _HAIR, 6)
        for objective in watched
        for burn in burns
        if burn.can_fire(objective.budget)
    }
    return tuple(sorted(found | {low for low in _LOW_QUANTILES if found and low < min(found)}))


def unmeasured(objective: Objective, subject: Subject, *, measure: Measure) -> str:
    """A series where the model is served and what its promise is judged by is not exported: no alarm could fire."""
    if objective.bound_ms is None:
        series = subject.select(FAILURES)
    elif measure == "histograms":
        series = subject.select(f"{HISTOGRAM}_bucket", extra=_at(objective.bound_ms))
    else:
        highest = max(summary_quantiles((objective,)))
        series = subject.select(SUMMARY, extra=f'quantile="{highest:g}"')
    kept = ", ".join(subject.by)
    return f"count by ({kept}) ({subject.select(SUCCESSES)}) unless on ({kept}) {series}"


def _from_histogram(objective: Objective, subject: Subject, window: str) -> str:
    """A failure that was slow counts twice at most: whether Triton observes it differs by where it failed."""
    assert objective.bound_ms is not None
    counted = subject.sum_rate(f"{HISTOGRAM}_count", window)
    within = subject.sum_rate(f"{HISTOGRAM}_bucket", window, extra=_at(objective.bound_ms))
    failed, answered = subject.sum_rate(FAILURES, window), subject.sum_rate(SUCCESSES, window)
    return f"clamp(({counted} - {within} + {failed}) / clamp_min({failed} + {answered}, {LEAST}), 0, 1)"


def _from_summaries(objective: Objective, subject: Subject, window: str) -> str:
    """The mean over the window's moments, not over its requests: a quiet minute weighs as much as a busy one."""
    recorded = f"{SLOW_NOW}{{{matchers((('model', objective.model), ('slo', objective.name)))}}}"
    slow = f"max by ({', '.join(subject.by)}) (avg_over_time({recorded}[{window}]))"
    return f"clamp({slow} + {failure_share(subject, window)}, 0, 1)"


def _at(bound_ms: float) -> str:
    """The matcher of the bucket that ends at the bound. Prometheus 3 writes `15.0` where Triton writes `15`."""
    text = f"{bound_ms:.15g}"
    if "e" in text:
        raise UsageError(f"a bound of {text} ms is no bucket's", expected="between 0.0001 and 1e15 ms")
    return f'le=~"{text.replace(".", chr(92) * 2 + ".")}"' if "." in text else f'le=~"{text}(\\\\.0)?"'
