"""Who wins and what is said, from stated figures."""

import pytest

from deploy.evidence import CONTROL, EAGER, LatencyCell, LatencyRatio, Quantile, Verdict
from deploy.validate.winner import find_winner


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
