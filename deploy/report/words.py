"""The words that the terminal, Markdown, JUnit and HTML share: written once, judged nowhere.

Owns how a figure, a promise and a side of a run are put into text; owns no layout. Called by this room, and by the
command `inspect`.
"""

from collections.abc import Iterable
from dataclasses import dataclass

from deploy.checkpoint.model import Preprocessing
from deploy.evidence import Verdict
from deploy.latency_evidence import LatencyCell, short
from deploy.slo.records import BoundResult, LatencyQuantile, RateEvidence, ServerSide, SloEvidence

INVALID = "INVALID"
DASH = "-"
_LONGEST = 400


@dataclass(frozen=True, slots=True, kw_only=True)
class BoundRow:
    """One promise as a line of a table: how many broke it, which share that is, and which share may."""

    wanted: str
    over: str
    queries: str
    share: str
    interval: str
    allowed: str
    verdict: str
    reason: str


def printable(text: str, longest: int = _LONGEST) -> str:
    """Text from elsewhere on one line: control characters become U+FFFD, what is too long is cut."""
    line = " ".join(text.split())
    line = "".join(character if character.isprintable() else "\N{REPLACEMENT CHARACTER}" for character in line)
    return line if len(line) <= longest else f"{line[: longest - 1]}…"


def percent(share: float) -> str:
    """`1.25 %`: three significant digits, never an exponent."""
    value = share * 100
    digits = f"{value:.4f}" if 0 < value < 0.01 else f"{value:.3g}"
    return f"{digits.rstrip('0').rstrip('.') if '.' in digits else digits} %"


def times(multiple: float) -> str:
    """`0.73` or `4,213`: how many times eager's own error, never with an exponent below a million."""
    return f"{multiple:,.0f}" if 99.5 <= multiple < 1e6 else f"{multiple:.2g}"


def tail(cell: LatencyCell) -> tuple[str, str, str]:
    """p90, p95 and p99 in ms, each a dash where it has no interval at that n."""
    p90, p95, p99 = (short(one.value) if one else DASH for one in (cell.p90, cell.p95, cell.p99))
    return p90, p95, p99


def preprocessing_words(preprocessing: Preprocessing) -> str:
    """What training did before the network, and from where that is known; empty where it is not."""
    known = preprocessing.model_dump(exclude={"source"}, exclude_defaults=True)
    details = "; ".join(f"{name.replace('_', ' ')} {_plain(value)}" for name, value in known.items())
    return f"{details} (from: {preprocessing.source})" if details else ""


def _plain(value: object) -> str:
    if not isinstance(value, tuple):
        return str(value)
    return " ".join(one if isinstance(one, str) else f"{one:g}" for one in value)


def standing(evidence: SloEvidence) -> str:
    """PASS, FAIL, UNDECIDED or INVALID: the one word for a run."""
    return INVALID if evidence.invalid is not None else evidence.judgement.verdict.upper()


def reason(evidence: SloEvidence) -> str:
    """Why the run stands as it does."""
    return printable(evidence.invalid or evidence.judgement.reason)


def subject(model: str, version: int | None) -> str:
    """`resnet18:2`, or the name alone where the version is not known."""
    return printable(model if version is None else f"{model}:{version}")


def run_line(evidence: SloEvidence) -> str:
    """What was asked of the server, and how much of it."""
    rows = f" of {evidence.rows_per_query} rows" if evidence.rows_per_query > 1 else ""
    return (
        f"{evidence.queries:,} queries{rows} at {evidence.rate:g}/s over {evidence.client.protocol} in "
        f"{evidence.seconds_taken:.0f} s, {evidence.warm_up_queries:,} more to warm up; samples: "
        f"{printable(evidence.samples)}, seed {evidence.seed}"
    )


def stream_lines(evidence: SloEvidence) -> tuple[str, ...]:
    """What came token by token; empty where answers come whole."""
    stream = evidence.stream
    if stream is None:
        return ()
    names = {"time to first token": stream.ttft, "time per token after it, mean of each answer": stream.itl}
    found = [f"{stream.tokens:,} tokens, {stream.tokens_per_second:.4g}/s in all, {stream.tokens_per_query} per answer"]
    for name, quantiles in names.items():
        shown = ", ".join(" ".join(quantile_words(one)) for one in quantiles)
        found.append(f"{name}, in ms: {shown}")
    if stream.gaps:
        found.append(f"single gaps, in ms: {', '.join(f'{name} {short(gap)}' for name, gap in stream.gaps.items())}")
    return tuple(found)


def bound_rows(evidence: SloEvidence) -> list[BoundRow]:
    """Each promise. In a run that proves nothing none of them is called passed."""
    invalid = evidence.invalid is not None
    return [_bound_row(result, INVALID if invalid else result.judgement.verdict.upper()) for result in evidence.bounds]


