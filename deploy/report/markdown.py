"""A load run as Markdown for a CI job's summary: the verdict first, short enough for any of them.

Owns the layout and the escaping; the words are in `words`. Called by the command `slo`, and by `diff_markdown`.
"""

import re
from collections.abc import Sequence

from deploy.errors import DeployError
from deploy.report import words
from deploy.slo.records import RateEvidence, SloEvidence

SYMBOLS = {"PASS": "✅", "FAIL": "❌", "UNDECIDED": "⚠️", words.INVALID: "⛔"}
_SPECIAL = re.compile(r"([\\`*_{}\[\]()#+!|~$<>&-])")
_ERRORS_SHOWN = 20
_REMARKS_SHOWN = 20


def slo_markdown(evidence: SloEvidence | RateEvidence) -> str:
    """The verdict, its reason, a table of the promises, the percentiles, and both sides of the run; under 60 kB.

    Of a search for a rate, the rates that were tried.
    """
    if isinstance(evidence, RateEvidence):
        return _search_markdown(evidence)
    standing = words.standing(evidence)
    subject = escaped(words.subject(evidence.model, evidence.version))
    parts = [
        f"## {SYMBOLS[standing]} {standing}: {subject} at {evidence.rate:g} queries/s",
        escaped(words.reason(evidence)),
        escaped(words.more_queries(evidence)),
        table(
            ("promise", "over", "of", "share", f"{evidence.confidence:.0%} interval", "allowed", "verdict"),
            [
                (row.wanted, row.over, row.queries, row.share, row.interval, row.allowed, row.verdict)
                for row in words.bound_rows(evidence)
            ],
        ),
        table(
            ("latency", "ms", f"{evidence.confidence:.0%} interval"),
            [words.quantile_words(quantile) for quantile in evidence.quantiles],
        ),
        bullets([words.run_line(evidence), *words.client_lines(evidence), *words.server_lines(evidence.server)]),
    ]
    if evidence.errors:
        parts += ["### Failed queries", table(("queries", "what was said"), _errors(evidence))]
    parts.append(bullets([f"remark: {remark}" for remark in evidence.remarks[:_REMARKS_SHOWN]]))
    return "\n\n".join(part for part in parts if part) + "\n"


def unfinished_markdown(reference: str, error: DeployError) -> str:
    """That a run came to no record, and why."""
    head = f"## {SYMBOLS[words.INVALID]} NOT MEASURED: {escaped(words.printable(reference))}"
    return "\n\n".join([head, *(escaped(words.printable(line)) for line in str(error).splitlines())]) + "\n"


def _search_markdown(evidence: RateEvidence) -> str:
    standing = evidence.judgement.verdict.upper()
    subject = escaped(words.subject(evidence.model, evidence.version))
    parts = [
        f"## {SYMBOLS[standing]} {standing}: highest rate of {subject}",
        escaped(words.printable(evidence.judgement.reason)),
        escaped(words.rate_line(evidence)),
        table(("queries/s", "queries", "p99 ms", "verdict", "reason"), words.rate_rows(evidence)),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _errors(evidence: SloEvidence) -> list[tuple[str, ...]]:
    return list(words.error_lines(evidence.errors, _ERRORS_SHOWN))


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table, every cell of it escaped; empty where there are no rows."""
    if not rows:
        return ""
    lines = [map(escaped, head), ["---"] * len(head), *(map(escaped, row) for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def bullets(lines: Sequence[str]) -> str:
    """A list, one entry per line."""
    return "\n".join(f"- {escaped(words.printable(line, 600))}" for line in lines)


def escaped(text: str) -> str:
    """Text that is shown as it is: no character of it is taken for markup, a table's bar included."""
    return _SPECIAL.sub(r"\\\1", text)
