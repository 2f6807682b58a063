"""One load run and its verdict, as soon as the rule allows one.

Owns the order of a run and when it is looked at; the rule is in `decision`, the child in `load`, what is recorded in
`summary`. Called by the command `slo`, rates and tune.

    1. The subject, its rows, and what the server declares: anything that does not fit, is not as it was published, or
       is answered otherwise, is refused before any load.
    2. The server's counters, then the load.
    3. At each look the bounds are judged, until one fails, all pass, or the queries are used up.
    4. The load is ended, the counters are read again, and the client is asked whether it kept its schedule.
"""

import time
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime

import numpy as np

from deploy.errors import UnfinishedError, UsageError
from deploy.evidence import Verdict
from deploy.progress import Progress, Silent
from deploy.repository.integrity import require_intact
from deploy.scratch import scratch_folder
from deploy.slo.counters import ServerTalk, compare
from deploy.slo.decision import Counted, Looks, at_best, design_effect, judge
from deploy.slo.finding import Finding
from deploy.slo.generator import LoadPlan
from deploy.slo.identity import check_same
from deploy.slo.load import NEWS_SECONDS, LoadRun, Observed
from deploy.slo.question import find_rows, find_subject, make_query, make_stream_query
from deploy.slo.records import Bound, BoundResult, SloEvidence
from deploy.slo.request import SloRequest
from deploy.slo.rest import wait_for_rest
from deploy.slo.summary import SubjectFacts, summarise
from deploy.slo.wire import Query, unreachable

_POLL_SECONDS = 0.1
_REACH_SECONDS = 5.0
# Beyond the schedule and the deadline: starting the child, and the trace's way through the disk.
_GRACE_SECONDS = 20.0
# A transient is not a verdict: nothing fails earlier than this, unless the whole run is shorter.
_EARLIEST_FAIL_SECONDS = 5.0


def check_slo(request: SloRequest, *, progress: Progress = Silent()) -> SloEvidence:
    """The verdict on every bound, with what the run showed of server and client.

    Raises UsageError if the version in the repository has changed or what is asked does not fit the server,
    UnfinishedError if there is none, or it does not answer as the version in the repository.
    """
    return measure_slo(prepared(request), progress=progress)


def prepared(request: SloRequest) -> SloRequest:
    """The same of the version that is promoted now, once it is found intact, and behind the server.

    Raises as `check_slo` does, but for what does not fit the server.
    """
    request = pinned(request)
    _check_intact(request)
    check_same(request)
    return request


def pinned(request: SloRequest) -> SloRequest:
    """The same of the version that is the promoted one now, where a repository is at hand and no number was said.

    One that is promoted during the run neither takes part in it nor is credited with it. Raises UsageError if there is
    no such version.
    """
    return replace(request, reference=str(find_subject(request.reference, request.repository)))


def _check_intact(request: SloRequest) -> None:
    """Raises UsageError if the version that gives the samples, and is credited with the result, has changed."""
    subject = find_subject(request.reference, request.repository)
    if subject.version is not None:
        require_intact(subject.version)


def measure_slo(request: SloRequest, *, progress: Progress = Silent(), rested: bool = False) -> SloEvidence:
    """The same verdict on a version that the caller found intact: a search asks often, and digests take their time.

    `rested`: what an earlier load left in the server's queue is waited for first.
    """
    for bound in request.bounds:
        if bound.kind == "latency" and bound.limit / 1000 >= request.patience:
            raise UsageError(
                f"the client would wait {request.patience:g} s, no longer than {bound.wanted} allows",
                expected="a deadline beyond every bound",
                fix="raise --timeout-ms",
            )
    subject = find_subject(request.reference, request.repository)
    digest = subject.digest()
    if why := unreachable(request.url, _REACH_SECONDS):
        raise UnfinishedError(
            f"nobody listens at {request.url}: {why}",
            expected="a server that is ready",
            fix="start it, or correct --url",
        )
    with ServerTalk(request.url, request.protocol) as talk:
        metadata = talk.metadata(subject.name, subject.on_the_wire)
        if request.stream is not None:
            query, source = make_stream_query(subject, request.stream, metadata)
        else:
            talk.require_single(subject.name, subject.on_the_wire)
            rows = find_rows(subject, request.samples, metadata)
            query, source = make_query(subject, rows, metadata), rows.source
        if rested:
            wait_for_rest(plan_of(request, query))
        before, first = talk.counters(subject.name, subject.on_the_wire), talk.answering(subject.name)
        started, began = datetime.now(UTC).isoformat(timespec="seconds").replace("+00:00", "Z"), time.monotonic()
        with progress.stage(f"load {subject} at {request.rate:g}/s"):
            finding = drive(request, query)
        seconds = time.monotonic() - began
        server = compare(before, talk.counters(subject.name, subject.on_the_wire))
        answering = (first, talk.answering(subject.name))
    facts = SubjectFacts(
        subject=subject,
        digest=digest,
        rows=source,
        started=started,
        seconds=seconds,
        server=server,
        answering=answering,
    )
    return summarise(finding, request, facts)


