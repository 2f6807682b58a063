"""Who runs when: one contender at a time, in a new random order each round, the others stopped.

Owns the order, the time spent and the loss of a contender; the contenders are in `contenders`, what the times say in
`latency`, which calls this.
"""

import math
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from statistics import mean
from typing import TypeVar

from deploy.convert.model import Device
from deploy.errors import UnfinishedError
from deploy.latency_evidence import EAGER, ContenderStart, LostContender, control_of, is_control
from deploy.validate.contenders import Contender
from deploy.validate.machine import default_threads
from deploy.validate.statistics import TOO_NOISY, paired_ratio, percentile, smallest_n, span

T = TypeVar("T")

Rounds = list[list[float]]
Timings = dict[str, Rounds]

_MAX_ROUNDS = 50
# From six rounds the interval of a median is all that was seen; from 15 it leaves out three on either side.
_LEAST_ROUNDS = 15
_PATIENCE = 5.0
_MAX_ROUNDS_FOR_SLO = 500
_MAX_CALLS_PER_BLOCK = 200
_WARM_UP_SECONDS = 0.3
# A p99 takes 368 calls at 95 %; an SLO is worth waiting for longer than a table is.
_SLO_PATIENCE = 6.0


@dataclass(frozen=True, slots=True, kw_only=True)
class LatencyPlan:
    """What to measure and what to decide. `seconds_per_cell` is the time for one contender at one batch size.

    `device` is where the run takes place, `gpu` which one that is, `target_device` where the version will run.
    `incumbent` is the contender that the others are compared with directly, beside eager: the format that a new one has
    to beat. `sizes` are the batch sizes to measure, where they are not to follow from `max_batch`; the smallest one is
    measured up to `attempts` times, for as long as a control shows a machine too noisy to compare.
    """

    max_batch: int
    sizes: tuple[int, ...] = ()
    threads: int = field(default_factory=default_threads)
    device: Device = "cpu"
    gpu: str = ""
    target_device: str = "cpu"
    slo_p99_ms: float | None = None
    incumbent: str | None = None
    thorough: bool = False
    seconds_per_cell: float = 2.5
    block_seconds: float = 0.05
    confidence: float = 0.95
    attempts: int = 1
    seed: int = 0

    def __post_init__(self) -> None:
        if min(self.max_batch, *self.sizes, self.threads) < 1 or self.seconds_per_cell <= 0:
            raise ValueError("a latency plan needs a batch, a thread and some time")

    @property
    def batches(self) -> tuple[int, ...]:
        """The `sizes`; else batch 1 and the maximum, with `thorough` the powers of two between as well."""
        if self.sizes:
            return tuple(sorted(set(self.sizes)))
        between = [2**power for power in range(1, self.max_batch.bit_length())] if self.thorough else []
        return tuple(sorted({1, self.max_batch, *(batch for batch in between if batch < self.max_batch)}))


@dataclass(frozen=True, slots=True, kw_only=True)
class Finished:
    """The seconds of each timed call by batch size, contender and round; what each cost to start; who was lost."""

    timings: dict[int, Timings]
    starts: tuple[ContenderStart, ...]
    lost: tuple[LostContender, ...]


def run_race(contenders: Sequence[Contender], plan: LatencyPlan) -> Finished:
    """What every contender took, for as long as it stayed in the race.

        1. Load each contender while the others are stopped; time its first call.
        2. For each batch size: warm each up, then time short blocks of calls in a new random order each round; anew
           where the plan has another attempt.
        3. Ask each what memory it took.

    A contender that crashes, hangs past its limit or fails loses itself only: its times at that batch size are
    dropped and the others go on. Raises its UnfinishedError if it was the last that the race is about.
    """
    field_ = _Field(running=list(contenders))
    loaded = {one.name: field_.attempt(one, "loading", partial(_load, one)) for one in contenders}
    order = random.Random(plan.seed)  # noqa: S311 - an order, not a secret
    timings = {batch: _quietest(field_, batch, plan, order) for batch in plan.batches}
    starts = (_with_memory(field_, one, loaded[one.name]) for one in contenders)
    return Finished(timings=timings, starts=tuple(one for one in starts if one), lost=tuple(field_.lost))


