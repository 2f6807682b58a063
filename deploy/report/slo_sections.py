"""What was learnt of a version after packaging, as sections of a page: load runs, rates, and every other attestation.

Owns which figure stands where; the words are in `words`. Called by `html`.
"""

from collections.abc import Iterator, Sequence

from deploy.latency_evidence import short
from deploy.report import words
from deploy.report.blocks import Alert, Block, Figures, Notes, Section, Table, Word
from deploy.report.diff_sections import diff_section
from deploy.report.evidence_charts import latency_charts
from deploy.report.findings import Findings, Learnt
from deploy.report.sections import latency_section
from deploy.report.slo_charts import (
    p99_limit,
    percentile_chart,
    rate_chart,
    rate_points,
    server_chart,
    timeline_chart,
)
from deploy.report.standing import learnt_reason, learnt_word, when
from deploy.report.tune_sections import tune_section
from deploy.slo.records import RateEvidence, SloEvidence
from deploy.slo.tune_records import TuneEvidence
from deploy.validate.difference_records import DiffEvidence

_ERRORS_SHOWN = 30


def learnt_sections(findings: Findings) -> Iterator[Section]:
    """The latest load run in full, rates against p99, searches, later latency tables, and all attestations listed."""
    runs = [(one, one.record) for one in findings.learnt if isinstance(one.record, SloEvidence)]
    searches = [one.record for one in findings.learnt if isinstance(one.record, RateEvidence)]
    finals = [search.final for search in searches if search.final is not None]
    if runs:
        learnt, record = runs[-1]
        yield _slo(record, f"Under load, {when(learnt.time)}")
    elif finals:
        yield _slo(finals[-1], "Under load, at the highest rate found")
    every_run = [record for _, record in runs] + finals
    if every_run or searches:
        yield _rates(every_run, searches)
    tunings = [(one, one.record) for one in findings.learnt if isinstance(one.record, TuneEvidence)]
    for number, (learnt, tuning) in enumerate(tunings, start=1):
        yield tune_section(tuning, number=number, when=when(learnt.time))
    diffs = [(one, one.record) for one in findings.learnt if isinstance(one.record, DiffEvidence)]
    if diffs:
        latest, difference = diffs[-1]
        yield diff_section(difference, f"Against {words.printable(difference.compared)}, {when(latest.time)}")
    for number, one in enumerate(one for one in findings.learnt if one.latency is not None):
        assert one.latency is not None
        title = f"{words.printable(one.kind).capitalize()}, {when(one.time)}"
        charts = latency_charts(one.latency, title=title)
        yield latency_section(one.latency, charts, anchor=f"latency-{number + 1}", title=title)
    if findings.digest is not None:
        yield _attestations(findings.learnt)


def _slo(evidence: SloEvidence, title: str) -> Section:
    blocks: list[Block] = []
    if evidence.invalid is not None:
        blocks.append(Alert(text=f"This run proves nothing: {words.printable(evidence.invalid)}"))
    lines = (words.reason(evidence), words.more_queries(evidence), words.run_line(evidence))
    blocks += [Notes(lines=tuple(line for line in lines if line)), _bounds(evidence)]
    server = server_chart(evidence.server) if evidence.server else None
    charts = (percentile_chart(evidence), timeline_chart(evidence), server)
    blocks += [Figures(charts=tuple(chart for chart in charts if chart)), _quantiles(evidence)]
    sides = [*words.client_lines(evidence), *words.server_lines(evidence.server)]
    if not evidence.client.kept_schedule and not words.lateness(evidence):
        blocks.append(Alert(text="The client did not keep its schedule: the load was not what was asked for."))
    if evidence.server is not None and evidence.server.restarted:
        blocks.append(Alert(text="The server was restarted during the run."))
    if evidence.server is not None and evidence.server.replaced:
        versions = " was replaced by ".join(map(words.printable, evidence.server.replaced))
        blocks.append(Alert(text=f"Version {versions} during the run."))
    blocks.append(Notes(lines=tuple(sides)))
    if evidence.server is not None and evidence.server.batches:
        blocks.append(_batches(evidence.server.batches))
    if evidence.errors:
        rows = tuple((text, count) for count, text in words.error_lines(evidence.errors, _ERRORS_SHOWN))
        blocks.append(Table(caption="Failed queries", head=("what was said", "queries"), rows=rows, numbers=(1,)))
    blocks.append(Notes(lines=tuple(_remarks(evidence))))
    return Section(anchor="slo", title=title, blocks=tuple(blocks), word=words.standing(evidence))


