"""The race: who runs when, how long it lasts, what is recorded, and one real race of two processes."""

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from random import Random

import numpy as np
import pytest

from deploy.evidence import Verdict
from deploy.latency_evidence import CONTROL, EAGER, LatencyCell, LatencyEvidence, LatencyRatio, control_of
from deploy.processes import ChildFailed
from deploy.validate.contenders import SimulatedContender
from deploy.validate.latency import LatencyPlan, measure, take_figures
from deploy.validate.statistics import TOO_NOISY, span


@dataclass
class Machine:
    """Noise that drifts from block to block and hits everyone alike, and a record of who was awake when."""

    seed: int = 0
    drift: float = 0.1
    level: float = 0.0
    random: Random = field(init=False)

    def __post_init__(self) -> None:
        self.random = Random(self.seed)

    def noise(self) -> float:
        self.level = 0.97 * self.level + self.random.gauss(0.0, self.drift)
        return float(np.exp(self.level) * self.random.lognormvariate(0.0, 0.02))


def race(laws: dict[str, Callable[[int], float]], plan: LatencyPlan, machine: Machine | None = None) -> LatencyEvidence:
    machine = machine or Machine()
    contenders = [SimulatedContender(name=name, law=law, noise=machine.noise) for name, law in laws.items()]
    return measure(contenders, plan)


def per_row(milliseconds: float) -> Callable[[int], float]:
    return lambda batch: batch * milliseconds / 1000


def laws(*, aoti: float = 9.0, onnx: float = 6.0, eager: float = 10.0) -> dict[str, Callable[[int], float]]:
    """Milliseconds per row of each contender."""
    return {EAGER: per_row(eager), CONTROL: per_row(eager), "aoti": per_row(aoti), "onnx": per_row(onnx)}


def cell(evidence: LatencyEvidence, contender: str, batch: int = 1) -> LatencyCell:
    return next(c for c in evidence.cells if (c.contender, c.batch) == (contender, batch))


def ratio(evidence: LatencyEvidence, contender: str, base: str = EAGER, batch: int = 1) -> LatencyRatio:
    return next(r for r in evidence.ratios if (r.contender, r.base, r.batch) == (contender, base, batch))


@pytest.mark.parametrize(
    ("max_batch", "thorough", "batches"),
    [(1, False, (1,)), (8, False, (1, 8)), (8, True, (1, 2, 4, 8)), (6, True, (1, 2, 4, 6)), (1, True, (1,))],
)
def test_batches_are_one_and_the_maximum_and_powers_between_when_thorough(
    max_batch: int, thorough: bool, batches: tuple[int, ...]
) -> None:
    assert LatencyPlan(max_batch=max_batch, thorough=thorough, threads=1).batches == batches


def test_ratios_and_their_intervals_hold_the_stated_law_through_drift() -> None:
    truths = {CONTROL: 1.0, "aoti": 0.9, "onnx": 0.6}
    found = [
        ratio
        for seed in range(60)
        for ratio in race(laws(), LatencyPlan(max_batch=8, threads=2, seed=seed), Machine(seed=seed)).ratios
    ]
    assert len(found) == 60 * 3 * 2
    covered = [ratio.low <= truths[ratio.contender] <= ratio.high for ratio in found]
    assert sum(covered) / len(covered) >= 0.93
    assert np.median([(ratio.high - ratio.low) / ratio.ratio for ratio in found if ratio.batch == 1]) < 0.12


def test_every_cell_says_its_n_rounds_and_medians_interval() -> None:
    evidence = race(laws(), LatencyPlan(max_batch=8, threads=2))
    assert {(c.contender, c.batch) for c in evidence.cells} == {(name, b) for name in laws() for b in (1, 8)}
    for found in evidence.cells:
        assert found.n >= found.rounds >= 6
        assert found.p50 is not None
        assert found.p50.low <= found.p50.value <= found.p50.high


def test_a_percentile_whose_interval_does_not_exist_at_that_n_is_absent() -> None:
    slow = cell(race(laws(), LatencyPlan(max_batch=32, threads=2)), EAGER, 32)
    assert slow.n < 36
    assert (slow.p90, slow.p95, slow.p99) == (None, None, None)
    assert slow.p50 is not None


