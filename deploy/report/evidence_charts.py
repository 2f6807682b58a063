"""What was proven and measured while packaging, drawn: errors against budgets, and latency distributions.

Owns what is drawn; looks are in `charts`. Called by `sections` and `slo_sections`.
"""

import math
from collections.abc import Sequence
from itertools import groupby
from typing import TYPE_CHECKING

from deploy.evidence import OutputParity, ParityEvidence
from deploy.latency_evidence import EAGER, LatencyCell, LatencyEvidence, is_control, short
from deploy.report.charts import Chart, colour, draw, label_of, log_axis, span
from deploy.report.words import times

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_OUTPUTS_SHOWN = 12
_ROW = 0.54

Row = tuple[ParityEvidence, OutputParity]


def parity_chart(evidence: Sequence[ParityEvidence]) -> Chart | None:
    """Each output's error as a multiple of eager's own, beside its limits; the worst dozen where there are more."""
    rows = [(one, output) for one in evidence for output in one.outputs]
    if not rows:
        return None
    shown = sorted(rows, key=lambda row: -_share(row))[:_OUTPUTS_SHOWN]
    rows = [row for row in rows if row in shown]
    cut = len(shown) < sum(len(one.outputs) for one in evidence)
    left = f" The {len(rows)} outputs nearest to their limits; the table has all." if cut else ""
    return draw(
        lambda axes: _paint_parity(axes, rows),
        height=0.98 + _ROW * len(rows),
        top=0.38,
        label="Error of each output as a multiple of eager's own error, on a logarithmic scale, against its limits",
        caption="Error against float64, as a multiple of the error that eager itself makes. Dot: largest error. "
        f"Diamond: L2. What lies right of its line fails.{left}",
    )


def latency_charts(evidence: LatencyEvidence, *, title: str = "Latency") -> tuple[Chart, ...]:
    """The distribution of each contender's latency, one plot per batch size."""
    batches = groupby(evidence.cells, key=lambda cell: cell.batch)
    return tuple(_latency_chart(f"{title} at batch {batch}", tuple(cells)) for batch, cells in batches)


def _share(row: Row) -> float:
    """How much of its budget an output used, for what cannot be compared: all."""
    evidence, output = row
    shares = (output.max_multiple / evidence.max_limit, output.l2_multiple / evidence.l2_limit)
    return math.inf if any(math.isnan(share) for share in shares) else max(shares)


def _paint_parity(axes: "Axes", rows: Sequence[Row]) -> None:
    from matplotlib.lines import Line2D

    values = [value for evidence, output in rows for value in (*_multiples(output), evidence.max_limit * 1.5)]
    low, high = span([*values, 0.1], margin=1.8)
    log_axis(axes, "x", low, high)
    for number, row in enumerate(rows):
        _paint_output(axes, len(rows) - 1 - number, row, (low, high))
    # The limits are the same for all in one run: those of the first stand for the rest.
    first = rows[0][0]
    axes.axvspan(first.max_limit, high, color=colour("bad"), alpha=0.08, linewidth=0)
    axes.axvline(first.max_limit, color=colour("bad"), linewidth=1.4)
    axes.axvline(first.l2_limit, color=colour("bad"), linewidth=1.2, linestyle=(0, (4, 3)))
    axes.axvline(1.0, color=colour("muted"), linewidth=0.8)
    axes.set_ylim(-0.5, len(rows) - 0.25)
    axes.set_yticks([])
    axes.spines["left"].set_visible(False)
    axes.set_xlabel("times eager's own error")
    red, ink = colour("bad"), colour("one")
    key = [
        Line2D([], [], marker="o", color=ink, linestyle="none", label="max"),
        Line2D([], [], marker="D", color=ink, linestyle="none", label="L2"),
        Line2D([], [], color=red, label=f"limit, max ({first.max_limit:g}x)"),
        Line2D([], [], color=red, linestyle=(0, (4, 3)), label=f"L2 ({first.l2_limit:g}x)"),
    ]
    axes.legend(
        handles=key, loc="lower center", bbox_to_anchor=(0.48, 1.0), ncols=4, columnspacing=0.9, handletextpad=0.4,
        handlelength=1.4, borderpad=0,
    )  # fmt: skip


