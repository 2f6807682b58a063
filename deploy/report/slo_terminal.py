"""Load runs, rate searches and the verdicts of a report for a terminal: legible at 80 columns, without colour too.

Owns the layout; the words are in `words`. Called by the commands `slo` and `report`. Imports rich on use.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from deploy.report import words
from deploy.report.standing import Check
from deploy.report.tables import styled_verdict, table_of, title
from deploy.slo.records import RateEvidence, SloEvidence

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.table import Table

_ERRORS_SHOWN = 8


def slo_table(evidence: SloEvidence) -> "RenderableType":
    """The verdict of a load run, each promise, the percentiles, and what client and server say of themselves."""
    from rich.console import Group
    from rich.text import Text

    head = Text.assemble(
        styled_verdict(words.standing(evidence)), f"  {words.subject(evidence.model, evidence.version)} under load"
    )
    parts: list[RenderableType] = [head, Text(words.reason(evidence))]
    if more := words.more_queries(evidence):
        parts.append(Text(more))
    parts += [Text(words.run_line(evidence)), Text(""), _bounds(evidence), Text(""), _percentiles(evidence), Text("")]
    if streamed := words.stream_lines(evidence):
        parts += [*map(Text, streamed), Text("")]
    parts += map(Text, (*words.client_lines(evidence), *words.server_lines(evidence.server)))
    if evidence.errors:
        parts += [Text(""), title("Failed queries"), _errors(evidence)]
    parts += [Text(f"remark: {words.printable(remark)}") for remark in evidence.remarks]
    return Group(*parts)


def rate_table(evidence: RateEvidence) -> "RenderableType":
    """The verdict of a rate search, every rate that was tried, and the run that confirmed the highest."""
    from rich.console import Group
    from rich.text import Text

    verdict = styled_verdict(evidence.judgement.verdict.upper())
    head = Text.assemble(verdict, f"  highest rate of {words.subject(evidence.model, evidence.version)}")
    parts: list[RenderableType] = [
        head, Text(words.printable(evidence.judgement.reason)), Text(words.rate_line(evidence)), Text(""),
        _steps(evidence),
    ]  # fmt: skip
    if evidence.final is not None:
        parts += [Text(""), title("The run that confirms it"), slo_table(evidence.final)]
    return Group(*parts)


def check_table(checks: Sequence[Check]) -> "RenderableType":
    """One line per verdict of a report, the last one that on the whole."""
    from rich.table import Table
    from rich.text import Text

    lines = Table.grid(padding=(0, 2))
    lines.add_column(no_wrap=True)
    lines.add_column(overflow="fold")
    lines.add_column(overflow="fold", ratio=1)
    for check in checks:
        lines.add_row(styled_verdict(check.word), Text(check.name), Text(check.reason))
    return lines


def _bounds(evidence: SloEvidence) -> "Table":
    from rich.text import Text

    table = table_of("promise", numbers=("over", "of", "share", f"at {evidence.confidence:.0%}", "allowed"))
    table.add_column("verdict")
    for row in words.bound_rows(evidence):
        figures = (row.over, row.queries, row.share, row.interval, row.allowed)
        table.add_row(Text(row.wanted), *figures, styled_verdict(row.verdict))
    return table


def _percentiles(evidence: SloEvidence) -> "Table":
    from rich.text import Text

    table = table_of(numbers=("latency", "ms", f"at {evidence.confidence:.0%}"))
    for quantile in evidence.quantiles:
        table.add_row(*map(Text, words.quantile_words(quantile)))
    return table


def _errors(evidence: SloEvidence) -> "Table":
    from rich.text import Text

    table = table_of(numbers=("queries",))
    table.add_column("what was said", overflow="fold")
    for count, text in words.error_lines(evidence.errors, _ERRORS_SHOWN):
        table.add_row(count, Text(text))
    return table


def _steps(evidence: RateEvidence) -> "Table":
    from rich.text import Text

    table = table_of(numbers=("rate/s", "queries", "p99 ms"))
    table.add_column("verdict")
    table.add_column("reason", overflow="fold")
    for rate, queries, p99, verdict, reason in words.rate_rows(evidence):
        table.add_row(rate, queries, p99, styled_verdict(verdict), Text(reason))
    return table
