"""What was proven, measured and built while packaging, as sections of a page.

Owns which figure stands where; words for load runs are in `slo_sections`. Called by `html`.
"""

import shlex
from collections.abc import Iterator, Sequence

from deploy.evidence import OutputParity, ParityEvidence, ParityFailure, ServedEvidence
from deploy.latency_evidence import EAGER, LatencyCell, LatencyEvidence, short
from deploy.report.blocks import Alert, Block, Code, Facts, Figures, Notes, Section, Table, Word
from deploy.report.charts import Chart
from deploy.report.evidence_charts import latency_charts, parity_chart
from deploy.report.findings import Packaged
from deploy.report.precision_words import named, noise
from deploy.report.words import DASH, preprocessing_words, printable, tail, times
from deploy.repository.manifest import Manifest
from deploy.spec import TensorSpec

_FAILURES_SHOWN = 20


def draw_packaged(packaged: Packaged) -> dict[str, tuple[Chart, ...]]:
    """The plots of what packaging measured, by section: the part of the work that takes matplotlib and its time."""
    parity = parity_chart(packaged.parity)
    latency = latency_charts(packaged.latency) if packaged.latency else ()
    return {"parity": (parity,) if parity else (), "latency": latency}


def packaged_sections(packaged: Packaged, charts: dict[str, tuple[Chart, ...]]) -> Iterator[Section]:
    """Parity, latency, served parity, what was built, and the files."""
    manifest = packaged.manifest
    yield _parity(packaged, charts["parity"])
    if packaged.latency is not None:
        yield latency_section(packaged.latency, charts["latency"])
    if packaged.served is not None:
        yield _served(packaged.served)
    yield _built(packaged)
    yield _files(manifest)


def latency_section(
    evidence: LatencyEvidence, charts: Sequence[Chart], *, anchor: str = "latency", title: str = "Latency"
) -> Section:
    """The percentiles of each contender and batch size, drawn and in a table, and what each costs to start."""
    blocks: list[Block] = [Notes(lines=(printable(evidence.judgement.reason, 2000),))]
    if evidence.cells:
        versions = "".join(f", {name} {version}" for name, version in evidence.versions.items())
        winner = f"winner: {evidence.winner or 'none'} ({evidence.winner_rule})" if evidence.winner_rule else ""
        lost = [Alert(text=printable(str(one), 1000)) for one in evidence.lost]
        first, *others = dict.fromkeys([ratio.base for ratio in evidence.ratios] or [EAGER])
        blocks += [
            *lost,
            Figures(charts=tuple(charts)),
            _latency_table(evidence, first),
            *(_ratios(evidence, base) for base in others),
            _starts(evidence),
            Notes(
                lines=(
                    f"{printable(evidence.device)}, threads: {evidence.threads}{versions}, seed {evidence.seed}",
                    f"brackets: {evidence.confidence:.0%} intervals; {DASH}: none exists at that n; (A/A): the "
                    "machine's noise, a model against itself",
                    *([printable(winner)] if winner else []),
                    f"how: {printable(evidence.method, 2000)}",
                )
            ),
        ]
    return Section(anchor=anchor, title=title, blocks=tuple(blocks), word=evidence.judgement.verdict.upper())


def _parity(packaged: Packaged, charts: tuple[Chart, ...]) -> Section:
    evidence = packaged.parity
    own = packaged.manifest.format
    blocks: list[Block] = []
    accepted = "parity" in packaged.manifest.unsafe_accepted
    if accepted:
        blocks.append(Alert(text="Parity failed, and the version was published all the same."))
    blocks.append(Notes(lines=tuple(_parity_notes(packaged))))
    if charts:
        blocks.append(Figures(charts=charts))
    if evidence:
        head = ("output", "verdict", "format", "max", "L2", "largest error", "eager's own", "scale", "decisions")
        rows = tuple(_parity_row(one, output, own) for one in evidence for output in one.outputs)
        caption = "Errors as multiples of eager's own, each with its limit"
        blocks.append(Table(caption=caption, head=head, rows=rows, numbers=(3, 4, 5, 6, 7, 8)))
    failures = [(one, failure) for one in evidence for failure in one.failures]
    if failures:
        blocks.append(_failures(failures))
    word = "FAIL" if accepted else packaged.manifest.verdicts.parity.verdict.upper()
    return Section(anchor="parity", title="Parity with float64", blocks=tuple(blocks), word=word)


