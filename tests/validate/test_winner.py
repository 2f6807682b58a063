"""Who wins and what is said, from stated figures."""

import pytest

from deploy.evidence import Verdict
from deploy.latency_evidence import CONTROL, EAGER, LatencyCell, LatencyRatio, Quantile, control_of
from deploy.validate.winner import find_winner, inform, judge_slowdown


def cell(contender: str, p50: float, p99: tuple[float, float] | None = None) -> LatencyCell:
    """A cell at batch 1 whose p99 interval is as given, and whose other percentiles follow p50."""

    def near(value: float) -> Quantile:
        return Quantile(value=value, low=value * 0.99, high=value * 1.01)

    tail = Quantile(value=sum(p99) / 2, low=p99[0], high=p99[1]) if p99 else None
    return LatencyCell(contender=contender, batch=1, n=400, rounds=50, p50=near(p50), p90=None, p95=None, p99=tail)


def ratio(contender: str, low: float, high: float, *, base: str = EAGER, batch: int = 1) -> LatencyRatio:
    return LatencyRatio(contender=contender, base=base, batch=batch, ratio=(low + high) / 2, low=low, high=high)


QUIET = ratio(CONTROL, 0.99, 1.01)


def test_without_an_slo_the_lowest_p50_wins_and_latency_passes() -> None:
    outcome = find_winner([cell(EAGER, 1.0), cell("aoti", 9.0), cell("onnx", 6.0)], [QUIET])
    assert outcome.winner == "onnx"
    assert outcome.judgement.verdict is Verdict.PASS


def test_slower_than_eager_is_said_plainly_at_every_batch_size() -> None:
    ratios = [QUIET, ratio("onnx", 1.2, 1.3), ratio(CONTROL, 0.99, 1.01, batch=8), ratio("onnx", 1.4, 1.5, batch=8)]
    reason = find_winner([cell(EAGER, 10.0), cell("onnx", 12.5)], ratios).judgement.reason
    assert "onnx is slower than eager at batch 1 (1.25x [1.20, 1.30])" in reason
    assert "onnx is slower than eager at batch 8" in reason


def test_what_eager_does_to_itself_is_no_difference() -> None:
    noisy = ratio(CONTROL, 1.05, 1.12)
    reason = find_winner([cell("onnx", 9.5)], [noisy, ratio("onnx", 0.92, 0.98)]).judgement.reason
    assert "onnx is not told apart from eager" in reason
    reason = find_winner([cell("onnx", 9.5)], [QUIET, ratio("onnx", 0.92, 0.98)]).judgement.reason
    assert "onnx is faster than eager" in reason


@pytest.mark.parametrize(
    ("low", "high", "control", "winner"),
    [
        (0.6, 0.7, QUIET, "onnx"),
        (0.95, 1.02, QUIET, "aoti"),
        (0.92, 0.98, ratio(CONTROL, 1.03, 1.09), "aoti"),
    ],
    ids=["clearly faster", "the interval holds 1", "within the machine's noise"],
)
def test_an_incumbent_gives_way_only_to_what_is_shown_to_be_faster(
    low: float, high: float, control: LatencyRatio, winner: str
) -> None:
    ratios = [control, ratio("onnx", low, high, base="aoti")]
    outcome = find_winner([cell("aoti", 9.0), cell("onnx", 8.0)], ratios, incumbent="aoti")
    assert outcome.winner == winner
    assert ("the incumbent stays" in outcome.rule) == (winner == "aoti")


def test_an_incumbent_that_was_not_built_this_time_holds_nobody_up() -> None:
    assert find_winner([cell("onnx", 8.0)], [QUIET], incumbent="aoti").winner == "onnx"


def test_with_an_slo_only_who_meets_it_can_win_even_with_a_higher_p50() -> None:
    cells = [cell("aoti", 9.0, (11.0, 12.0)), cell("onnx", 6.0, (11.0, 25.0))]
    outcome = find_winner(cells, [QUIET], slo_p99_ms=20.0)
    assert (outcome.winner, outcome.judgement.verdict) == ("aoti", Verdict.PASS)
    assert outcome.judgement.reason == "p99 at most 20 ms at batch 1 is met: aoti p99 11.5 [11.0, 12.0] ms, n=400"


