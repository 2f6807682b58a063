"""From what a run showed to the record of it: percentiles, the course of the run, and who was to blame.

Owns what is written down and whether the client's own part makes the run prove nothing; the bounds are judged in
`run` before. Called by run.
"""

from collections import Counter
from dataclasses import dataclass
from importlib import metadata
from typing import Self

import numpy as np

from deploy.evidence import Judgement, Verdict
from deploy.repository.manifest import version_digest
from deploy.slo.decision import CLUSTER_ERROR, too_many
from deploy.slo.load import LoadRun, Observed
from deploy.slo.question import Subject
from deploy.slo.records import (
    Bound,
    BoundResult,
    ClientSide,
    LatencyQuantile,
    Moment,
    ServerSide,
    SloEvidence,
    StreamSide,
)
from deploy.slo.request import SloRequest
from deploy.validate.statistics import percentile

_QUANTILES = (0.5, 0.9, 0.95, 0.99, 0.999)
_MOMENTS = 60
_MOST_ERRORS = 20
_SLOWEST_SENDING = 0.95
_LAG_OF_BOUND = 0.1
_LEAST_LAG_SECONDS = 0.001
_METHOD = (
    "open loop: seeded Poisson arrivals by MLPerf LoadGen's Server scenario; latency from the scheduled time; a failed "
    "query is completed at the client's deadline and breaks every bound; exact binomial tests at each look, the "
    "error shared among looks and bounds; clustered slow queries count for their effective number"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """What one run showed: the queries that count, how they were judged, and what else was noted."""

    results: tuple[BoundResult, ...]
    seen: Observed
    warm_up: int
    sent: int
    looks: int
    errors: dict[str, int]
    cpu_seconds: float
    cut_short: bool
    gaps: np.ndarray

    @classmethod
    def of(
        cls,
        run: LoadRun,
        warm_up: int,
        *,
        results: tuple[BoundResult, ...],
        seen: Observed,
        looks: int,
        cut_short: bool = False,
    ) -> Self:
        """The finding at this moment of a run. Errors are counted among the queries that count."""
        counted = range(warm_up, warm_up + len(seen))
        errors = Counter(why for number, why in run.failures.items() if number in counted)
        return cls(
            results=results,
            seen=seen,
            warm_up=warm_up,
            sent=run.sent,
            looks=looks,
            errors=dict(errors.most_common(_MOST_ERRORS)),
            cpu_seconds=run.cpu_seconds,
            cut_short=cut_short,
            gaps=run.gaps(warm_up, warm_up + len(seen)),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class SubjectFacts:
    """Who was asked, with what, when, for how long, and what the server counted meanwhile."""

    subject: Subject
    rows: str
    started: str
    seconds: float
    server: ServerSide | None


def summarise(finding: Finding, request: SloRequest, facts: SubjectFacts) -> SloEvidence:
    """The record of a run, with its verdict or the reason why it proves nothing."""
    seen, version = finding.seen, facts.subject.version
    client = _client(finding, request)
    milliseconds = seen.latency * 1000
    return SloEvidence(
        model=facts.subject.name,
        version=facts.subject.number,
        version_digest=version_digest(version.folder) if version else None,
        url=request.url,
        rate=request.rate,
        seed=request.seed,
        samples=facts.rows,
        seconds_asked=request.seconds,
        seconds_taken=facts.seconds,
        started=facts.started,
        judgement=_overall(finding.results),
        invalid=_invalid(finding, request, client),
        bounds=finding.results,
        queries=len(seen),
        warm_up_queries=finding.warm_up,
        looks=finding.looks,
        confidence=request.confidence,
        deadline=request.patience * 1000,
        quantiles=_quantiles(seen, request.confidence),
        distribution=tuple(float(value) for value in np.percentile(milliseconds, range(101))) if len(seen) else (),
        timeline=_timeline(seen),
        errors=finding.errors,
        client=client,
        server=facts.server,
        method=_METHOD,
        load_generator=f"mlcommons-loadgen {metadata.version('mlcommons-loadgen')}",
        remarks=tuple(_remarks(finding, request, facts.server)),
        stream=_stream(finding, request),
    )


def measured(bound: Bound, seen: Observed) -> np.ndarray:
    """The seconds that a bound is about, of each query."""
    return {"ttft": seen.first, "itl": seen.gap}.get(bound.kind, seen.latency)


def _overall(results: tuple[BoundResult, ...]) -> Judgement:
    """One failure fails, all must pass; the reason is that of the bound that decided it, or keeps it open."""
    for verdict in (Verdict.FAIL, Verdict.UNDECIDED):
        found = [result for result in results if result.judgement.verdict is verdict]
        if found:
            reason = "; ".join(f"{result.bound.wanted}: {result.judgement.reason}" for result in found)
            return Judgement(verdict=verdict, reason=reason)
    reason = "; ".join(f"{result.bound.wanted}: {result.over} of {result.n} over" for result in results)
    return Judgement(verdict=Verdict.PASS, reason=reason)


def _client(finding: Finding, request: SloRequest) -> ClientSide:
    seen = finding.seen
    if not len(seen):
        return ClientSide(
            protocol=request.protocol,
            offered_rate=request.rate,
            sent_rate=0.0,
            lag_p50=0.0,
            lag_p99=0.0,
            lag_max=0.0,
            stalled_seconds=0.0,
            cpu_seconds=finding.cpu_seconds,
            kept_schedule=False,
            remark="no query came to an end",
        )
    lag = seen.lag * 1000
    span = float(seen.scheduled[-1] - seen.scheduled[0])
    sent_span = float((seen.scheduled + seen.lag).max() - (seen.scheduled + seen.lag).min())
    offered = (len(seen) - 1) / span if span > 0 else request.rate
    sent = (len(seen) - 1) / sent_span if sent_span > 0 else offered
    tolerance = tolerated_lag(request) * 1000
    late = int(np.count_nonzero(lag > tolerance))
    # Half of what the strictest bound lets be slow may come from the client before it could turn a verdict.
    allowed = min(1.0 - bound.q for bound in request.bounds) / 2
    kept = sent >= _SLOWEST_SENDING * offered and late <= max(1.0, allowed * len(seen))
    inside = seen.stalls[(seen.stalls[:, 1] >= seen.scheduled[0]) & (seen.stalls[:, 0] <= seen.scheduled[-1])]
    return ClientSide(
        protocol=request.protocol,
        offered_rate=offered,
        sent_rate=sent,
        lag_p50=float(np.percentile(lag, 50)),
        lag_p99=float(np.percentile(lag, 99)),
        lag_max=float(lag.max()),
        stalled_seconds=float(np.sum(inside[:, 1] - inside[:, 0])),
        cpu_seconds=finding.cpu_seconds,
        kept_schedule=kept,
        remark=f"{late} of {len(seen)} queries were sent over {tolerance:.2g} ms late; {sent:.4g}/s of {offered:.4g}/s",
    )


def tolerated_lag(request: SloRequest) -> float:
    """How late, in seconds, a query may be sent without being called late: a tenth of the tightest bound."""
    limits = [bound.limit / 1000 for bound in request.bounds if bound.kind in ("latency", "ttft")]
    return max(_LEAST_LAG_SECONDS, _LAG_OF_BOUND * min(limits, default=request.patience))


def _invalid(finding: Finding, request: SloRequest, client: ClientSide) -> str | None:
    """Why the run proves nothing: None where server and client can be told apart.

    A client that was late adds to the latencies it measures, so a pass stands; a fail stands where it would have been
    one without what the client added.
    """
    if finding.cut_short:
        return (
            f"the load generator did not come to its end: {finding.sent} queries sent, {len(finding.seen)} known of "
            f"{request.total}"
        )
    verdict = _overall(finding.results).verdict
    if client.sent_rate < _SLOWEST_SENDING * client.offered_rate:
        return f"the client could not keep its schedule: {client.remark}"
    if verdict is Verdict.PASS:
        return None
    if verdict is Verdict.FAIL and any(_fails_without_client(result, finding.seen) for result in finding.results):
        return None
    if verdict is Verdict.FAIL:
        return f"the client's own delays decide: without them no bound fails; {client.remark}"
    return None if client.kept_schedule else f"the client could not keep its schedule: {client.remark}"


def _fails_without_client(result: BoundResult, seen: Observed) -> bool:
    """Whether a bound that fails would still do so if the client had added nothing."""
    if result.judgement.verdict is not Verdict.FAIL:
        return False
    over = _over_without_client(result.bound, seen)
    return too_many(over / result.design_effect, result.n / result.design_effect, result.allowed) <= CLUSTER_ERROR


def _over_without_client(bound: Bound, seen: Observed) -> int:
    if bound.kind == "errors":
        return int(seen.failed.sum())
    alone = seen.without_client() if bound.kind == "latency" else measured(bound, seen) - _delay(bound, seen)
    return int(np.count_nonzero(seen.failed | (alone * 1000 > bound.limit)))


def _delay(bound: Bound, seen: Observed) -> np.ndarray:
    """What the client itself may have added to a token's time: late sending, and all of its stalls meanwhile."""
    delay = seen.latency - seen.without_client()
    return np.asarray(delay if bound.kind == "ttft" else (delay - seen.lag) / np.maximum(seen.tokens - 1, 1))


def _quantiles(seen: Observed, confidence: float) -> tuple[LatencyQuantile, ...]:
    """The percentiles, with intervals where that many queries have one; queries of one second resemble each other."""
    return _quantiles_of(seen, seen.latency, confidence)


def _stream(finding: Finding, request: SloRequest) -> StreamSide | None:
    """What came token by token of the queries that did not fail; None where answers come whole."""
    good = finding.seen.where(~finding.seen.failed)
    if request.stream is None or not len(good):
        return None
    span = float((good.scheduled + good.latency).max() - good.scheduled.min())
    marks = {"p50": 50.0, "p90": 90.0, "p99": 99.0, "max": 100.0}
    return StreamSide(
        prompts=len(request.stream.prompts),
        tokens_per_query=request.stream.tokens,
        tokens=int(good.tokens.sum()),
        tokens_per_second=float(good.tokens.sum()) / span,
        ttft=_quantiles_of(good, good.first, request.confidence),
        itl=_quantiles_of(good, good.gap, request.confidence),
        gaps={
            name: float(np.percentile(finding.gaps * 1000, mark, method="inverted_cdf"))
            for name, mark in marks.items()
            if len(finding.gaps)
        },
    )


def _quantiles_of(seen: Observed, values: np.ndarray, confidence: float) -> tuple[LatencyQuantile, ...]:
    if not len(seen):
        return ()
    milliseconds = values * 1000
    seconds = (seen.scheduled - seen.scheduled[0]).astype(np.int64)
    rounds = [milliseconds[seconds == second].tolist() for second in np.unique(seconds)]
    found = []
    for q in _QUANTILES:
        estimate = percentile(rounds, q, confidence)
        value = float(np.quantile(milliseconds, q, method="inverted_cdf"))
        found.append(
            LatencyQuantile(
                q=q, value=value, low=estimate.low if estimate else None, high=estimate.high if estimate else None
            )
        )
    return tuple(found)


def _timeline(seen: Observed) -> tuple[Moment, ...]:
    if not len(seen):
        return ()
    times, milliseconds = seen.scheduled - seen.scheduled[0], seen.latency * 1000
    width = max(1.0, float(times[-1]) / _MOMENTS)
    stretch = (times / width).astype(np.int64)
    moments = []
    for number in np.unique(stretch):
        inside = stretch == number
        p50, p99 = np.percentile(milliseconds[inside], [50, 99], method="inverted_cdf")
        moments.append(
            Moment(
                second=float(number) * width,
                queries=int(inside.sum()),
                p50=float(p50),
                p99=float(p99),
                maximum=float(milliseconds[inside].max()),
                failed=int(seen.failed[inside].sum()),
            )
        )
    return tuple(moments)


def _remarks(finding: Finding, request: SloRequest, server: ServerSide | None) -> list[str]:
    found = []
    span = float(finding.seen.scheduled[-1] - finding.seen.scheduled[0]) if len(finding.seen) else 0.0
    if span < request.min_seconds and _overall(finding.results).verdict is Verdict.PASS:
        found.append(f"the load lasted {span:.1f} s, under {request.min_seconds:g} s: a rarer stall was not seen")
    clustered = max((result.design_effect for result in finding.results), default=1.0)
    if clustered > 1.0:
        found.append(f"slow queries came in clusters: each counts for 1/{clustered:.3g} of one")
    if server is None:
        found.append("the server offers no counters, or was gone at the end: where the time went is not known")
    elif server.restarted:
        found.append("the server or the model was loaded anew during the run: its counters began at zero")
    if finding.errors:
        why, count = next(iter(finding.errors.items()))
        found.append(f"{sum(finding.errors.values())} queries failed, {count} of them: {why}")
    return found