@dataclass(slots=True, kw_only=True)
class _Field:
    """Who is still running, and who was lost."""

    running: list[Contender]
    lost: list[LostContender] = field(default_factory=list)

    def attempt(self, contender: Contender, doing: str, work: Callable[[], T]) -> T | None:
        """What `work` gives; None if the contender is lost by it, or was before.

        Raises the UnfinishedError if with it the last is lost that is neither eager nor a control.
        """
        if contender not in self.running:
            return None
        try:
            return work()
        except UnfinishedError as error:
            contender.close()
            subject = _is_subject(contender)
            self.running.remove(contender)
            self.lost.append(LostContender(contender=contender.name, doing=doing, reason=error.found))
            if not self.running or (subject and not any(map(_is_subject, self.running))):
                raise
            return None


def _is_subject(contender: Contender) -> bool:
    return contender.name != EAGER and not is_control(contender.name)


def _load(contender: Contender) -> ContenderStart:
    load_seconds, first = contender.load(), contender.first()
    contender.pause()
    return ContenderStart(
        contender=contender.name, load_seconds=load_seconds, first_call_ms=first * 1000, peak_memory=0
    )


def _with_memory(field_: _Field, contender: Contender, start: ContenderStart | None) -> ContenderStart | None:
    if start is None or contender not in field_.running:
        return start
    contender.resume()
    memory = field_.attempt(contender, "reading its memory", contender.memory)
    return start.model_copy(update={"peak_memory": memory.peak, "base_memory": memory.base}) if memory else start


def _quietest(field_: _Field, batch: int, plan: LatencyPlan, order: random.Random) -> Timings:
    """The times of the attempt that its controls call the quietest: who is compared has no part in which that is."""
    timings = _race(field_, batch, plan, order)
    for _ in range(plan.attempts - 1 if batch == plan.batches[0] else 0):
        if not TOO_NOISY < _noise(timings, plan) < math.inf:
            break
        timings = min(timings, _race(field_, batch, plan, order), key=lambda found: _noise(found, plan))
    return timings


def _noise(timings: Timings, plan: LatencyPlan) -> float:
    """How far the interval of what a model takes of its own time reaches, as a factor; infinite without a control."""
    pairs = [(timings[control_of(name)], timings[name]) for name in timings if control_of(name) in timings]
    ratios = [found for pair in pairs if (found := paired_ratio(*pair, plan.confidence))]
    return max((span(one.low, one.high) for one in ratios), default=math.inf)


def _race(field_: _Field, batch: int, plan: LatencyPlan, order: random.Random) -> Timings:
    doing = f"batch {batch}"
    warm_up = {one.name: field_.attempt(one, doing, partial(_warm_up, one, batch, plan)) for one in [*field_.running]}
    timings: Timings = {contender.name: [] for contender in field_.running}
    spent = dict.fromkeys(timings, 0.0)
    while not _enough(timings, mean(spent[name] for name in timings), batch, plan):
        for contender in order.sample(field_.running, len(field_.running)):
            calls = warm_up[contender.name]
            assert calls is not None, "whoever is running was warmed up"
            seconds = field_.attempt(contender, doing, partial(_block, contender, batch, calls))
            if seconds is None:
                del timings[contender.name]
                continue
            spent[contender.name] += sum(seconds)
            # The first call after a stop refills caches. A call as long as a block does that as it goes.
            timings[contender.name].append(seconds[1:] or seconds)
    return timings


def _warm_up(contender: Contender, batch: int, plan: LatencyPlan) -> int:
    """Call until kernels, caches and allocators have settled; gives the calls that fill one block of a round."""
    once, enough = _block(contender, batch, 1)[0], min(_WARM_UP_SECONDS, plan.seconds_per_cell)
    # At least two calls, and the fastest counts: the first one after a stop says little about the rest. One that took
    # as long as all of the warm-up is to take was that warm-up; then one more call says how long the rest are.
    fastest = min(_block(contender, batch, max(1 if once >= enough else 2, _calls_in(enough, once))))
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

    At batch 1, where winners are chosen, calls so long that few fit into the time get more of it.

    Only whether intervals exist is looked at, never where they lie, so that looking often decides nothing.
    """
    rounds = min(map(len, timings.values()))
    if rounds < smallest_n(0.5, plan.confidence):
        return False
    if spent < plan.seconds_per_cell and rounds < _MAX_ROUNDS:
        return False
    if batch == 1 and rounds < _LEAST_ROUNDS and spent < _PATIENCE * plan.seconds_per_cell:
        return False
    if plan.slo_p99_ms is None or batch != 1:
        return True
    if spent >= _SLO_PATIENCE * plan.seconds_per_cell or rounds >= _MAX_ROUNDS_FOR_SLO:
        return True
    subjects = [name for name in timings if name != EAGER and not is_control(name)]
    return all(percentile(timings[name], 0.99, plan.confidence) for name in subjects)