@pytest.mark.parametrize(
    ("aoti", "onnx", "verdict"),
    [
        ((21.0, 30.0), (22.0, 30.0), Verdict.FAIL),
        ((21.0, 30.0), (19.0, 30.0), Verdict.UNDECIDED),
        ((21.0, 30.0), None, Verdict.UNDECIDED),
        ((21.0, 30.0), (19.0, 20.0), Verdict.PASS),
    ],
)
def test_an_slo_is_failed_only_where_every_format_is_over_it(
    aoti: tuple[float, float], onnx: tuple[float, float] | None, verdict: Verdict
) -> None:
    outcome = find_winner([cell("aoti", 9.0, aoti), cell("onnx", 8.0, onnx)], [QUIET], slo_p99_ms=20.0)
    assert outcome.judgement.verdict is verdict
    assert (outcome.winner is None) == (verdict is not Verdict.PASS)


def test_a_median_over_the_slo_fails_it_without_a_p99() -> None:
    outcome = find_winner([cell("onnx", 30.0)], [QUIET], slo_p99_ms=20.0)
    assert outcome.judgement.verdict is Verdict.FAIL


def test_nothing_to_measure_is_undecided() -> None:
    outcome = find_winner([cell(EAGER, 1.0)], [])
    assert (outcome.winner, outcome.judgement.verdict) == (None, Verdict.UNDECIDED)


TOO_NOISY = ratio(CONTROL, 0.6, 1.2)


@pytest.mark.parametrize(
    "control",
    [TOO_NOISY, ratio(CONTROL, 1.6, 1.7), ratio(CONTROL, 0.05, 30.0)],
    ids=["wide", "far from 1", "fifty times slower now and then"],
)
def test_on_a_machine_too_noisy_to_compare_nobody_wins_and_it_is_undecided(control: LatencyRatio) -> None:
    outcome = find_winner([cell("aoti", 300.0), cell("onnx", 6.0)], [control, ratio("onnx", 0.02, 0.03)])
    assert (outcome.winner, outcome.judgement.verdict) == (None, Verdict.UNDECIDED)
    assert outcome.judgement.reason.startswith("the machine was too noisy")
    assert "when nothing else runs on this machine" in outcome.judgement.reason


def test_noise_that_two_processes_of_one_model_show_on_a_quiet_machine_is_not_too_much() -> None:
    assert find_winner([cell("onnx", 6.0)], [ratio(CONTROL, 0.9, 1.3)]).winner == "onnx"


def test_without_a_control_nobody_wins_and_who_was_lost_is_named() -> None:
    outcome = find_winner([cell("onnx", 6.0)], [ratio("onnx", 0.5, 0.6)], lost={CONTROL})
    assert (outcome.winner, outcome.judgement.verdict) == (None, Verdict.UNDECIDED)
    assert "since eager (A/A) was lost" in outcome.judgement.reason


def test_a_format_that_was_lost_wins_nothing_by_what_it_measured_before() -> None:
    assert find_winner([cell("aoti", 1.0), cell("onnx", 6.0)], [QUIET], lost={"aoti"}).winner == "onnx"


@pytest.mark.parametrize(
    ("p99", "verdict"),
    [((11.0, 12.0), Verdict.PASS), ((21.0, 25.0), Verdict.UNDECIDED), ((34.0, 40.0), Verdict.FAIL)],
    ids=["met although noise only adds", "missed by less than the noise", "missed by more"],
)
def test_an_slo_on_a_noisy_machine(p99: tuple[float, float], verdict: Verdict) -> None:
    outcome = find_winner([cell("onnx", 9.0, p99)], [TOO_NOISY], slo_p99_ms=20.0)
    assert outcome.judgement.verdict is verdict
    assert "too noisy" in outcome.judgement.reason


