"""Artifacts and eager raced against each other in one run, in random order, one at a time.

Owns the race and what is recorded of it; the contenders are in `contenders`, the arithmetic in `statistics`, what
follows from the figures in `winner`. Called by package and bench.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass, field

from deploy.convert.model import FORMATS, Format
from deploy.evidence import (
    EAGER,
    ContenderStart,
    Judgement,
    LatencyCell,
    LatencyEvidence,
    LatencyRatio,
    Quantile,
    Verdict,
)
from deploy.validate.contenders import Contender
from deploy.validate.machine import default_threads, describe_cpus, installed_versions
from deploy.validate.statistics import paired_ratio, percentile, smallest_n
from deploy.validate.winner import find_winner

Rounds = list[list[float]]
Timings = dict[str, Rounds]

_MAX_ROUNDS = 50
_MAX_ROUNDS_FOR_SLO = 500
_MAX_CALLS_PER_BLOCK = 200
_WARM_UP_SECONDS = 0.3
# A p99 takes 368 calls at 95 %; an SLO is worth waiting for longer than a table is.
_SLO_PATIENCE = 6.0


@dataclass(frozen=True, slots=True, kw_only=True)
class LatencyPlan:
    """What to measure and what to decide. `seconds_per_cell` is the time for one contender at one batch size.

    `device` is where the run takes place, `target_device` where the version will run. `incumbent` is the format
    that a new one has to beat.
    """

    max_batch: int
    threads: int = field(default_factory=default_threads)
    device: str = "cpu"
    target_device: str = "cpu"
    slo_p99_ms: float | None = None
    incumbent: Format | None = None
    thorough: bool = False
    seconds_per_cell: float = 2.5
    block_seconds: float = 0.05
    confidence: float = 0.95
    seed: int = 0

    def __post_init__(self) -> None:
        if self.max_batch < 1 or self.threads < 1 or self.seconds_per_cell <= 0:
            raise ValueError("a latency plan needs a batch, a thread and some time")

    @property
    def batches(self) -> tuple[int, ...]:
        """Batch 1 and the maximum; with `thorough`, the powers of two between as well."""
        between = [2**power for power in range(1, self.max_batch.bit_length())] if self.thorough else []
        return tuple(sorted({1, self.max_batch, *(batch for batch in between if batch < self.max_batch)}))


def measure(contenders: Sequence[Contender], plan: LatencyPlan) -> LatencyEvidence:
    """Everything that was measured, with a winner among the formats and a judgement.

    The contenders are `eager`, `eager (A/A)` and the formats. Where the target's device is another one, nothing is
    loaded or measured, and the judgement is undecided.

        1. Load each contender while the others are stopped; time its first call.
        2. For each batch size: warm each up, then time short blocks of calls in a new random order each round.
        3. Sum up: percentiles, ratios to eager and to the incumbent.
        4. Choose and judge.
    """
    if plan.device != plan.target_device:
        return _not_measured(plan)
    loaded = [_load(contender) for contender in contenders]
    order = random.Random(plan.seed)  # noqa: S311 - an order, not a secret
    timings = {batch: _race(contenders, batch, plan, order) for batch in plan.batches}
    cells = tuple(_cell(name, batch, rounds, plan) for batch in timings for name, rounds in timings[batch].items())
    ratios = tuple(ratio for batch in timings for ratio in _ratios(batch, timings[batch], plan))
    outcome = find_winner(cells, ratios, slo_p99_ms=plan.slo_p99_ms, incumbent=plan.incumbent)
    return LatencyEvidence(
        judgement=outcome.judgement,
        device=f"{plan.device}: {describe_cpus()}",
        threads=plan.threads,
        versions=installed_versions(("torch", "onnxruntime")),
        seed=plan.seed,
        method=_method(plan),
        confidence=plan.confidence,
        cells=cells,
        ratios=ratios,
        starts=tuple(_with_memory(start, contender) for start, contender in zip(loaded, contenders, strict=True)),
        winner=outcome.winner,
        winner_rule=outcome.rule,
        slo_p99_ms=plan.slo_p99_ms,
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


def _method(plan: LatencyPlan) -> str:
    return (
        f"one process per contender, the others stopped by SIGSTOP; blocks of about {plan.block_seconds * 1000:.0f} ms "
        "in random order each round; the first call of a block of several is dropped; percentiles by order statistics, "
        "calls of one block weighed by their design effect; ratios paired within rounds; "
        "control: eager against itself in a second process"
    )


def _load(contender: Contender) -> ContenderStart:
    load_seconds, first = contender.load(), contender.first()
    contender.pause()
    return ContenderStart(
        contender=contender.name, load_seconds=load_seconds, first_call_ms=first * 1000, peak_memory=0
    )


def _with_memory(start: ContenderStart, contender: Contender) -> ContenderStart:
    contender.resume()
    memory = contender.memory()
    return start.model_copy(update={"peak_memory": memory.peak, "base_memory": memory.base})


def _race(contenders: Sequence[Contender], batch: int, plan: LatencyPlan, order: random.Random) -> Timings:
    """The seconds of each timed call, by contender and round."""
    calls = {contender.name: _warm_up(contender, batch, plan) for contender in contenders}
    timings: Timings = {contender.name: [] for contender in contenders}
    spent = 0.0
    while not _enough(timings, spent / len(contenders), batch, plan):
        for contender in order.sample(contenders, len(contenders)):
            seconds = _block(contender, batch, calls[contender.name])
            spent += sum(seconds)
            # The first call after a stop refills caches. A call as long as a block does that as it goes.
            timings[contender.name].append(seconds[1:] or seconds)
    return timings


def _warm_up(contender: Contender, batch: int, plan: LatencyPlan) -> int:
    """Call until kernels, caches and allocators have settled; gives the calls that fill one block of a round."""
    once = _block(contender, batch, 1)[0]
    # At least two calls, and the fastest counts: the first one after a stop says little about the rest.
    fastest = min(_block(contender, batch, max(2, _calls_in(_WARM_UP_SECONDS, once))))
    calls = _calls_in(plan.block_seconds, fastest)
    return calls if calls == 1 else calls + 1


def _calls_in(seconds: float, each: float) -> int:
    return max(1, min(_MAX_CALLS_PER_BLOCK, int(seconds / max(each, 1e-9))))


def _block(contender: Contender, batch: int, calls: int) -> list[float]:
    contender.resume()
    try:
        return contender.time_calls(batch, calls)
    finally:
        contender.pause()


def _enough(timings: Timings, spent: float, batch: int, plan: LatencyPlan) -> bool:
    """Whether to stop: never before the median has an interval; an SLO waits for its p99, within reason.

    Only whether intervals exist is looked at, never where they lie, so that looking often decides nothing.
    """
    rounds = len(timings[EAGER])
    if rounds < smallest_n(0.5, plan.confidence):
        return False
    if spent < plan.seconds_per_cell and rounds < _MAX_ROUNDS:
        return False
    if plan.slo_p99_ms is None or batch != 1:
        return True
    if spent >= _SLO_PATIENCE * plan.seconds_per_cell or rounds >= _MAX_ROUNDS_FOR_SLO:
        return True
    return all(percentile(timings[name], 0.99, plan.confidence) for name in FORMATS if name in timings)


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
    )


def _ratios(batch: int, timings: Timings, plan: LatencyPlan) -> list[LatencyRatio]:
    """Everyone, the control too, against eager; and every other format against the incumbent."""
    pairs = [(name, EAGER) for name in timings if name != EAGER]
    if plan.incumbent in timings:
        pairs += [(name, plan.incumbent) for name in FORMATS if name in timings and name != plan.incumbent]
    ratios = []
    for name, base in pairs:
        found = paired_ratio(timings[name], timings[base], plan.confidence)
        assert found is not None, "a race has as many rounds as an interval needs"
        ratio = LatencyRatio(contender=name, base=base, batch=batch, ratio=found.value, low=found.low, high=found.high)
        ratios.append(ratio)
    return ratios