def _parity_notes(packaged: Packaged) -> Iterator[str]:
    for one in packaged.parity:
        beside = "" if one.format == packaged.manifest.format else " (built beside it, not in this version)"
        if beside:
            yield f"{one.format}{beside}: {one.judgement.verdict.upper()}, {printable(one.judgement.reason, 2000)}"
        yield f"{one.format}: {one.rows} rows in {len(one.cases)} cases against {one.reference}, seed {one.seed}"
        if one.bitwise_repeatable is not None:
            repeat = "bitwise equal" if one.bitwise_repeatable else "equal within the budget"
            alone = "bitwise equal" if one.bitwise_batch_invariant else "equal within the budget"
            yield f"{one.format}: twice the same input is {repeat}, alone and in a batch {alone}"
        if place := one.place:
            how = "reproduced" if place.reproduced else "not reproduced"
            yield printable(f"{one.format}: it begins at {place.kind} {place.name} ({how}): {place.message}", 1000)
    if behaviour := packaged.behaviour:
        accuracy = "" if behaviour.accuracy is None else f"; accuracy of eager {behaviour.accuracy:.1%}"
        labelled = f" over {behaviour.labelled_rows} labelled rows" if accuracy else ""
        yield printable(f"{behaviour.statement}{accuracy}{labelled}", 1000)


def _parity_row(evidence: ParityEvidence, output: OutputParity, own: str) -> tuple[str | Word, ...]:
    over = not (output.max_multiple <= evidence.max_limit and output.l2_multiple <= evidence.l2_limit)
    word = "FAIL" if over or output.decisions_flipped else evidence.judgement.verdict.upper()
    decisions = f"{output.decisions_flipped} of {output.decisions_compared} flipped"
    return (
        printable(output.output),
        Word(word=word),
        named(evidence) if evidence.format == own else f"{named(evidence)} (not in this version)",
        f"{times(output.max_multiple)} of {evidence.max_limit:g}",
        noise(output) or f"{times(output.l2_multiple)} of {evidence.l2_limit:g}",
        f"{output.max_error:.2e}",
        f"{output.eager_max_error:.2e}",
        f"{output.reference_scale:.3g}",
        decisions if output.decisions_compared else DASH,
    )


def _failures(failures: Sequence[tuple[ParityEvidence, ParityFailure]]) -> Table:
    def value(number: float | None) -> str:
        return DASH if number is None else f"{number:.6g}"

    rows = tuple(
        (
            printable(failure.check),
            one.format,
            printable(failure.output),
            printable(failure.case),
            DASH if failure.sample is None else f"{failure.sample}, {list(failure.index)}",
            value(failure.reference),
            value(failure.found),
            printable(failure.message),
        )
        for one, failure in failures[:_FAILURES_SHOWN]
    )
    more = len(failures) - len(rows)
    caption = "What did not hold" + (f": the first {len(rows)}, {more} more are in parity.json" if more else "")
    head = ("check", "format", "output", "case", "sample, index", "reference", "found", "what was found")
    return Table(caption=caption, head=head, rows=rows, numbers=(5, 6), texts=(3, 7))


def _latency_table(evidence: LatencyEvidence, base: str) -> Table:
    ratios = {(ratio.contender, ratio.batch): str(ratio) for ratio in evidence.ratios if ratio.base == base}
    rows = tuple(_latency_row(cell, ratios.get((cell.contender, cell.batch), DASH)) for cell in evidence.cells)
    head = ("contender", "batch", "p50", "p90", "p95", "p99", f"to {printable(base)}", "n")
    return Table(caption="Latency in ms", head=head, rows=rows, numbers=(1, 2, 3, 4, 5, 6, 7))


def _ratios(evidence: LatencyEvidence, base: str) -> Table:
    ratios = [ratio for ratio in evidence.ratios if ratio.base == base]
    rows = tuple((printable(ratio.contender), str(ratio.batch), str(ratio)) for ratio in ratios)
    caption = f"Time in multiples of that of {printable(base)}"
    return Table(caption=caption, head=("contender", "batch", "ratio"), rows=rows, numbers=(1, 2))


def _latency_row(cell: LatencyCell, ratio: str) -> tuple[str, ...]:
    return (printable(cell.contender), str(cell.batch), str(cell.p50 or DASH), *tail(cell), ratio, f"{cell.n:,}")