def test_among_formats_that_meet_an_slo_noise_lets_the_fixed_order_or_the_incumbent_stand() -> None:
    cells = [cell("aoti", 9.0, (11.0, 12.0)), cell("onnx", 6.0, (11.0, 12.0))]
    assert find_winner(cells, [TOO_NOISY], slo_p99_ms=20.0).winner == "aoti"
    assert find_winner(cells, [TOO_NOISY], slo_p99_ms=20.0, incumbent="onnx").winner == "onnx"


OLD, NEW = "onnx v1", "onnx v2"


@pytest.mark.parametrize(
    ("one", "eight", "noise", "verdict"),
    [
        ((0.97, 1.01), (0.98, 1.02), 1.01, Verdict.PASS),
        ((0.97, 1.01), (1.10, 1.20), 1.01, Verdict.FAIL),
        ((0.97, 1.01), (1.02, 1.09), 1.01, Verdict.UNDECIDED),
        ((0.97, 1.01), (0.98, 1.02), 1.20, Verdict.UNDECIDED),
        ((1.10, 1.20), (1.10, 1.20), 1.20, Verdict.UNDECIDED),
        ((1.10, 1.20), (1.60, 1.90), 1.20, Verdict.FAIL),
    ],
    ids=["level", "slower at one size", "either side", "level in noise", "slower within noise", "slower beyond noise"],
)
def test_a_limit_on_the_slowdown_is_judged_at_every_size_with_the_controls_band(
    one: tuple[float, float], eight: tuple[float, float], noise: float, verdict: Verdict
) -> None:
    ratios = [
        *(ratio(control_of(OLD), 1 / noise, noise, base=OLD, batch=batch) for batch in (1, 8)),
        ratio(NEW, *one, base=OLD),
        ratio(NEW, *eight, base=OLD, batch=8),
    ]
    judgement = judge_slowdown(ratios, NEW, OLD, 1.05)
    assert judgement.verdict is verdict
    assert "at batch 1" in judgement.reason
    assert "at batch 8" in judgement.reason
    assert ("--seconds-per-cell" in judgement.reason) == (verdict is Verdict.UNDECIDED)


def test_what_is_said_where_nothing_was_asked_is_undecided_on_a_noisy_machine() -> None:
    new = ratio(NEW, 1.3, 1.4, base=OLD, batch=4)
    for low, verdict in ((0.98, Verdict.PASS), (0.3, Verdict.UNDECIDED)):
        said = inform([ratio(control_of(OLD), low, 1.02, base=OLD, batch=4), new], [OLD])
        assert said.verdict is verdict
        assert ("too noisy: onnx v1 took" in said.reason) == (verdict is Verdict.UNDECIDED)
        assert ("onnx v2 is slower than onnx v1 at batch 4" in said.reason) == (verdict is Verdict.PASS)


def test_without_a_control_at_a_batch_size_nothing_is_called_slower_there() -> None:
    reason = find_winner([cell("onnx", 8.0)], [QUIET, ratio("onnx", 1.4, 1.5, batch=8)]).judgement.reason
    assert "slower" not in reason


def test_a_slowdown_without_figures_or_without_a_control_is_undecided() -> None:
    assert judge_slowdown([], NEW, OLD, 1.05).verdict is Verdict.UNDECIDED
    alone = [ratio(NEW, 0.5, 0.6, base=OLD), QUIET]
    assert judge_slowdown(alone, NEW, OLD, 1.05).verdict is Verdict.UNDECIDED


@pytest.mark.parametrize("name", [NEW, OLD, control_of(OLD)])
def test_who_was_lost_at_a_later_batch_passes_no_limit_but_may_have_failed_it(name: str) -> None:
    control = ratio(control_of(OLD), 0.99, 1.01, base=OLD)
    for interval, verdict in (((0.5, 0.6), Verdict.UNDECIDED), ((1.5, 1.6), Verdict.FAIL)):
        ratios = [control, ratio(NEW, *interval, base=OLD)]
        assert judge_slowdown(ratios, NEW, OLD, 1.05).verdict is not Verdict.UNDECIDED
        assert judge_slowdown(ratios, NEW, OLD, 1.05, lost={name}).verdict is verdict