def _bounds(evidence: SloEvidence) -> Table:
    head = ("promise", "verdict", "over", "of", "share", f"{evidence.confidence:.0%} interval", "allowed", "reason")
    rows = tuple(
        (row.wanted, Word(word=row.verdict), row.over, row.queries, row.share, row.interval, row.allowed, row.reason)
        for row in words.bound_rows(evidence)
    )
    return Table(caption="What was promised", head=head, rows=rows, numbers=(2, 3, 4, 5, 6), texts=(7,))


def _quantiles(evidence: SloEvidence) -> Table:
    rows = tuple(words.quantile_words(quantile) for quantile in evidence.quantiles)
    head = ("percentile", "ms", f"{evidence.confidence:.0%} interval")
    return Table(caption="Latency from the scheduled time", head=head, rows=rows, numbers=(1, 2))


def _batches(batches: dict[int, int]) -> Table:
    total = sum(batches.values()) or 1
    rows = tuple((str(size), f"{count:,}", words.percent(count / total)) for size, count in sorted(batches.items()))
    return Table(caption="Batches on the server", head=("rows", "executions", "share"), rows=rows, numbers=(1, 2))


def _remarks(evidence: SloEvidence) -> Iterator[str]:
    yield from words.stream_lines(evidence)
    yield from (f"remark: {words.printable(remark, 1000)}" for remark in evidence.remarks)
    yield f"how: {words.printable(evidence.method, 2000)}"
    yield (
        f"by {words.printable(evidence.load_generator)} against {words.printable(evidence.url)}, begun "
        f"{words.printable(evidence.started)}, {evidence.looks} looks, deadline {evidence.deadline:g} ms"
    )


def _rates(runs: Sequence[SloEvidence], searches: Sequence[RateEvidence]) -> Section:
    blocks: list[Block] = [Notes(lines=tuple(words.rate_line(search) for search in searches))] if searches else []
    points = rate_points(runs, searches)
    chart = rate_chart(points, p99_limit(runs))
    if chart:
        blocks.append(Figures(charts=(chart,)))
    rows = tuple(
        (
            f"{point.rate:g}",
            words.DASH if point.p99 is None else short(point.p99),
            Word(word=point.word),
            point.reason,
        )
        for point in points
    )
    head = ("queries/s", "p99 ms", "verdict", "reason")
    blocks.append(Table(caption="Rates that were tried", head=head, rows=rows, numbers=(1,), texts=(3,)))
    word = searches[-1].judgement.verdict.upper() if searches else ""
    return Section(anchor="rates", title="Rate against p99", blocks=tuple(blocks), word=word)


def _attestations(learnt: Sequence[Learnt]) -> Section:
    if not learnt:
        note = "Nothing was attested since: no load run, no benchmark, no tuning."
        return Section(anchor="attestations", title="Attestations", blocks=(Notes(lines=(note,)),))
    rows = tuple(_attestation(one) for one in learnt)
    head = ("kind", "when", "verdict", "what it says", "file")
    table = Table(
        caption="Everything attested since packaging, the oldest first", head=head, rows=rows, code=(4,), texts=(3,)
    )
    return Section(anchor="attestations", title="Attestations", blocks=(table,))


def _attestation(one: Learnt) -> tuple[str | Word, ...]:
    word = learnt_word(one)
    cell = Word(word=word) if word else "-"
    return words.printable(one.kind), when(one.time), cell, learnt_reason(one), words.printable(one.file)
