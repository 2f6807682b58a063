"""A search for a better configuration as a section of a page.

Owns which figure stands where; the words are in `tune_words`. Called by `slo_sections`.
"""

from deploy.report import words
from deploy.report.blocks import Block, Figures, Notes, Section, Table
from deploy.report.slo_charts import RatePoint, rate_chart
from deploy.report.tune_words import confirmation_rows, trial_rows, tried_line
from deploy.slo.tune_records import Confirmation, Probe, TuneEvidence

_KEPT = {True: "PASS", False: "FAIL", None: words.INVALID}


def tune_section(evidence: TuneEvidence, *, number: int, when: str) -> Section:
    """Search `number` of the page: its judgement, its trials, and what confirmed the winner."""
    judged = words.printable(evidence.judgement.reason, 2000)
    blocks: list[Block] = [Notes(lines=(judged, tried_line(evidence), words.printable(evidence.machine)))]
    chart = rate_chart(_best_probes(evidence), evidence.bound.limit, of=f"of the best setting in search {number}")
    if chart:
        blocks.append(Figures(charts=(chart,)))
    blocks.append(_trials(evidence))
    if evidence.confirmation is not None and evidence.confirmation.rounds:
        blocks.append(_rounds(evidence.confirmation))
    remarks = [f"remark: {words.printable(remark, 1000)}" for remark in evidence.remarks]
    blocks.append(Notes(lines=(*remarks, f"how: {words.printable(evidence.method, 2000)}")))
    return Section(
        anchor=f"tune-{number}",
        title=f"Tuned for {evidence.bound.wanted}, {when}",
        blocks=tuple(blocks),
        word=evidence.judgement.verdict.upper(),
    )


def _best_probes(evidence: TuneEvidence) -> list[RatePoint]:
    trial = next((trial for trial in evidence.trials if trial.number == evidence.best), None)
    return sorted((_point(probe) for probe in trial.probes), key=lambda point: point.rate) if trial else []


def _point(probe: Probe) -> RatePoint:
    return RatePoint(rate=probe.rate, p99=probe.p99, word=_KEPT[probe.kept], reason=words.printable(probe.reason))


def _trials(evidence: TuneEvidence) -> Table:
    rows = tuple(
        (f"{row.setting} {row.mark}".rstrip(), row.rate, row.p99, row.batch, row.seconds, row.outcome)
        for row in trial_rows(evidence)
    )
    head = ("setting", "queries/s", "p99 ms", "batch", "s", "what became of it")
    caption = "Every setting that was tried; * the best, = the version's own"
    return Table(caption=caption, head=head, rows=rows, numbers=(1, 2, 3, 4), texts=(0, 5))


def _rounds(confirmation: Confirmation) -> Table:
    head = ("queries/s", "own over", "own p99 ms", "tuned over", "tuned p99 ms")
    return Table(
        caption="The winner beside the version's own configuration, round by round",
        head=head,
        rows=confirmation_rows(confirmation),
        numbers=(1, 2, 3, 4),
    )