def _starts(evidence: LatencyEvidence) -> Table:
    rows = tuple(
        (
            printable(start.contender),
            f"{start.load_seconds:.2f}",
            short(start.first_call_ms),
            f"{start.peak_memory / 1e6:.0f}",
            f"{start.base_memory / 1e6:.0f}",
        )
        for start in evidence.starts
    )
    head = ("contender", "load s", "first call ms", "peak MB", "MB before the model")
    return Table(caption="What a start costs", head=head, rows=rows, numbers=(1, 2, 3, 4))


def _served(evidence: ServedEvidence) -> Section:
    rows = tuple(
        (
            f"{printable(check.name)} ({check.protocol})",
            Word(word=check.judgement.verdict.upper()),
            f"{check.requests:,}",
            f"{check.rows:,}",
            printable(check.judgement.reason),
        )
        for check in evidence.checks
    )
    head = ("check", "verdict", "requests", "rows", "reason")
    notes = (
        f"{printable(evidence.mode)}: {printable(evidence.engine)}, release {printable(evidence.release)}, backend "
        f"{printable(evidence.backend)}, ready in {evidence.ready_seconds:.1f} s",
        f"{evidence.inferences:,} rows in {evidence.executions:,} executions by the server's own counters",
        *(f"config adapted: {printable(change)}" for change in evidence.config_difference),
    )
    table = Table(caption="How a real tritonserver was asked", head=head, rows=rows, numbers=(2, 3), texts=(4,))
    word = evidence.judgement.verdict.upper()
    return Section(anchor="served", title="Served parity", blocks=(table, Notes(lines=notes)), word=word)


def _built(packaged: Packaged) -> Section:
    manifest = packaged.manifest
    origin, target, environment = manifest.checkpoint, manifest.target, manifest.environment
    options = ", ".join(f"{name}={value}" for name, value in origin.options.items())
    facts = [
        ("checkpoint", f"{origin.file} ({origin.format})"),
        ("its SHA-256", origin.sha256),
        ("architecture", f"{origin.architecture}, {origin.how}" + (f" ({options})" if options else "")),
        ("parameters", f"{origin.parameters:,} in {origin.dtype}"),
        ("weights", f"{origin.weights or 'the only ones'}, under {origin.found_under or 'the top of the file'}"),
        *(("note", note) for note in origin.notes),
        *((f"input {tensor.name}", _tensor(tensor)) for tensor in manifest.spec.inputs),
        *((f"output {tensor.name}", _tensor(tensor)) for tensor in manifest.spec.outputs),
        *((f"dim {dim.name}", f"{dim.minimum} to {dim.maximum}") for dim in manifest.spec.dims),
        ("names on the wire", ", ".join(f"{wire}: {name}" for wire, name in manifest.wire.items())),
        ("classes", _classes(manifest)),
        ("preprocessing", preprocessing_words(manifest.preprocessing) or "not known"),
        ("artifact", ", ".join(f"{name} {value}" for name, value in manifest.artifact.items())),
        ("target", f"{target.name}, {target.device}, {target.cpu_isa}: {target.description}"),
        ("environment", ", ".join(f"{name} {value}" for name, value in environment if value)),
        *(("clients will notice", change) for change in manifest.contract_changes),
    ]
    pickle = [Alert(text="The checkpoint was unpickled with --trust-pickle.")] if origin.trust_pickle else []
    rows = tuple((printable(name), printable(value, 3000)) for name, value in facts)
    command = Code(
        name="built by", text=printable(shlex.join(manifest.command) or "no command line: packaged from Python", 3000)
    )
    return Section(anchor="built", title="What was built", blocks=(*pickle, command, Facts(rows=rows)))


def _tensor(tensor: TensorSpec) -> str:
    axis = "" if tensor.decision_axis is None else f", decision on axis {tensor.decision_axis}"
    return f"{tensor.dtype} {' x '.join(map(str, tensor.shape))}{axis}"


def _classes(manifest: Manifest) -> str:
    if manifest.classes is None:
        return "not known"
    shown = ", ".join(manifest.classes[:10])
    return f"{len(manifest.classes)}: {shown}{', ...' if len(manifest.classes) > 10 else ''}"


def _files(manifest: Manifest) -> Section:
    rows = tuple((printable(entry.path), f"{entry.size:,}", entry.sha256) for entry in manifest.files)
    table = Table(caption="Files of the version", head=("file", "bytes", "SHA-256"), rows=rows, numbers=(1,), code=(2,))
    note = Notes(lines=("This page and manifest.json are files of the version too; no file holds its own digest.",))
    return Section(anchor="files", title="Files", blocks=(table, note))
