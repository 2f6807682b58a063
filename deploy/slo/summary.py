"""From what a run showed to the record of it: percentiles, the course of the run, and remarks.

Owns what is written down; the bounds are judged by `decision`, the client's part by `blame`. Called by run.
"""

from dataclasses import dataclass
from importlib import metadata

import numpy as np

from deploy.evidence import Verdict
from deploy.slo.blame import client_side, invalid
from deploy.slo.decision import overall
from deploy.slo.finding import Finding
from deploy.slo.load import Observed
from deploy.slo.question import Subject
from deploy.slo.records import LatencyQuantile, Moment, ServerSide, SloEvidence, StreamSide
from deploy.slo.request import SloRequest
from deploy.validate.statistics import percentile

_QUANTILES = (0.5, 0.9, 0.95, 0.99, 0.999)
_MOMENTS = 60
_METHOD = (
    "open loop: seeded Poisson arrivals by MLPerf LoadGen's Server scenario; latency from the scheduled time; a failed "
    "query is completed at the client's deadline and breaks every bound; exact binomial tests at each look, the "
    "error shared among looks and bounds; clustered slow queries count for their effective number"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class SubjectFacts:
    """Who was asked, with what, when, for how long, and what the server counted meanwhile.

    `digest` is the version's before the load, None without a repository. `answering` are the versions that answered
    requests without a number, before and after, as the metadata says.
    """

    subject: Subject
    digest: str | None
    rows: str
    started: str
    seconds: float
    server: ServerSide | None
    answering: tuple[str, str]


def summarise(finding: Finding, request: SloRequest, facts: SubjectFacts) -> SloEvidence:
    """The record of a run, with its verdict or the reason why it proves nothing."""
    seen = finding.seen
    client = client_side(finding, request)
    milliseconds = seen.latency * 1000
    return SloEvidence(
        model=facts.subject.name,
        version=facts.subject.number,
        version_digest=facts.digest,
        url=request.url,
        rate=request.rate,
        seed=request.seed,
        samples=facts.rows,
        seconds_asked=request.seconds,
        seconds_taken=facts.seconds,
        started=facts.started,
        judgement=overall(finding.results),
        invalid=_mixed(finding, facts) or invalid(finding, request, client),
        bounds=finding.results,
        queries=len(seen),
        warm_up_queries=finding.warm_up,
        looks=finding.looks,
        confidence=request.confidence,
        deadline=request.patience * 1000,
        quantiles=_quantiles(seen, seen.latency, request.confidence),
        distribution=tuple(float(value) for value in np.percentile(milliseconds, range(101))) if len(seen) else (),
        timeline=_timeline(seen),
        errors=finding.errors,
        answered=finding.versions,
        client=client,
        server=facts.server,
        method=_METHOD,
        load_generator=f"mlcommons-loadgen {metadata.version('mlcommons-loadgen')}",
        remarks=tuple(_remarks(finding, request, facts)),
        stream=_stream(finding, request),
    )


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
        ttft=_quantiles(good, good.first, request.confidence),
        itl=_quantiles(good, good.gap, request.confidence),
        gaps={
            name: float(np.percentile(finding.gaps * 1000, mark, method="inverted_cdf"))
            for name, mark in marks.items()
            if len(finding.gaps)
        },
    )


def _quantiles(seen: Observed, values: np.ndarray, confidence: float) -> tuple[LatencyQuantile, ...]:
    """The percentiles in ms of `values`, which are seconds, with intervals where that many queries have one.

    Queries of one second resemble each other, so a second is one round.
    """
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


def _remarks(finding: Finding, request: SloRequest, facts: SubjectFacts) -> list[str]:
    found = []
    span = float(finding.seen.scheduled[-1] - finding.seen.scheduled[0]) if len(finding.seen) else 0.0
    if span < request.min_seconds and overall(finding.results).verdict is Verdict.PASS:
        found.append(f"the load lasted {span:.1f} s, under {request.min_seconds:g} s: a rarer stall was not seen")
    if finding.by_clock and len(finding.seen):
        found.append(f"the time was up after {len(finding.seen)} of {request.total} queries: arrivals are random")
    clustered = max((result.design_effect for result in finding.results), default=1.0)
    if clustered > 1.0:
        found.append(f"slow queries came in clusters: each counts for 1/{clustered:.3g} of one")
    if facts.server is None:
        found.append("the server offers no counters, or was gone at the end: where the time went is not known")
    elif facts.server.restarted:
        found.append("the server or the model was loaded anew during the run: its counters began at zero")
    if versions := _versions(finding, facts):
        found.append(versions)
    if finding.errors:
        why, count = next(iter(finding.errors.items()))
        found.append(f"{sum(finding.errors.values())} queries failed, {count} of them: {why}")
    return found


def _mixed(finding: Finding, facts: SubjectFacts) -> str | None:
    """Why a verdict would be of more than one version; None where one answered, or the requests named it."""
    way_out = "no verdict is made of two versions: name one, as NAME:N, or ask again"
    if len(finding.versions) > 1:
        counts = " and ".join(f"version {version} answered {count}" for version, count in finding.versions.items())
        return f"{counts} of the queries; {way_out}"
    old, new = _before_and_after(facts)
    if finding.versions or not (old and new) or old == new:
        return None
    return f"version {new} took the place of version {old} during the run; {way_out}"


def _versions(finding: Finding, facts: SubjectFacts) -> str:
    """What is to be said of the versions that answered beside the verdict; empty where nothing is."""
    if facts.subject.number is not None or len(finding.versions) > 1:
        return ""
    old, new = _before_and_after(facts)
    if not finding.versions:
        unknown = facts.server is None and not (old and new)
        said = "the server does not say which version answers: one that took another's place would not be seen"
        return said if unknown else ""
    (version,) = finding.versions
    swapped = old and new and old != new
    changed = f", although version {new} took the place of version {old} meanwhile" if swapped else ""
    return f"version {version} gave the answers that count{changed}"


def _before_and_after(facts: SubjectFacts) -> tuple[str, str]:
    """The versions that answered requests without a number, by what the server says of itself; empty if it does not."""
    if facts.subject.number is not None:
        return "", ""
    if facts.server is not None:
        return facts.server.replaced or ("", "")
    return facts.answering