def test_a_race_ends_within_its_budget_but_not_before_the_median_has_an_interval() -> None:
    contender = SimulatedContender(name=EAGER, law=per_row(10_000))
    evidence = measure([contender], LatencyPlan(max_batch=1, threads=1, seconds_per_cell=2.5))
    assert cell(evidence, EAGER).n == 6
    quick = SimulatedContender(name=EAGER, law=per_row(0.001))
    assert cell(measure([quick], LatencyPlan(max_batch=1, threads=1)), EAGER).n <= 50 * 200


def test_calls_of_half_a_second_get_rounds_enough_for_an_interval_that_is_not_all_that_was_seen() -> None:
    slow = race(laws(eager=500.0), LatencyPlan(max_batch=8, threads=1, seconds_per_cell=2.5))
    assert cell(slow, EAGER).rounds == 15
    assert cell(slow, EAGER, batch=8).rounds == 6


@pytest.mark.parametrize(
    ("disturbed", "attempts", "rounds", "wide"),
    [(1, 1, 50, True), (1, 3, 100, False), (5, 3, 150, True), (0, 3, 50, False)],
)
def test_a_noisy_machine_is_given_as_many_attempts_as_the_plan_has(
    disturbed: int, attempts: int, rounds: int, wide: bool
) -> None:
    """The first `disturbed` attempts of 50 rounds meet a neighbour; batch 8 is measured once whatever happens."""
    seen: Counter[int] = Counter()
    random = Random(0)

    def law(batch: int) -> float:
        seen[batch] += 1
        return batch * 0.06 * (random.uniform(0.2, 5.0) if seen[1] < 10 + 50 * disturbed else 1.0)

    control = SimulatedContender(name=CONTROL, law=law)
    others = [SimulatedContender(name=name, law=per_row(60)) for name in (EAGER, "onnx")]
    plan = LatencyPlan(max_batch=8, threads=1, seconds_per_cell=3.1, attempts=attempts)
    found = ratio(measure([*others, control], plan), CONTROL)
    assert (span(found.low, found.high) > TOO_NOISY) == wide
    assert seen[1] == pytest.approx(rounds, abs=20)
    assert seen[8] < 20


def test_only_the_contender_that_runs_is_awake() -> None:
    awake: list[int] = []
    contenders: list[SimulatedContender] = []

    def law(batch: int) -> float:
        awake.append(sum(not contender.paused for contender in contenders))
        return 0.01

    contenders += [SimulatedContender(name=name, law=law) for name in (EAGER, CONTROL, "onnx")]
    measure(contenders, LatencyPlan(max_batch=2, threads=1))
    assert set(awake) == {1}


def test_the_order_within_a_round_is_random_seeded_and_gives_everyone_each_place() -> None:
    def order(seed: int) -> list[str]:
        ran: list[str] = []

        def noise(name: str) -> Callable[[], float]:
            def run() -> float:
                ran.append(name)
                return 1.0

            return run

        contenders = [SimulatedContender(name=n, law=per_row(60), noise=noise(n)) for n in (EAGER, "aoti", "onnx")]
        measure(contenders, LatencyPlan(max_batch=1, threads=1, seed=seed))
        return ran[6:]

    ran = order(1)
    rounds = [tuple(ran[start : start + 3]) for start in range(0, len(ran), 3)]
    assert all(set(names) == {EAGER, "aoti", "onnx"} for names in rounds)
    assert {names[0] for names in rounds} == {EAGER, "aoti", "onnx"}
    assert order(1) == ran
    assert order(2) != ran


class ColdAfterStop(SimulatedContender):
    """Its first call after each stop takes ten times as long."""

    def time_calls(self, batch: int, calls: int) -> list[float]:
        first, *others = SimulatedContender.time_calls(self, batch, calls)
        return [10 * first, *others]


def test_the_call_that_refills_caches_after_a_stop_is_left_out_unless_it_fills_the_block() -> None:
    def slowest(milliseconds: float) -> float:
        plan = LatencyPlan(max_batch=1, threads=1, seconds_per_cell=40.0)
        p90 = cell(measure([ColdAfterStop(name=EAGER, law=per_row(milliseconds))], plan), EAGER).p90
        assert p90 is not None
        return p90.high

    assert slowest(5.0) == pytest.approx(5.0)
    assert slowest(20.0) == pytest.approx(20.0)
    assert slowest(60.0) == pytest.approx(600.0)


