"""A search for a terminal: its verdict, its trials, what confirmed the winner, and the change of the config.

Owns the layout. Called by the command `tune`. Imports rich on use.
"""

from typing import TYPE_CHECKING

from deploy.report import words
from deploy.report.tables import styled_verdict, table_of, title
from deploy.report.tune_words import confirmation_rows, trial_rows, tried_line
from deploy.slo.tune_records import Confirmation, TuneEvidence

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.table import Table

_LONGEST_OUTCOME = 60


def tune_table(evidence: TuneEvidence, difference: str) -> "RenderableType":
    """The outcome of a search and how it was got. `difference` is the change of the config, empty for none."""
    from rich.console import Group
    from rich.text import Text

    verdict = styled_verdict(evidence.judgement.verdict.upper())
    about = f"  {words.subject(evidence.model, evidence.version)} tuned for {evidence.bound.wanted}"
    parts: list[RenderableType] = [
        Text.assemble(verdict, about),
        Text(words.printable(evidence.judgement.reason)),
        Text(tried_line(evidence)),
        Text(evidence.machine),
        Text(""),
        _trials(evidence),
    ]
    if evidence.confirmation is not None and evidence.confirmation.rounds:
        parts += [Text(""), title("The winner beside the version's own configuration"), _rounds(evidence.confirmation)]
    if difference:
        parts += [Text(""), title("Change of the configuration"), Text(difference)]
    parts += [Text(f"remark: {words.printable(remark)}") for remark in evidence.remarks]
    return Group(*parts)


def _trials(evidence: TuneEvidence) -> "Table":
    from rich.text import Text

    table = table_of("", "setting", numbers=("rate/s", "p99 ms", "batch", "s"))
    table.add_column("what became of it", overflow="fold")
    for row in trial_rows(evidence):
        outcome = Text(words.printable(row.outcome, _LONGEST_OUTCOME))
        table.add_row(row.mark, Text(row.setting), row.rate, row.p99, row.batch, row.seconds, outcome)
    return table


def _rounds(confirmation: Confirmation) -> "Table":
    table = table_of(numbers=("rate/s", "own over", "own p99 ms", "tuned over", "tuned p99 ms"))
    for row in confirmation_rows(confirmation):
        table.add_row(*row)
    return table
