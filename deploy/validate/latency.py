"""Artifacts and eager raced against each other in one run, in random order, one at a time.

Owns what is measured and what is recorded of it; who runs when is in `race`, the arithmetic in `statistics`, what
follows from the figures in `winner`. Called by package and bench.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from deploy.evidence import Judgement, Verdict
from deploy.latency_evidence import (
    EAGER,
    ContenderStart,
    LatencyCell,
    LatencyEvidence,
    LatencyRatio,
    LostContender,
    Quantile,
    control_of,
    is_control,
)
from deploy.validate.contenders import Contender
from deploy.validate.machine import describe_cpus, installed_versions
from deploy.validate.race import Finished, LatencyPlan, Rounds, Timings, run_race
from deploy.validate.statistics import paired_ratio, percentile
from deploy.validate.winner import Outcome, find_winner

__all__ = ["Figures", "LatencyPlan", "evidence_of", "figures_of", "judged", "measure", "take_figures"]

_DISTRIBUTION = np.linspace(0.0, 1.0, 21)


@dataclass(frozen=True, slots=True, kw_only=True)
class Figures:
    """What a race showed, before anything follows from it."""

    cells: tuple[LatencyCell, ...]
    ratios: tuple[LatencyRatio, ...]
    starts: tuple[ContenderStart, ...]
    lost: tuple[LostContender, ...]


def measure(contenders: Sequence[Contender], plan: LatencyPlan) -> LatencyEvidence:
    """Everything that was measured, with a winner among the formats and a judgement.

    The contenders are `eager`, `eager (A/A)` and the formats. Where the target's device is another one, nothing is
    loaded or measured, and the judgement is undecided. Raises UnfinishedError if every format was lost.
    """
    if plan.device != plan.target_device:
        return _not_measured(plan)
    return judged(take_figures(contenders, plan), plan)


def judged(figures: Figures, plan: LatencyPlan) -> LatencyEvidence:
    """The record of a race of eager, its control and the formats, with a winner among them and a judgement."""
    outcome = find_winner(
        figures.cells,
        figures.ratios,
        slo_p99_ms=plan.slo_p99_ms,
        incumbent=plan.incumbent,
        lost={one.contender for one in figures.lost},
    )
    return evidence_of(figures, plan, outcome)


def take_figures(contenders: Sequence[Contender], plan: LatencyPlan) -> Figures:
    """The race's percentiles, ratios and costs of starting.

    Raises the UnfinishedError of the last contender that is neither eager nor a control, once all of those are lost.
    """
    return figures_of(run_race(contenders, plan), plan)


def figures_of(finished: Finished, plan: LatencyPlan) -> Figures:
    """The percentiles, ratios and costs of starting of a race that was run."""
    timings = finished.timings
    return Figures(
        cells=tuple(_cell(name, batch, rounds, plan) for batch in timings for name, rounds in timings[batch].items()),
        ratios=tuple(ratio for batch in timings for ratio in _ratios(batch, timings[batch], plan)),
        starts=finished.starts,
        lost=finished.lost,
    )


def evidence_of(figures: Figures, plan: LatencyPlan, outcome: Outcome) -> LatencyEvidence:
    """The record of a race and of what follows from it, with how it was got."""
    lost = "".join(f"; {one}" for one in figures.lost)
    return LatencyEvidence(
        judgement=Judgement(verdict=outcome.judgement.verdict, reason=outcome.judgement.reason + lost),
        device=_device(plan),
        threads=plan.threads,
        versions=installed_versions(("torch", "onnxruntime")),
        seed=plan.seed,
        method=_method(plan),
        confidence=plan.confidence,
        cells=figures.cells,
        ratios=figures.ratios,
        starts=figures.starts,
        winner=outcome.winner,
        winner_rule=outcome.rule,
        slo_p99_ms=plan.slo_p99_ms,
        lost=figures.lost,
    )


def _not_measured(plan: LatencyPlan) -> LatencyEvidence:
    reason = f"not measured: the target runs on {plan.target_device}, this run had {plan.device}"
    return LatencyEvidence(
        judgement=Judgement(verdict=Verdict.UNDECIDED, reason=reason),
        device="not measured",
        threads=plan.threads,
        seed=plan.seed,
        method="not measured",
        confidence=plan.confidence,
        cells=(),
        ratios=(),
        starts=(),
        winner=None,
        winner_rule="not measured on the target's device",
        slo_p99_ms=plan.slo_p99_ms,
    )


def _device(plan: LatencyPlan) -> str:
    return f"{plan.device}: {f'{plan.gpu}, on ' if plan.gpu else ''}{describe_cpus()}"


def _method(plan: LatencyPlan) -> str:
    where = (
        "inputs and outputs in the GPU's memory, the device synchronised before and after each call, TF32 off; "
        if plan.device == "cuda"
        else ""
    )
    return where + (
        f"one process per contender, the others stopped by SIGSTOP; blocks of about {plan.block_seconds * 1000:.0f} ms "
        "in random order each round; the first call of a block of several is dropped; percentiles by order statistics, "
        "calls of one block weighed by their design effect; ratios paired within rounds; "
        "control: the same model against itself in a second process"
    )


def _cell(name: str, batch: int, rounds: Rounds, plan: LatencyPlan) -> LatencyCell:
    def quantile(q: float) -> Quantile | None:
        found = percentile(rounds, q, plan.confidence)
        if found is None:
            return None
        return Quantile(value=found.value * 1000, low=found.low * 1000, high=found.high * 1000)

    return LatencyCell(
        contender=name,
        batch=batch,
        n=sum(map(len, rounds)),
        rounds=len(rounds),
        p50=quantile(0.50),
        p90=quantile(0.90),
        p95=quantile(0.95),
        p99=quantile(0.99),
        distribution=tuple((1000 * np.quantile(np.concatenate(rounds), _DISTRIBUTION, method="inverted_cdf")).tolist()),
    )


def _ratios(batch: int, timings: Timings, plan: LatencyPlan) -> list[LatencyRatio]:
    """Everyone against eager and against the incumbent, as far as these took part; a control against its own model."""
    bases = [base for base in dict.fromkeys((EAGER, plan.incumbent)) if base is not None and base in timings]
    return [
        _ratio(name, base, batch, timings, plan.confidence)
        for base in bases
        for name in timings
        if _compared(name, base)
    ]


def _compared(name: str, base: str) -> bool:
    return name == control_of(base) if is_control(name) else name not in (base, EAGER)


def _ratio(name: str, base: str, batch: int, timings: Timings, confidence: float) -> LatencyRatio:
    found = paired_ratio(timings[name], timings[base], confidence)
    assert found is not None, "a race has as many rounds as an interval needs"
    return LatencyRatio(contender=name, base=base, batch=batch, ratio=found.value, low=found.low, high=found.high)