def test_load_first_call_and_memory_are_kept_apart_from_the_steady_state() -> None:
    contenders = [
        SimulatedContender(name=EAGER, law=per_row(5), load_seconds=3.0, first_seconds=0.9),
        SimulatedContender(name="onnx", law=per_row(5), load_seconds=1.0, first_seconds=0.4),
    ]
    evidence = measure(contenders, LatencyPlan(max_batch=1, threads=1))
    start = {s.contender: s for s in evidence.starts}
    assert (start[EAGER].load_seconds, start[EAGER].first_call_ms) == (3.0, 900.0)
    assert start["onnx"].peak_memory > start["onnx"].base_memory > 0
    p90 = cell(evidence, "onnx").p90
    assert p90 is not None
    assert p90.high < 10


def test_an_slo_waits_for_the_p99_where_the_table_would_not() -> None:
    without = race(laws(onnx=30, eager=30, aoti=30), LatencyPlan(max_batch=1, threads=1), Machine(drift=0.0))
    assert cell(without, "onnx").p99 is None
    plan = LatencyPlan(max_batch=1, threads=1, slo_p99_ms=40.0)
    asked = race(laws(onnx=30, eager=30, aoti=30), plan, Machine(drift=0.0))
    assert cell(asked, "onnx").p99 is not None
    assert asked.judgement.verdict is Verdict.PASS


def test_an_slo_is_not_waited_for_without_end() -> None:
    plan = LatencyPlan(max_batch=1, threads=1, slo_p99_ms=500.0)
    evidence = race(laws(onnx=400, eager=400, aoti=400), plan, Machine(drift=0.0))
    assert evidence.judgement.verdict is Verdict.UNDECIDED
    assert "no p99 interval" in evidence.judgement.reason


def test_another_device_than_the_targets_measures_nothing_and_names_no_winner() -> None:
    contender = SimulatedContender(name="onnx", law=per_row(1))
    evidence = measure([contender], LatencyPlan(max_batch=8, threads=1, target_device="cuda"))
    assert contender.calls == {}
    assert evidence.judgement.verdict is Verdict.UNDECIDED
    assert "not measured" in evidence.judgement.reason
    assert "cuda" in evidence.judgement.reason
    assert evidence.winner is None


def test_the_record_says_how_it_was_got_and_survives_the_disk(tmp_path: Path) -> None:
    evidence = race(laws(), LatencyPlan(max_batch=2, threads=2, seed=7))
    assert (evidence.threads, evidence.seed, evidence.confidence) == (2, 7, 0.95)
    assert evidence.device.startswith("cpu: ")
    assert set(evidence.versions) == {"torch", "onnxruntime"}
    assert "second process" in evidence.method
    evidence.write(tmp_path / "latency.json")
    assert LatencyEvidence.read(tmp_path / "latency.json") == evidence


def test_the_incumbent_is_compared_directly_and_not_by_way_of_eager() -> None:
    evidence = race(laws(), LatencyPlan(max_batch=1, threads=1, incumbent="aoti"))
    found = ratio(evidence, "onnx", base="aoti")
    assert found.ratio == pytest.approx(6 / 9, rel=0.1)
    assert evidence.winner == "onnx"
    pairs = {(r.contender, r.base) for r in evidence.ratios}
    assert pairs == {(CONTROL, EAGER), ("aoti", EAGER), ("onnx", EAGER), ("onnx", "aoti")}


def test_a_plan_without_time_is_refused() -> None:
    with pytest.raises(ValueError, match="some time"):
        LatencyPlan(max_batch=1, threads=1, seconds_per_cell=0.0)


def field_of(fails: dict[str, int]) -> list[SimulatedContender]:
    """Eager, its control and both formats; who is named crashes at that batch size, at 0 while it is loaded."""
    return [SimulatedContender(name=name, law=law, fails_at=fails.get(name)) for name, law in laws().items()]


