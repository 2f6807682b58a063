"""What two versions differ in, as a section of a page.

Owns which figure stands where; the words are in `diff_words`. Called by `slo_sections`.
"""

from deploy.report import diff_words as words
from deploy.report.blocks import Block, Notes, Section, Table, Word
from deploy.report.words import printable
from deploy.validate.difference_records import DiffEvidence


def diff_section(evidence: DiffEvidence, title: str) -> Section:
    """The verdict on each limit, the answers, and every fact that differs. Latency has a section of its own."""
    blocks: list[Block] = [Notes(lines=(printable(f"against {evidence.compared}: {evidence.judgement.reason}", 2000),))]
    if evidence.gates:
        gates = tuple(
            (
                words.gate_name(gate.name),
                Word(word=gate.judgement.verdict.upper()),
                printable(gate.judgement.reason, 1000),
            )
            for gate in evidence.gates
        )
        blocks.append(Table(caption="Limits", head=("limit", "verdict", "reason"), rows=gates, texts=(2,)))
    lines = [*words.left_out_lines(evidence), words.size_line(evidence)]
    if answers := evidence.answers:
        rows = tuple(words.output_cells(output) for output in answers.outputs)
        blocks.append(Table(caption="Answers", head=words.OUTPUT_HEAD, rows=rows, numbers=(1, 2, 3, 4)))
        lines = [*words.output_lines(answers), *lines]
        if classes := words.class_rows(answers):
            blocks.append(
                Table(caption="Flips by class", head=words.CLASS_HEAD, rows=tuple(classes), numbers=(1, 2), texts=(3,))
            )
        shown, more = words.flips(answers)
        if shown:
            caption = "Decisions that flip" + (
                f": the first {len(shown)}, {more:,} more are in its JSON" if more else ""
            )
            flips = tuple(words.flip_cells(flip) for flip in shown)
            blocks.append(Table(caption=caption, head=words.FLIP_HEAD, rows=flips, numbers=(4,), texts=(0,)))
    blocks.append(Notes(lines=tuple(lines)))
    if evidence.changes:
        changes = tuple(words.change_cells(change) for change in evidence.changes)
        blocks.append(Table(caption="What differs otherwise", head=words.CHANGE_HEAD, rows=changes, texts=(1, 2, 3)))
    word = evidence.judgement.verdict.upper() if evidence.gates else ""
    return Section(anchor="diff", title=title, blocks=tuple(blocks), word=word)