def _paint_output(axes: "Axes", place: int, row: Row, ends: tuple[float, float]) -> None:
    """One output: its name, a dot and a diamond, and the figures themselves where they are over a limit."""
    evidence, output = row
    limits = (evidence.max_limit, evidence.l2_limit)
    values = _multiples(output)
    for value, limit, marker, size in zip(values, limits, "oD", (8, 6), strict=True):
        # What is zero, infinite or not a number at all is drawn at the edge it belongs to.
        at = ends[1] / 1.15 if math.isnan(value) else min(max(value, ends[0] * 1.15), ends[1] / 1.15)
        axes.plot(
            at, place, marker=marker, markersize=size, color=colour(_tone(value, limit)), zorder=4, linestyle="none"
        )
    passed = evidence.judgement.passed
    over = any(_tone(value, limit) == "bad" for value, limit in zip(values, limits, strict=True))
    figures = f": max {times(values[0])}x, L2 {times(values[1])}x" if over else ""
    name = f"{label_of(output.output)} ({evidence.format}){'' if passed else ' FAIL'}{figures}"
    axes.text(
        0.005, place + 0.42, name, transform=axes.get_yaxis_transform(), ha="left", va="center", zorder=5,
        color=colour("ink" if passed else "bad"), bbox={"facecolor": colour("paper"), "edgecolor": "none", "pad": 1.0},
    )  # fmt: skip


def _tone(value: float, limit: float) -> str:
    return "one" if value <= limit else "bad"


def _multiples(output: OutputParity) -> tuple[float, float]:
    return output.max_multiple, output.l2_multiple


def _latency_chart(title: str, cells: Sequence[LatencyCell]) -> Chart:
    whole = all(cell.distribution for cell in cells)
    how = (
        "Thick: the middle half of the calls. Thin: 5 to 95 %. Dots: fastest and slowest. Bar: median."
        if whole
        else "Bar: median, with its interval. Dots: p90, p95 and p99, where they exist."
    )
    return draw(
        lambda axes: _paint_latency(axes, cells),
        height=0.62 + _ROW * len(cells),
        label=f"{title}: its distribution in milliseconds, one row per contender, on a logarithmic scale",
        caption=f"{title}. {how}",
    )


def _paint_latency(axes: "Axes", cells: Sequence[LatencyCell]) -> None:
    low, high = span([value for cell in cells for value in _points(cell)])
    log_axis(axes, "x", low, high)
    for number, cell in enumerate(cells):
        place = len(cells) - 1 - number
        shade = colour(_shade(cell.contender))
        (_paint_strip if cell.distribution else _paint_marks)(axes, place, cell, shade)
        median = f"  {short(cell.p50.value)} ms" if cell.p50 else ""
        axes.text(
            0.005, place + 0.36, f"{label_of(cell.contender)}{median}", transform=axes.get_yaxis_transform(),
            ha="left", va="center", zorder=5,
        )  # fmt: skip
    axes.set_ylim(-0.45, len(cells) - 0.25)
    axes.set_yticks([])
    axes.spines["left"].set_visible(False)
    axes.set_xlabel("ms")


def _shade(contender: str) -> str:
    """Grey for eager and for controls, else by format: `onnx`, or `onnx v2` where versions are compared."""
    if contender == EAGER or is_control(contender):
        return "muted"
    return {"aoti": "two", "onnx": "one"}.get(contender.split(" ", maxsplit=1)[0], "three")


def _points(cell: LatencyCell) -> list[float]:
    quantiles = [each for each in (cell.p50, cell.p90, cell.p95, cell.p99) if each]
    ends = [end for each in quantiles for end in (each.value, each.low, each.high)] if not cell.distribution else []
    return [*cell.distribution, *ends]


def _paint_strip(axes: "Axes", place: int, cell: LatencyCell, shade: str) -> None:
    from numpy import interp, linspace

    shares = linspace(0.0, 1.0, len(cell.distribution))
    p0, p5, p25, p50, p75, p95, p100 = interp((0, 0.05, 0.25, 0.5, 0.75, 0.95, 1), shares, cell.distribution)
    axes.plot([p5, p95], [place, place], color=shade, linewidth=2.2, solid_capstyle="butt")
    axes.plot([p25, p75], [place, place], color=shade, linewidth=9, alpha=0.55, solid_capstyle="butt")
    axes.plot([p0, p100], [place, place], color=shade, marker=".", markersize=5, linestyle="none")
    axes.plot([p50], [place], color=colour("ink"), marker="|", markersize=13, markeredgewidth=2, zorder=4)


def _paint_marks(axes: "Axes", place: int, cell: LatencyCell, shade: str) -> None:
    if cell.p50:
        axes.plot([cell.p50.low, cell.p50.high], [place, place], color=shade, linewidth=2.2)
        axes.plot([cell.p50.value], [place], color=colour("ink"), marker="|", markersize=13, markeredgewidth=2)
    tail = [each.value for each in (cell.p90, cell.p95, cell.p99) if each]
    axes.plot(tail, [place] * len(tail), color=shade, marker="o", markersize=5, linestyle="none")