@pytest.mark.parametrize(("fails_at", "doing"), [(0, "loading"), (1, "batch 1"), (8, "batch 8")])
def test_a_format_that_crashes_loses_only_itself(fails_at: int, doing: str) -> None:
    contenders = field_of({"onnx": fails_at})
    evidence = measure(contenders, LatencyPlan(max_batch=8, threads=1))
    (lost,) = evidence.lost
    assert (lost.contender, lost.doing) == ("onnx", doing)
    assert "SIGSEGV" in lost.reason
    assert str(lost) in evidence.judgement.reason
    assert (evidence.winner, evidence.judgement.verdict) == ("aoti", Verdict.PASS)
    assert {c.contender for c in evidence.cells if c.batch == 8} == {EAGER, CONTROL, "aoti"}
    assert ("onnx" in {c.contender for c in evidence.cells if c.batch == 1}) == (fails_at == 8)
    assert [one.closed for one in contenders] == [False, False, False, True]


def test_the_order_of_the_others_goes_on_when_one_crashes_in_the_middle_of_a_batch() -> None:
    contenders = field_of({})
    broken = contenders[3]
    broken.noise = lambda: 1.0 if broken.calls[1] < 200 else _crash()
    evidence = measure(contenders, LatencyPlan(max_batch=1, threads=1))
    assert [one.contender for one in evidence.lost] == ["onnx"]
    rounds = {c.contender: c.rounds for c in evidence.cells}
    assert set(rounds) == {EAGER, CONTROL, "aoti"}
    assert len(set(rounds.values())) == 1
    assert evidence.winner == "aoti"


def _crash() -> float:
    raise ChildFailed("latency of onnx was killed by SIGKILL")


@pytest.mark.parametrize("name", [EAGER, CONTROL])
def test_without_eager_or_its_control_nothing_is_compared_and_that_is_said(name: str) -> None:
    evidence = measure(field_of({name: 0}), LatencyPlan(max_batch=8, threads=1))
    assert (evidence.winner, evidence.judgement.verdict) == (None, Verdict.UNDECIDED)
    assert f"{name} was lost at loading" in evidence.judgement.reason
    assert {r.contender for r in evidence.ratios} == ({"aoti", "onnx"} if name == CONTROL else set())
    assert {c.contender for c in evidence.cells} == {*laws()} - {name}


def test_an_slo_is_judged_although_eager_crashed() -> None:
    plan = LatencyPlan(max_batch=1, threads=1, slo_p99_ms=8.0)
    assert measure(field_of({EAGER: 1}), plan).judgement.verdict is Verdict.PASS


def test_a_race_without_a_format_left_could_not_be_finished() -> None:
    with pytest.raises(ChildFailed, match="SIGSEGV"):
        measure(field_of({"aoti": 0, "onnx": 8}), LatencyPlan(max_batch=8, threads=1))


def test_two_versions_of_one_format_race_beside_a_control_of_the_older() -> None:
    old, new = "onnx v1", "onnx v2"
    random = Machine(seed=3)
    contenders = [
        SimulatedContender(name=name, law=per_row(milliseconds), noise=random.noise)
        for name, milliseconds in ((old, 6.0), (control_of(old), 6.0), (new, 9.0))
    ]
    figures = take_figures(contenders, LatencyPlan(max_batch=8, sizes=(2, 4), threads=1, incumbent=old))
    assert {(r.contender, r.base, r.batch) for r in figures.ratios} == {
        (name, old, batch) for name in (control_of(old), new) for batch in (2, 4)
    }
    assert all(r.low <= 1.5 <= r.high for r in figures.ratios if r.contender == new)


def test_a_machine_too_noisy_for_eager_names_no_winner() -> None:
    random = Random(1)
    contenders = [
        SimulatedContender(name=name, law=law, noise=lambda: random.lognormvariate(0.0, 1.5))
        for name, law in laws().items()
    ]
    evidence = measure(contenders, LatencyPlan(max_batch=1, threads=1))
    assert (evidence.winner, evidence.judgement.verdict) == (None, Verdict.UNDECIDED)


def test_a_race_on_a_gpu_says_which_and_how_it_was_timed() -> None:
    plan = LatencyPlan(max_batch=1, threads=1, device="cuda", target_device="cuda", gpu="NVIDIA H100 (driver 580)")
    evidence = race(laws(), plan)
    assert evidence.device.startswith("cuda: NVIDIA H100 (driver 580), on ")
    assert "the device synchronised before and after each call, TF32 off" in evidence.method
    assert "synchronised" not in race(laws(), LatencyPlan(max_batch=1, threads=1)).method
