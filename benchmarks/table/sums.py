"""What follows from the records: speed-ups with intervals, geometric means, and where ours stands.

Owns the arithmetic; words are in page, aims in aims. Called by those, by plots and by assemble.

A speed-up is the median over rounds of (the base's median of the round over the contender's), with its order-statistic
interval. A geometric mean is over models; each model's race is its own, so the half-widths of the logarithms add as
independent errors do, upwards and downwards apart. What differs from 1 less than eager from itself (A/A) is not told
apart from it.
"""

import math
from collections.abc import Iterable, Sequence

from benchmarks.table.records import AOTI, BY_HAND, EAGER, NAVIGATOR, OUR_AOTI, OUR_ORT, OURS, Cold, ModelRecord
from deploy.latency_evidence import control_of
from deploy.validate.statistics import TOO_NOISY, Estimate, paired_ratio

CONTROL = control_of(EAGER)
EXPORT = "export"
OUR_CONVERSIONS = ("convert to aoti", "convert to onnx")
# What Model Navigator's `optimize()` does too: convert, check, measure.
_SHARED_STAGES = (EXPORT, *OUR_CONVERSIONS, "prove against float64", "measure latency")
_SEARCH = "find the fastest"
ABOVE, BELOW, LEVEL, NOISY, UNKNOWN = "above", "below", "level", "too noisy", "not measured"


def speedup(model: ModelRecord, contender: str, *, base: str = EAGER, batch: int = 1) -> Estimate | None:
    """How many times as fast as the base the contender is; None where one of them was not measured."""
    ours, theirs = model.cell(contender, batch), model.cell(base, batch)
    if ours is None or theirs is None:
        return None
    return paired_ratio([[one] for one in theirs.rounds], [[one] for one in ours.rounds], model.settings.confidence)


def noise(model: ModelRecord, batch: int = 1) -> float:
    """How far from 1, as a factor, a speed-up may lie by noise alone: what eager against itself shows."""
    control = speedup(model, CONTROL, batch=batch)
    return math.inf if control is None else max(1.0, control.high, 1.0 / control.low)


def widened(estimate: Estimate, factor: float) -> Estimate:
    """The estimate with its interval wider by a factor to both sides."""
    return Estimate(value=estimate.value, low=estimate.low / factor, high=estimate.high * factor)


def best_by_hand(model: ModelRecord, batch: int = 1) -> str | None:
    """The fastest route by hand, eager among them, by this very measurement: chance favours it, never us."""
    medians = {name: cell.p50.value for name in BY_HAND if (cell := model.cell(name, batch)) and cell.p50}
    return min(medians, key=lambda name: medians[name], default=None)


def ours(model: ModelRecord) -> str | None:
    """What `package` chose, by a measurement of its own."""
    return OURS[model.chosen] if model.chosen else None


def against_eager(model: ModelRecord) -> Estimate | None:
    """Our chosen artifact over eager, at batch 1."""
    name = ours(model)
    return speedup(model, name) if name else None


def against_best(model: ModelRecord) -> Estimate | None:
    """Our chosen artifact over the best route by hand, at batch 1."""
    name, base = ours(model), best_by_hand(model)
    return speedup(model, name, base=base) if name and base else None


def standing(model: ModelRecord) -> str:
    """Where we stand against the best by hand: above, below, or level, where chance or noise can explain it.

    Nothing is said of a model whose control shows a machine too noisy to compare.
    """
    found = against_best(model)
    if noise(model) > TOO_NOISY:
        return NOISY
    if found is None:
        return UNKNOWN
    wide = widened(found, noise(model))
    return ABOVE if wide.low > 1.0 else BELOW if wide.high < 1.0 else LEVEL


def aoti_time_over_ort(model: ModelRecord) -> Estimate | None:
    """The time of our AOTInductor artifact over that of our ONNX one, at batch 1."""
    return speedup(model, OUR_ORT, base=OUR_AOTI)


def geometric_mean(estimates: Iterable[Estimate | None]) -> Estimate | None:
    """Over those that there are; None without any."""
    found = [one for one in estimates if one is not None]
    if not found:
        return None
    centre = sum(math.log(one.value) for one in found) / len(found)
    down = math.sqrt(sum(math.log(one.value / one.low) ** 2 for one in found)) / len(found)
    up = math.sqrt(sum(math.log(one.high / one.value) ** 2 for one in found)) / len(found)
    return Estimate(value=math.exp(centre), low=math.exp(centre - down), high=math.exp(centre + up))


def hand_conversion(model: ModelRecord) -> Cold | None:
    """The script that converts to both formats by hand."""
    return model.run("by hand")


def hand_seconds(run: Cold, route: str) -> float:
    """From the start of the script to the artifact of a route, as if it had made that one alone."""
    shared = run.until(EXPORT)
    return shared + run.stages["aoti" if route == AOTI else "onnx"].seconds


def converted_after(model: ModelRecord) -> float | None:
    """Seconds from the start of our command until both artifacts of the default effort lay there."""
    run = model.run("deployctl")
    done = [name for name in OUR_CONVERSIONS if run and name in run.stages]
    return run.until(*done) if run and len(done) == len(OUR_CONVERSIONS) else None


def searched(model: ModelRecord) -> float:
    """Seconds of our command that went into looking for faster artifacts; 0 for the default effort."""
    run = model.run("deployctl")
    return sum(stage.seconds for name, stage in run.stages.items() if name.startswith(_SEARCH)) if run else 0.0


def conversion_ratio(model: ModelRecord) -> float | None:
    """Our time until both artifacts are there over that of the script by hand, each from its own start; cold."""
    by_hand, mine = hand_conversion(model), converted_after(model)
    return mine / by_hand.until("aoti", "onnx") if by_hand and mine else None


def same_stages(model: ModelRecord) -> float | None:
    """Wall seconds of our stages that Model Navigator has too: neither reading the checkpoint nor the search."""
    run = model.run("deployctl")
    spans = (
        sorted((run.stages[name].start, run.stages[name].end) for name in _SHARED_STAGES if name in run.stages)
        if run
        else []
    )
    total, until = 0.0, 0.0
    for start, end in spans:  # conversions run beside each other
        total += max(0.0, end - max(start, until))
        until = max(until, end)
    return total or None


def navigator_ratio(model: ModelRecord) -> float | None:
    """The time of Model Navigator's `optimize()` over that of the same stages of ours."""
    theirs, mine = model.run(NAVIGATOR), same_stages(model)
    return theirs.stages["optimize"].seconds / mine if theirs and mine else None


def mean_and_range(values: Sequence[float | None]) -> Estimate | None:
    """The geometric mean of single runs, with the least and the greatest of them: no interval exists at n = 1."""
    found = [one for one in values if one is not None]
    if not found:
        return None
    centre = math.exp(sum(map(math.log, found)) / len(found))
    return Estimate(value=centre, low=min(found), high=max(found))
