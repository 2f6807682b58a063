"""Load runs drawn: latency by percentile, the run over time, where the time went, and rate against p99.

Owns what is drawn; looks are in `charts`. Called by `slo_sections`.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from deploy.latency_evidence import short
from deploy.report.charts import Chart, colour, draw, log_axis, span
from deploy.report.words import INVALID, printable, reason, standing
from deploy.slo.records import BoundResult, RateEvidence, ServerSide, SloEvidence

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_TICKS = (0.0, 0.5, 0.9, 0.99, 0.999, 0.9999)
_MARKS = {"PASS": ("o", "good"), "FAIL": ("X", "bad"), "UNDECIDED": ("^", "warn"), INVALID: ("s", "muted")}


@dataclass(frozen=True, slots=True, kw_only=True)
class RatePoint:
    """One rate that was tried: the p99 it gave, None where nothing came back, and its verdict with the reason."""

    rate: float
    p99: float | None
    word: str
    reason: str


def percentile_chart(evidence: SloEvidence) -> Chart | None:
    """Latency by percentile, each further nine as wide as the one before, with the promises marked."""
    points = _percentile_points(evidence)
    if len(points) < 2:
        return None
    return draw(
        lambda axes: _paint_percentiles(axes, points, evidence),
        height=3.0,
        top=0.36,
        label="Latency in milliseconds by percentile, on a logarithmic scale, with the promised limits",
        caption="Latency from the scheduled time, by percentile: each further nine is as wide as the one before. "
        "A promise is kept where the curve passes below its mark.",
    )


def timeline_chart(evidence: SloEvidence) -> Chart | None:
    """p50, p99 and the slowest query of each stretch of the run, and where queries failed."""
    if len(evidence.timeline) < 2:
        return None
    return draw(
        lambda axes: _paint_timeline(axes, evidence),
        height=3.0,
        top=0.36,
        label="p50, p99 and maximum latency in milliseconds over the seconds of the run, with the promised limits",
        caption="The run over time. A cross at the top marks a stretch in which queries failed.",
    )


def server_chart(server: ServerSide) -> Chart | None:
    """The mean time of a request on the server, in its parts."""
    parts = (
        ("queue", server.queue, "three"),
        ("input", server.compute_input, "four"),
        ("inference", server.compute_infer, "one"),
        ("output", server.compute_output, "two"),
    )
    if not sum(amount for _, amount, _ in parts) > 0:
        return None
    return draw(
        lambda axes: _paint_server(axes, parts),
        height=1.65,
        top=0.56,
        label="Mean milliseconds of a request on the server: queue, input, inference, output",
        caption="Mean time per request on the server. What the client saw beyond it is the network, the protocol and "
        "the wait for a connection.",
    )


def rate_points(runs: Sequence[SloEvidence], searches: Sequence[RateEvidence]) -> list[RatePoint]:
    """Every rate that was tried, ascending, in single runs and in the steps of searches."""
    points = {RatePoint(rate=run.rate, p99=_p99(run), word=standing(run), reason=reason(run)) for run in runs}
    points |= {
        RatePoint(rate=step.rate, p99=step.p99, word=step.verdict.upper(), reason=printable(step.reason))
        for search in searches
        for step in search.steps
    }
    return sorted(points, key=lambda point: (point.rate, point.p99 or math.inf, point.word, point.reason))


def rate_chart(points: Sequence[RatePoint], limit: float | None, *, of: str = "") -> Chart | None:
    """The p99 at each rate that was tried, marked by verdict, with the limit in milliseconds where there is one.

    `of` says whose p99 it is, where a page has more than one such plot.
    """
    whose = f"p99 {of}".rstrip()
    known = [point for point in points if point.p99 is not None and 0 < point.p99 < math.inf]
    if not known:
        return None
    left = "" if len(known) == len(points) else " Where nothing came back there is no p99, and no point."
    return draw(
        lambda axes: _paint_rates(axes, known, limit),
        height=3.0,
        top=0.36,
        label=f"{whose} in milliseconds against the rate in queries per second, each point marked by its verdict",
        caption=f"{whose} at each rate that was tried.{left}",
    )


def _p99(run: SloEvidence) -> float | None:
    return next((quantile.value for quantile in run.quantiles if math.isclose(quantile.q, 0.99)), None)


def p99_limit(runs: Sequence[SloEvidence]) -> float | None:
    """The limit that the last of these runs put on p99."""
    limits = [bound.bound.limit for run in runs for bound in _latency_bounds(run) if math.isclose(bound.bound.q, 0.99)]
    return limits[-1] if limits else None


def _latency_bounds(evidence: SloEvidence) -> list[BoundResult]:
    return [result for result in evidence.bounds if result.bound.kind == "latency"]


def _percentile_points(evidence: SloEvidence) -> list[tuple[float, float]]:
    """(share, milliseconds), ascending; 100 % is left out, since it lies infinitely far to the right."""
    count = len(evidence.distribution)
    points = (
        {number / (count - 1): value for number, value in enumerate(evidence.distribution[:-1])} if count > 1 else {}
    )
    points |= {quantile.q: quantile.value for quantile in evidence.quantiles}
    return sorted((share, value) for share, value in points.items() if share < 1 and 0 < value < math.inf)


def _nines(share: float) -> float:
    return -math.log10(1.0 - share)


def _paint_percentiles(axes: "Axes", points: Sequence[tuple[float, float]], evidence: SloEvidence) -> None:
    bounds = _latency_bounds(evidence)
    right = _nines(max(points[-1][0], 0.99)) * 1.04
    low, high = span([*(value for _, value in points), *(result.bound.limit for result in bounds)], margin=1.35)
    log_axis(axes, "y", low, high)
    axes.plot([_nines(share) for share, _ in points], [value for _, value in points], color=colour("one"), linewidth=2)
    for result in bounds:
        word = INVALID if evidence.invalid is not None else result.judgement.verdict.upper()
        _, role = _MARKS[word]
        at, limit = _nines(result.bound.q), result.bound.limit
        axes.plot([0, at], [limit, limit], color=colour(role), linewidth=1, linestyle=(0, (4, 3)))
        axes.plot([at], [limit], color=colour(role), marker="v", markersize=9, linestyle="none", zorder=4)
        axes.annotate(
            f"{result.bound.wanted}: {word}", (0.02, limit), (0, 3),
            textcoords="offset points", color=colour(role), fontsize=11, va="bottom", ha="left",
        )  # fmt: skip
    ticks = [share for share in _TICKS if _nines(share) <= right]
    axes.set_xticks([_nines(share) for share in ticks], [f"{share * 100:g}" for share in ticks])
    axes.set_xlim(0, right)
    axes.set_xlabel("percentile")
    _unit(axes, "ms")


def _paint_timeline(axes: "Axes", evidence: SloEvidence) -> None:
    moments = evidence.timeline
    seconds = [moment.second for moment in moments]
    limits = [result.bound.limit for result in _latency_bounds(evidence)]
    log_axis(axes, "y", *span([*limits, *(value for one in moments for value in (one.p50, one.p99, one.maximum))]))
    series = (("max", "muted", ".", 0.0), ("p99", "one", None, 1.8), ("p50", "three", None, 1.8))
    for name, role, marker, width in series:
        values = [getattr(one, "maximum" if name == "max" else name) for one in moments]
        style = "-" if width else "none"
        axes.plot(
            seconds, values, color=colour(role), marker=marker, markersize=4, linewidth=width, linestyle=style,
            label=name,
        )  # fmt: skip
    for number, limit in enumerate(limits):
        label = "limit" if number == 0 else None
        axes.axhline(limit, color=colour("bad"), linewidth=1.2, linestyle=(0, (4, 3)), label=label)
    failed = [one.second for one in moments if one.failed]
    if failed:
        axes.plot(
            failed, [0.96] * len(failed), transform=axes.get_xaxis_transform(), color=colour("bad"), marker="x",
            markersize=6, markeredgewidth=1.6, linestyle="none", label="failed",
        )  # fmt: skip
    axes.set_xlabel("seconds after the warm-up")
    _unit(axes, "ms")
    _legend(axes)


def _paint_server(axes: "Axes", parts: Sequence[tuple[str, float, str]]) -> None:
    left = 0.0
    for name, amount, role in parts:
        axes.barh([0], [amount], left=left, height=0.7, color=colour(role), label=f"{name} {short(amount)}")
        left += amount
    axes.set_xlim(0, left * 1.02)
    axes.set_yticks([])
    axes.spines["left"].set_visible(False)
    axes.set_xlabel("ms per request")
    _legend(axes, columns=2)


def _paint_rates(axes: "Axes", points: Sequence[RatePoint], limit: float | None) -> None:
    rates = [point.rate for point in points]
    values = [point.p99 or 0.0 for point in points]
    log_axis(axes, "y", *span([*values, *([limit] if limit else [])], margin=1.4))
    axes.plot(rates, values, color=colour("grid"), linewidth=1.2, zorder=1)
    for word, (marker, role) in _MARKS.items():
        of_word = [(point.rate, value) for point, value in zip(points, values, strict=True) if point.word == word]
        if of_word:
            axes.plot(
                *zip(*of_word, strict=True), color=colour(role), marker=marker, markersize=8, linestyle="none",
                label=word.lower(),
            )  # fmt: skip
    if limit:
        axes.axhline(limit, color=colour("bad"), linewidth=1.2, linestyle=(0, (4, 3)), label=f"limit {limit:g} ms")
    room = 0.08 * (max(rates) - min(rates)) or 0.5 * max(rates)
    axes.set_xlim(max(0.0, min(rates) - room), max(rates) + room)
    axes.set_xlabel("queries per second")
    _unit(axes, "p99 in ms")
    _legend(axes)


def _unit(axes: "Axes", text: str) -> None:
    """The unit of the y axis above it, where it takes no width."""
    axes.text(-0.1, 1.02, text, transform=axes.transAxes, ha="left", va="bottom", color=colour("muted"), fontsize=11)


def _legend(axes: "Axes", *, columns: int = 5) -> None:
    axes.legend(
        loc="lower right", bbox_to_anchor=(1.01, 1.0), ncols=columns, columnspacing=0.9, handletextpad=0.4,
        handlelength=1.2, borderpad=0,
    )  # fmt: skip