def drive(request: SloRequest, query: Query) -> Finding:
    """What was seen and judged of one run, ended as soon as it is decided."""
    plan = plan_of(request, query)
    with scratch_folder("load") as folder, LoadRun(plan, folder) as run:
        try:
            return watch(request, run)
        except KeyboardInterrupt as interrupt:
            counted = max(0, run.known - request.warm_up)
            said = f"{counted:,} of {request.total:,} queries that count had ended; nothing was judged, nothing is kept"
            raise KeyboardInterrupt(said) from interrupt


def watch(request: SloRequest, run: LoadRun, *, pause: Callable[[float], None] = time.sleep) -> Finding:
    """What was seen and judged of a running load, when it is decided, has ended, or its time is up.

    A query counts if it was sent by the closing, a deadline before the time is up: each has ended then, the slow ones
    too. Later ones would count where they were quick alone.
    """
    looks = Looks(request.total, 1.0 - request.confidence)
    waiting = iter(looks.counts)
    count = next(waiting)
    taken = 0
    closing = run.now() + request.seconds + request.warm_up_seconds + _GRACE_SECONDS - NEWS_SECONDS
    until = closing + request.patience + NEWS_SECONDS
    while True:
        ended = run.ended or run.now() > until
        run.read(to_the_end=ended)
        while run.known_of(closing) >= request.warm_up + count:
            taken += 1
            seen = run.observed().between(request.warm_up, request.warm_up + count)
            results = judge_all(request, looks, seen)
            found = Finding.of(run, request.warm_up, results=results, seen=seen, looks=taken)
            if count == request.total or _enough(request, found):
                return found
            count = next(waiting)
        if ended:
            return _ended(request, looks, run, taken=taken, count=run.known_of(closing))
        pause(_POLL_SECONDS)


def _ended(request: SloRequest, looks: Looks, run: LoadRun, *, taken: int, count: int) -> Finding:
    """What was seen of a run that ended before all its queries: by the clock, which `count` had reached, or cut short.

    Arrivals are random, and a low rate's may take much longer than planned.
    """
    by_clock = run.complete or (not run.ended and run.keeps_pace())
    seen = run.observed().between(request.warm_up, count if by_clock else run.known)
    results = judge_all(request, looks, seen, last=True)
    found = Finding.of(run, request.warm_up, results=results, seen=seen, looks=taken + 1)
    return replace(found, by_clock=by_clock, cut_short=not by_clock)


def judge_all(request: SloRequest, looks: Looks, seen: Observed, *, last: bool = False) -> tuple[BoundResult, ...]:
    """Every bound by what was seen so far. To pass, all must; to fail, one is enough, so that they share its error.

    `last`: no other look follows, however few queries there were.
    """
    error = looks.share(looks.total if last else len(seen))
    left = 0 if last else looks.total - len(seen)
    return tuple(
        judge(
            bound,
            _count(bound, seen, left=left, rate=request.rate),
            pass_error=error,
            fail_error=error / len(request.bounds),
            confidence=request.confidence,
        )
        for bound in request.bounds
    )


def over_bound(bound: Bound, seen: Observed) -> np.ndarray:
    """Which queries broke the bound: a failed one breaks every bound."""
    if bound.kind == "errors":
        return seen.failed
    return np.asarray(seen.failed | (seen.measured(bound) * 1000 > bound.limit))


def _count(bound: Bound, seen: Observed, *, left: int, rate: float) -> Counted:
    over = over_bound(bound, seen)
    slow = int(over.sum())
    # Fewer slow ones than the bound allows are no fail, whatever follows; and the look at what may takes a while.
    may_fail = slow > (1.0 - bound.q) * len(over)
    return Counted(
        n=len(over),
        over=slow,
        design_effect=design_effect(seen.scheduled, over),
        failed=int(seen.failed.sum()),
        at_best=at_best(seen.scheduled, over, left=left, rate=rate) if may_fail else None,
    )


def _enough(request: SloRequest, found: Finding) -> bool:
    """Whether the run may end before its queries are used up: what two versions answered proves nothing."""
    if len(found.versions) > 1:
        return True
    verdicts = {result.judgement.verdict for result in found.results}
    span = float(found.seen.scheduled[-1] - found.seen.scheduled[0])
    if Verdict.FAIL in verdicts:
        return span >= min(_EARLIEST_FAIL_SECONDS, request.min_seconds)
    return verdicts == {Verdict.PASS} and span >= request.min_seconds


def plan_of(request: SloRequest, query: Query) -> LoadPlan:
    """The load that a request asks for: the warm-up, then all queries that may count."""
    latencies = [bound for bound in request.bounds if bound.kind == "latency"]
    told = max(latencies, key=lambda bound: bound.q, default=None)
    return LoadPlan(
        address=request.url,
        protocol=request.protocol,
        query=query,
        rate=request.rate,
        queries=request.warm_up + request.total,
        deadline=request.patience,
        seed=request.seed,
        target_seconds=told.limit / 1000 if told else request.patience,
        percentile=told.q if told else 0.99,
        stream=request.stream,
    )
