"""What two versions differ in, for a terminal: legible at 80 columns, without colour too.

Owns the layout; the words are in `diff_words`. Called by the command `diff`. Imports rich on use.
"""

from typing import TYPE_CHECKING

from deploy.report import diff_words as words
from deploy.report.tables import styled_verdict, table_of, title
from deploy.report.words import printable
from deploy.validate.difference_records import AnswerDifference, DiffEvidence

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.table import Table


def diff_table(evidence: DiffEvidence) -> "RenderableType":
    """The verdict, each limit, the answers, latency, size, and every fact that differs."""
    from rich.console import Group
    from rich.text import Text

    word = evidence.judgement.verdict.upper() if evidence.gates else "COMPARED"
    head = Text.assemble(styled_verdict(word), f"  {evidence.compared} -> {evidence.version}")
    parts: list[RenderableType] = [head]
    if evidence.gates:
        parts += [_gates(evidence)]
    else:
        parts += [Text(printable(evidence.judgement.reason))]
    if evidence.answers is not None:
        parts += [Text(""), title("Answers to the same rows"), *_answers(evidence.answers)]
    parts += map(Text, (*words.left_out_lines(evidence), *words.latency_lines(evidence), words.size_line(evidence)))
    parts += [Text(""), title("What differs otherwise"), _changes(evidence)]
    return Group(*parts)


def _gates(evidence: DiffEvidence) -> "Table":
    from rich.table import Table
    from rich.text import Text

    lines = Table.grid(padding=(0, 2))
    lines.add_column(no_wrap=True)
    lines.add_column(no_wrap=True)
    lines.add_column(overflow="fold")
    for gate in evidence.gates:
        verdict = styled_verdict(gate.judgement.verdict.upper())
        lines.add_row(verdict, Text(words.gate_name(gate.name)), Text(printable(gate.judgement.reason, 1000)))
    return lines


def _answers(answers: AnswerDifference) -> "list[RenderableType]":
    from rich.text import Text

    first, *numbers = words.OUTPUT_HEAD
    outputs = table_of(first, numbers=numbers)
    for output in answers.outputs:
        outputs.add_row(*map(Text, words.output_cells(output)))
    parts: list[RenderableType] = [outputs, *map(Text, words.output_lines(answers))]
    if rows := words.class_rows(answers):
        classes = table_of(*words.CLASS_HEAD)
        for row in rows:
            classes.add_row(*map(Text, row))
        parts += [Text(""), classes]
    shown, more = words.flips(answers)
    if shown:
        flipped = table_of(*words.FLIP_HEAD)
        for flip in shown:
            flipped.add_row(*map(Text, words.flip_cells(flip)))
        parts += [Text(""), flipped]
    if more:
        parts.append(Text(f"{more:,} more flips are in the JSON"))
    return [*parts, Text("")]


def _changes(evidence: DiffEvidence) -> "RenderableType":
    from rich.text import Text

    if not evidence.changes:
        return Text("nothing")
    table = table_of(*words.CHANGE_HEAD)
    for change in evidence.changes:
        table.add_row(*map(Text, words.change_cells(change)))
    return table
