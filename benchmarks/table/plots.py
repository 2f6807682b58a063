"""Two plots of the table, as SVG files beside the page.

Owns size and colours. Imports matplotlib on use, without pyplot. Equal records give equal bytes.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.table import sums
from benchmarks.table.records import AOTI, COMPILED, ORT, OUR_AOTI, OUR_ORT, ModelRecord

if TYPE_CHECKING:
    from matplotlib.axes import Axes

SPEED_PLOT, CONVERSION_PLOT = "benchmarks-speed.svg", "benchmarks-conversion.svg"
# By hand in greys, ours in colours that the colour-blind tell apart.
_COLOURS = {COMPILED: "#d0d0d0", AOTI: "#a8a8a8", ORT: "#787878", OUR_AOTI: "#e69f00", OUR_ORT: "#0072b2"}
_WIDTH, _BAR = 9.0, 0.16


def draw_plots(models: Sequence[ModelRecord], folder: Path) -> None:
    """Write both."""
    _draw(folder / SPEED_PLOT, lambda axes: _speed(axes, models))
    _draw(folder / CONVERSION_PLOT, lambda axes: _conversion(axes, models))


def _speed(axes: "Axes", models: Sequence[ModelRecord]) -> None:
    for place, route in enumerate(_COLOURS):
        for number, model in enumerate(models):
            found = sums.speedup(model, route)
            if found is None:
                continue
            at = number + (place - 2) * _BAR
            error = [[found.value - found.low], [found.high - found.value]]
            label = route if number == 0 else None
            axes.bar(at, found.value, _BAR, color=_COLOURS[route], label=label, yerr=error, ecolor="#303030")
    axes.axhline(1.0, color="#303030", linewidth=0.8)
    axes.set_ylabel("times as fast as eager, batch 1")
    _models_below(axes, models)


def _conversion(axes: "Axes", models: Sequence[ModelRecord]) -> None:
    bars: dict[str, tuple[str, Callable[[ModelRecord], float | None]]] = {
        "both formats by hand": ("#787878", _hand_seconds),
        "both formats, deployctl": ("#0072b2", sums.converted_after),
    }
    for place, (label, (colour, seconds)) in enumerate(bars.items()):
        for number, model in enumerate(models):
            found = seconds(model)
            if found is not None:
                at = number + (place - 0.5) * 2 * _BAR
                axes.bar(at, found, 2 * _BAR, color=colour, label=label if number == 0 else None)
    axes.set_ylabel("seconds, cold")
    _models_below(axes, models)


def _hand_seconds(model: ModelRecord) -> float | None:
    run = sums.hand_conversion(model)
    return run.until("aoti", "onnx") if run else None


def _models_below(axes: "Axes", models: Sequence[ModelRecord]) -> None:
    axes.set_xticks(range(len(models)), [model.model for model in models])
    axes.legend(frameon=False, ncols=3, loc="lower left", bbox_to_anchor=(0.0, 1.0))


def _draw(path: Path, paint: "Callable[[Axes], None]") -> None:
    import matplotlib
    from matplotlib.figure import Figure

    settings: dict[Any, Any] = {
        "svg.fonttype": "none", "svg.hashsalt": path.name, "font.size": 9.0, "axes.spines.top": False,
        "axes.spines.right": False, "axes.grid": True, "axes.grid.axis": "y", "axes.axisbelow": True,
        "grid.color": "#e0e0e0", "lines.linewidth": 1.0,
    }  # fmt: skip
    with matplotlib.rc_context(settings):
        figure = Figure(figsize=(_WIDTH, 3.4), layout="constrained", facecolor="white")
        paint(figure.add_subplot())
        figure.savefig(path, format="svg", metadata={"Date": None, "Creator": None})
