"""Whose doing it was: the client's own part in a run, and whether that makes the run prove nothing.

Owns what is tolerated of the client. The bounds are judged before, by `decision`. Called by summary.
"""

import numpy as np

from deploy.evidence import Verdict
from deploy.serve.standing import refuses
from deploy.slo.decision import CLUSTER_ERROR, overall, too_many
from deploy.slo.finding import Finding
from deploy.slo.load import Observed
from deploy.slo.records import Bound, BoundResult, ClientSide
from deploy.slo.request import SloRequest

_SLOWEST_SENDING = 0.95
# One pause of 50 ms is no other rate, though a twentieth of a short run: that is held to four fifths of its rate.
_PAUSE_SECONDS, _SLOWEST_AT_ONCE = 0.05, 0.8
_LAG_OF_BOUND = 0.1
_LEAST_LAG_SECONDS = 0.001
# Less per token than this comes from lines that were read in one go; no language model is that quick.
_TOGETHER_SECONDS = 0.0001


def client_side(finding: Finding, request: SloRequest) -> ClientSide:
    """How the client kept its schedule: the rate it sent at, how late it was, and when it did not run."""
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
    span, sent_span = _spans(seen)
    offered = (len(seen) - 1) / span if span > 0 else request.rate
    sent = (len(seen) - 1) / sent_span if sent_span > 0 else offered
    tolerance = tolerated_lag(request) * 1000
    late = int(np.count_nonzero(lag > tolerance))
    # Half of what the strictest bound lets be slow may come from the client before it could turn a verdict.
    allowed = min(1.0 - bound.q for bound in request.bounds) / 2
    kept = not _fell_behind(seen) and late <= max(1.0, allowed * len(seen))
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


def invalid(finding: Finding, request: SloRequest, client: ClientSide) -> str | None:
    """Why the run proves nothing: None where server and client can be told apart.

    A client that was late adds to the latencies it measures, so a pass stands; a fail stands where it would have been
    one without what the client added.
    """
    if finding.cut_short:
        planned, known = request.warm_up + request.total, len(finding.seen)
        return (
            f"the load generator did not come to its end: it sent {finding.sent:,} of {planned:,} queries in time, and "
            f"how {known:,} of those that count ended is known; lower --rate if this client cannot send as fast"
        )
    if len(finding.seen) and finding.seen.failed.all() and all(map(refuses, finding.errors)):
        why = next(iter(finding.errors), "")
        return f"every query was refused, which says nothing of a server: {why}; ask it behind what guards it"
    if not len(finding.seen) and finding.by_clock:
        return (
            f"the time was up before one query that counts had come: the first {finding.warm_up} are the warm-up, and "
            f"arrivals at {request.rate:g}/s are random; raise --duration"
        )
    return _unstreamed(finding) or _blamed(finding, client)


def _unstreamed(finding: Finding) -> str | None:
    """Why nothing is said of the time between tokens: nobody saw it where answers came whole."""
    if not any(result.bound.kind == "itl" for result in finding.results) or not len(finding.seen):
        return None
    answered = ~finding.seen.failed
    together = int(np.count_nonzero(answered & (finding.seen.gap < _TOGETHER_SECONDS)))
    if together == 0 or 2 * together < int(answered.sum()) or overall(finding.results).verdict is Verdict.FAIL:
        return None
    return (
        f"all tokens of {together} of {int(answered.sum())} answers came at once: the server, or a gateway before it, "
        "does not stream, and what lies between tokens cannot be seen"
    )


def _blamed(finding: Finding, client: ClientSide) -> str | None:
    """What the client did to a run that came to its end."""
    verdict = overall(finding.results).verdict
    if not len(finding.seen) or _fell_behind(finding.seen):
        return f"the client could not keep its schedule: {client.remark}"
    if verdict is Verdict.PASS:
        return None
    if verdict is Verdict.FAIL and any(_fails_without_client(result, finding.seen) for result in finding.results):
        return None
    if verdict is Verdict.FAIL:
        return f"the client's own delays decide: without them no bound fails; {client.remark}"
    return None if client.kept_schedule else f"the client could not keep its schedule: {client.remark}"


def _spans(seen: Observed) -> tuple[float, float]:
    """Seconds from the first query to the last, as scheduled and as sent."""
    sent = seen.scheduled + seen.lag
    return float(seen.scheduled[-1] - seen.scheduled[0]), float(sent.max() - sent.min())


def _fell_behind(seen: Observed) -> bool:
    """Whether the client took so much longer to send than it was to that the rate was another one."""
    span, sent = _spans(seen)
    pause = min(_PAUSE_SECONDS, (1 / _SLOWEST_AT_ONCE - 1) * span)
    return sent - span > max((1 / _SLOWEST_SENDING - 1) * span, pause)


def tolerated_lag(request: SloRequest) -> float:
    """How late, in seconds, a query may be sent without being called late: a tenth of the tightest bound."""
    limits = [bound.limit / 1000 for bound in request.bounds if bound.kind in ("latency", "ttft")]
    return max(_LEAST_LAG_SECONDS, _LAG_OF_BOUND * min(limits, default=request.patience))


def _fails_without_client(result: BoundResult, seen: Observed) -> bool:
    """Whether a bound that fails would still do so if the client had added nothing."""
    if result.judgement.verdict is not Verdict.FAIL:
        return False
    over = _over_without_client(result.bound, seen)
    return too_many(over / result.design_effect, result.n / result.design_effect, result.allowed) <= CLUSTER_ERROR


def _over_without_client(bound: Bound, seen: Observed) -> int:
    if bound.kind == "errors":
        return int(seen.failed.sum())
    alone = seen.without_client() if bound.kind == "latency" else seen.measured(bound) - _delay(bound, seen)
    return int(np.count_nonzero(seen.failed | (alone * 1000 > bound.limit)))


def _delay(bound: Bound, seen: Observed) -> np.ndarray:
    """What the client itself may have added to a token's time: late sending, and all of its stalls meanwhile."""
    delay = seen.latency - seen.without_client()
    return np.asarray(delay if bound.kind == "ttft" else (delay - seen.lag) / np.maximum(seen.tokens - 1, 1))
