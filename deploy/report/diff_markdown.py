"""What two versions differ in, as Markdown for a CI job's summary: the verdict first.

Owns the layout; the words are in `diff_words`, the escaping is in `markdown`. Called by the command `diff`.
"""

from deploy.report import diff_words as words
from deploy.report.markdown import SYMBOLS, bullets, escaped, table
from deploy.report.words import printable
from deploy.validate.difference_records import DiffEvidence


def diff_markdown(evidence: DiffEvidence) -> str:
    """The verdict, each limit, what flips, the numbers, and every fact that differs; under 60 kB."""
    verdict = evidence.judgement.verdict.upper()
    standing = f"{SYMBOLS[verdict]} {verdict}" if evidence.gates else "Compared"
    gates = [
        (words.gate_name(gate.name), gate.judgement.verdict.upper(), printable(gate.judgement.reason, 1000))
        for gate in evidence.gates
    ]
    parts = [
        f"## {standing}: {escaped(f'{evidence.compared} → {evidence.version}')}",
        table(("limit", "verdict", "reason"), gates) or escaped(evidence.judgement.reason),
    ]
    lines = [*words.left_out_lines(evidence), *words.latency_lines(evidence), words.size_line(evidence)]
    if evidence.answers is not None:
        shown, more = words.flips(evidence.answers)
        lines = [*words.output_lines(evidence.answers), *lines]
        if more:
            lines.append(f"{more:,} more flips are in the attestation")
        parts += [
            table(words.OUTPUT_HEAD, [words.output_cells(output) for output in evidence.answers.outputs]),
            table(words.CLASS_HEAD, words.class_rows(evidence.answers)),
            table(words.FLIP_HEAD, [words.flip_cells(flip) for flip in shown]),
        ]
    changes = evidence.changes[: words.CHANGES_SHOWN]
    if len(changes) < len(evidence.changes):
        lines.append(f"{len(evidence.changes) - len(changes)} more facts differ; they are in the attestation")
    parts += [bullets(lines), table(words.CHANGE_HEAD, [words.change_cells(change) for change in changes])]
    return "\n\n".join(part for part in parts if part) + "\n"
