"""Evidence as tables and verdicts for a terminal: legible at 80 columns, and in a log without colour.

Owns the wording of results on stdout; judges nothing. Stages are in `stages`. Called by the commands. Imports rich on
use: a command that prints JSON has no need of it.
"""

from collections.abc import Iterable, Mapping, Sequence
from itertools import groupby
from typing import TYPE_CHECKING

from deploy.evidence import Judgement, OutputParity, ParityEvidence, ParityFailure, ServedEvidence
from deploy.latency_evidence import EAGER, LatencyEvidence, short
from deploy.report.precision_words import named, noise
from deploy.report.tables import styled_verdict
from deploy.report.tables import table_of as _table
from deploy.report.tables import title as _title
from deploy.report.words import DASH, tail

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.table import Table
    from rich.text import Text

_FAILURES_SHOWN = 5


def show(*renderables: "RenderableType") -> None:
    """Print to stdout, with an empty line between them; colour and width as the terminal has them."""
    from rich.console import Console

    console = Console(highlight=False, markup=False, emoji=False)
    for number, renderable in enumerate(renderables):
        if number:
            console.print()
        console.print(renderable)


def verdict_lines(judgements: Mapping[str, Judgement]) -> "RenderableType":
    """One line per judgement: the verdict, what it is about, and the reason."""
    from rich.table import Table
    from rich.text import Text

    lines = Table.grid(padding=(0, 2))
    lines.add_column(no_wrap=True)
    lines.add_column(no_wrap=True)
    lines.add_column(overflow="fold")
    for about, judgement in judgements.items():
        lines.add_row(_verdict(judgement), Text(about), Text(judgement.reason))
    return lines


def parity_table(evidence: Sequence[ParityEvidence]) -> "RenderableType":
    """Errors of each format and output as multiples of eager's own, beside their limits; failures below."""
    from rich.console import Group

    table = _table("format", "output", numbers=("max", "L2", "rows"))
    table.add_column("decisions")
    table.add_column("verdict")
    for one in evidence:
        for output in one.outputs:
            table.add_row(*_parity_cells(one, output), _verdict(one.judgement))
        if not one.outputs:
            table.add_row(named(one), *[DASH] * 5, _verdict(one.judgement))
    findings = [line for one in evidence for line in _findings(one)]
    return Group(_title("Parity: errors as multiples of eager's own, and the limit"), table, *findings)


def latency_table(evidence: LatencyEvidence) -> "RenderableType":
    """The percentiles of each contender and batch size, its ratios to the others, and what each costs to start."""
    from rich.console import Group
    from rich.text import Text

    if not evidence.cells:
        return Text(f"Latency: {evidence.judgement.reason}")
    versions = "".join(f", {name} {version}" for name, version in evidence.versions.items())
    notes = (
        f"{evidence.device}, threads: {evidence.threads}{versions}",
        f"brackets: {evidence.confidence:.0%} intervals; -: none at that n; (A/A): the machine's noise",
        *([str(evidence.carried)] if evidence.carried else []),
        *([f"winner: {evidence.winner or 'none'} ({evidence.winner_rule})"] if evidence.winner_rule else []),
        *(f"LOST: {one}" for one in evidence.lost),
    )
    first, *others = dict.fromkeys([ratio.base for ratio in evidence.ratios] or [EAGER])
    parts: list[RenderableType] = [_title("Latency in ms"), _percentiles(evidence, first), *map(Text, notes)]
    for base in others:
        parts += [Text(""), _title(f"Time in multiples of {base}'s"), _ratios(evidence, base)]
    return Group(*parts, Text(""), _title("Start"), _starts(evidence))


def served_table(evidence: Sequence[ServedEvidence]) -> "RenderableType":
    """What each served artifact was asked, and what exactly served it."""
    from rich.console import Group
    from rich.text import Text

    parts: list[RenderableType] = []
    for one in evidence:
        table = _table("check", numbers=("requests", "rows"))
        table.add_column("verdict")
        for check in one.checks:
            name = f"{check.name} ({check.protocol})"
            table.add_row(Text(name), str(check.requests), str(check.rows), _verdict(check.judgement))
        parts += [_title(f"Served parity: {one.backend}, {one.mode}"), table, *map(Text, _served_notes(one))]
    return Group(*parts)


def _parity_cells(evidence: ParityEvidence, output: OutputParity) -> "tuple[str | Text, ...]":
    from rich.text import Text

    flipped = f"{output.decisions_flipped} of {output.decisions_compared} flipped"
    return (
        named(evidence),
        Text(output.output),
        f"{output.max_multiple:.2g} of {evidence.max_limit:g}",
        noise(output) or f"{output.l2_multiple:.2g} of {evidence.l2_limit:g}",
        str(evidence.rows),
        flipped if output.decisions_compared else DASH,
    )


def _findings(evidence: ParityEvidence) -> "Iterable[Text]":
    """The first failures of a format, how many more there are, and where the first begins."""
    from rich.text import Text

    for failure in evidence.failures[:_FAILURES_SHOWN]:
        yield Text(f"{evidence.format}: {_failure(failure)}")
    if (more := len(evidence.failures) - _FAILURES_SHOWN) > 0:
        yield Text(f"{evidence.format}: {more} more failures are in the evidence")
    if place := evidence.place:
        how = "reproduced" if place.reproduced else "not reproduced"
        yield Text(f"{evidence.format}: it begins at {place.kind} {place.name} ({how}): {place.message}")


def _failure(failure: ParityFailure) -> str:
    where = "" if failure.sample is None else f", sample {failure.sample}, index {list(failure.index)}"
    return f"{failure.check}: {failure.message} (output {failure.output}, {failure.case}{where})"


def _percentiles(evidence: LatencyEvidence, base: str) -> "Table":
    table = _table("contender", numbers=("n", "p50", "p90", "p95", "p99", f"to {base}"))
    ratios = {(ratio.contender, ratio.batch): ratio for ratio in evidence.ratios if ratio.base == base}
    for batch, cells in groupby(evidence.cells, key=lambda cell: cell.batch):
        table.add_row(f"batch {batch}", style="bold")
        for cell in cells:
            ratio = ratios.get((cell.contender, batch), DASH)
            table.add_row(cell.contender, str(cell.n), str(cell.p50 or DASH), *tail(cell), str(ratio))
    return table


def _ratios(evidence: LatencyEvidence, base: str) -> "Table":
    table = _table("contender", numbers=("batch", f"to {base}"))
    for ratio in evidence.ratios:
        if ratio.base == base:
            table.add_row(ratio.contender, str(ratio.batch), str(ratio))
    return table


def _starts(evidence: LatencyEvidence) -> "Table":
    table = _table("contender", numbers=("load s", "first call ms", "peak MB", "MB before the model"))
    for start in evidence.starts:
        table.add_row(
            start.contender,
            f"{start.load_seconds:.2f}",
            short(start.first_call_ms),
            f"{start.peak_memory / 1e6:.0f}",
            f"{start.base_memory / 1e6:.0f}",
        )
    return table


def _served_notes(evidence: ServedEvidence) -> tuple[str, ...]:
    server = f"{evidence.engine} engine, release {evidence.release}, ready in {evidence.ready_seconds:.1f} s"
    merged = f"{evidence.inferences} rows in {evidence.executions} executions by the server's own counters"
    changed = "; ".join(evidence.config_difference)
    return (server, merged, f"config adapted: {changed}") if changed else (server, merged)


def _verdict(judgement: Judgement) -> "Text":
    return styled_verdict(judgement.verdict.upper())
