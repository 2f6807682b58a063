"""A load run as Markdown for a CI job's summary: the verdict first, short enough for any of them.

Owns the layout and the escaping; the words are in `words`. Called by the command `slo`.
"""

import re
from collections.abc import Sequence

from deploy.report import words
from deploy.slo.records import SloEvidence

_SYMBOLS = {"PASS": "✅", "FAIL": "❌", "UNDECIDED": "⚠️", words.INVALID: "⛔"}
_SPECIAL = re.compile(r"([\\`*_{}\[\]()#+!|~$<>&-])")
_ERRORS_SHOWN = 20
_REMARKS_SHOWN = 20


def slo_markdown(evidence: SloEvidence) -> str:
    """The verdict, its reason, a table of the promises, the percentiles, and both sides of the run; under 60 kB."""
    standing = words.standing(evidence)
    subject = _text(words.subject(evidence.model, evidence.version))
    parts = [
        f"## {_SYMBOLS[standing]} {standing}: {subject} at {evidence.rate:g} queries/s",
        _text(words.reason(evidence)),
        _text(words.more_queries(evidence)),
        _table(
            ("promise", "over", "of", "share", f"{evidence.confidence:.0%} interval", "allowed", "verdict"),
            [
                (row.wanted, row.over, row.queries, row.share, row.interval, row.allowed, row.verdict)
                for row in words.bound_rows(evidence)
            ],
        ),
        _table(
            ("latency", "ms", f"{evidence.confidence:.0%} interval"),
            [words.quantile_words(quantile) for quantile in evidence.quantiles],
        ),
        _list([words.run_line(evidence), *words.client_lines(evidence.client), *words.server_lines(evidence.server)]),
    ]
    if evidence.errors:
        parts += ["### Failed queries", _table(("queries", "what was said"), _errors(evidence))]
    parts.append(_list([f"remark: {remark}" for remark in evidence.remarks[:_REMARKS_SHOWN]]))
    return "\n\n".join(part for part in parts if part) + "\n"


def _errors(evidence: SloEvidence) -> list[tuple[str, ...]]:
    return list(words.error_lines(evidence.errors, _ERRORS_SHOWN))


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    if not rows:
        return ""
    lines = [map(_text, head), ["---"] * len(head), *(map(_text, row) for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _list(lines: Sequence[str]) -> str:
    return "\n".join(f"- {_text(words.printable(line, 600))}" for line in lines)


def _text(text: str) -> str:
    """Text that is shown as it is: no character of it is taken for markup, a table's bar included."""
    return _SPECIAL.sub(r"\\\1", text)