def _bound_row(result: BoundResult, verdict: str) -> BoundRow:
    return BoundRow(
        wanted=result.bound.wanted,
        over=f"{result.over:,}",
        queries=f"{result.n:,}",
        share=percent(result.over / result.n) if result.n else DASH,
        interval=f"{percent(result.low)[:-2]} to {percent(result.high)}",
        allowed=percent(result.allowed),
        verdict=verdict,
        reason=printable(result.judgement.reason),
    )


def more_queries(evidence: SloEvidence) -> str:
    """How many more queries would decide what is not decided; empty where nothing is open."""
    if evidence.invalid is not None:
        return ""
    open_ = [result for result in evidence.bounds if result.judgement.verdict is Verdict.UNDECIDED]
    parts = [
        f"{result.bound.wanted}: no number of queries would"
        if result.more_queries is None
        else f"{result.bound.wanted}: {result.more_queries:,} more, about {_duration(result.more_queries, evidence)}"
        for result in open_
    ]
    return f"To decide {'; '.join(parts)}." if parts else ""


def _duration(queries: int, evidence: SloEvidence) -> str:
    seconds = queries / evidence.rate
    return f"{seconds:.0f} s" if seconds < 120 else f"{seconds / 60:.0f} min"


def quantile_words(quantile: LatencyQuantile) -> tuple[str, str, str]:
    """Name, value and interval of a percentile; a dash where the interval does not exist."""
    interval = DASH
    if quantile.low is not None and quantile.high is not None:
        interval = f"{short(quantile.low)} to {short(quantile.high)}"
    return f"p{quantile.q * 100:g}", short(quantile.value), interval


def client_lines(evidence: SloEvidence) -> list[str]:
    """Whether the load was what was asked for, and what it means for the verdict where it was not."""
    client, late = evidence.client, lateness(evidence)
    kept = "kept its schedule" if client.kept_schedule else "sent late" if late else "DID NOT KEEP ITS SCHEDULE"
    lines = [
        f"client {kept}: {client.sent_rate:.4g} of {client.offered_rate:.4g} queries/s sent; lag p50 "
        f"{short(client.lag_p50)}, p99 {short(client.lag_p99)}, at most {short(client.lag_max)} ms",
        f"client used {client.cpu_seconds:.1f} s of CPU and stood still for {client.stalled_seconds:.2f} s",
    ]
    if client.remark:
        lines.append(printable(client.remark))
    return [*lines, late] if late else lines


def lateness(evidence: SloEvidence) -> str:
    """Why the verdict stands although the client sent late; empty where it did not, or where the run proves nothing."""
    if evidence.client.kept_schedule or evidence.invalid is not None:
        return ""
    if evidence.judgement.verdict is Verdict.FAIL:
        return "the verdict stands all the same: without what the client was late the server fails too"
    return "the verdict stands all the same: what the client was late counts as the server's latency, and it passed so"


def server_lines(server: ServerSide | None) -> list[str]:
    """Where the time went on the server, by its own counters."""
    if server is None:
        return ["server: its counters could not be read"]
    lines = [
        f"server: queue {short(server.queue)}, input {short(server.compute_input)}, inference "
        f"{short(server.compute_infer)}, output {short(server.compute_output)} ms per request",
        f"server: {server.requests:,} requests in {server.executions:,} executions, {server.batch_reached:.2f} rows "
        f"per execution; {server.failures:,} failed",
    ]
    if server.restarted:
        lines.append("server: IT WAS RESTARTED during the run")
    if server.replaced:
        lines.append(f"server: VERSION {' WAS REPLACED BY '.join(map(printable, server.replaced))} during the run")
    return lines


def error_lines(errors: dict[str, int], most: int) -> Iterable[tuple[str, str]]:
    """The commonest errors with their number; what is left out is counted."""
    ordered = sorted(errors.items(), key=lambda item: (-item[1], item[0]))
    for text, count in ordered[:most]:
        yield f"{count:,}", printable(text, 200)
    if rest := ordered[most:]:
        yield f"{sum(count for _, count in rest):,}", f"{len(rest)} other errors"


def rate_rows(evidence: RateEvidence) -> list[tuple[str, str, str, str, str]]:
    """Each rate that was tried: the rate, queries, p99 in ms or a dash, verdict, and why."""
    return [
        (
            f"{step.rate:g}",
            f"{step.queries:,}",
            DASH if step.p99 is None else short(step.p99),
            step.verdict.upper(),
            printable(step.reason),
        )
        for step in evidence.steps
    ]


def rate_line(evidence: RateEvidence) -> str:
    """The highest rate that passed, and the next one that did not."""
    found = "no rate that was tried passed" if evidence.highest is None else f"{evidence.highest:g} queries/s passed"
    return found if evidence.next_rate is None else f"{found}; {evidence.next_rate:g} queries/s did not"
