"""A drop in accuracy is judged by a paired interval: pass, fail, and undecided where the samples are too few."""

import math

import numpy as np
import pytest

from deploy.evidence import MetricEvidence, Verdict
from deploy.validate.metric import judge_accuracy, paired_interval, rows_that_decide

Z = 1.6448536269514722  # of a 90 % interval


def judged(rows: int, *, worsened: int = 0, improved: int = 0, max_drop: float = 0.5) -> MetricEvidence:
    """The verdict where these rows change and all others are right in both."""
    labels = np.arange(rows) % 2
    before, after = labels.copy(), labels.copy()
    after[:worsened] = 2
    before[worsened : worsened + improved] = 2
    return judge_accuracy(labels, before, after, max_drop=max_drop)


def test_many_rows_that_stay_right_pass() -> None:
    found = judged(1097, worsened=1, improved=1)
    assert found.judgement.verdict is Verdict.PASS
    assert found.drop == 0.0
    assert found.before == pytest.approx(1096 / 1097)
    assert found.low < 0 < found.high <= 0.5
    assert "1097 labelled samples" in found.judgement.reason


def test_many_rows_that_go_wrong_fail() -> None:
    found = judged(1000, worsened=40)
    assert found.judgement.verdict is Verdict.FAIL
    assert found.low > 0.5
    assert "a drop of 4.00 points" in found.judgement.reason


@pytest.mark.parametrize("wrong", ["shifted", "drawn", "one class", "rare"])
def test_by_labels_that_tell_nothing_nothing_passes(wrong: str) -> None:
    """A network that answers the same class whatever it sees is the worst there is, and these see no drop in it."""
    answers = np.random.default_rng(0).integers(0, 10, 1000)
    labels = {
        "shifted": (answers + 1) % 10,
        "drawn": np.random.default_rng(1).integers(0, 10, 1000),
        "one class": np.zeros(1000, dtype=np.int64),
        "rare": (np.arange(1000) >= 998).astype(np.int64),
    }[wrong]
    before = labels.copy() if wrong in ("one class", "rare") else answers
    found = judge_accuracy(labels, before, before.copy(), max_drop=0.5)
    assert found.judgement.verdict is not Verdict.PASS
    assert "the labels tell nothing" in found.judgement.reason


def test_few_rows_are_undecided_and_say_how_many_would_do() -> None:
    found = judged(60)
    assert found.judgement.verdict is Verdict.UNDECIDED
    assert "60 samples cannot tell: about " in found.judgement.reason
    enough = rows_that_decide(0, 0, 60, limit=0.005)
    assert enough is not None
    assert judged(enough).judgement.verdict is Verdict.PASS


def test_a_drop_that_is_the_limit_itself_is_never_settled() -> None:
    assert rows_that_decide(5, 0, 1000, limit=0.005) is None


def test_without_discordant_rows_the_interval_is_wilsons() -> None:
    low, high = paired_interval(0, 0, 500, confidence=0.90)
    assert high == pytest.approx(Z**2 / (500 + Z**2), rel=1e-6)
    assert low == pytest.approx(-high, rel=1e-6)


def test_the_interval_turns_round_with_the_question() -> None:
    low, high = paired_interval(9, 2, 300, confidence=0.90)
    assert paired_interval(2, 9, 300, confidence=0.90) == pytest.approx((-high, -low))
    assert low < 7 / 300 < high


def test_everything_lost_is_an_interval_too() -> None:
    low, high = paired_interval(20, 0, 20, confidence=0.90)
    assert low == pytest.approx((20 - Z**2) / (20 + Z**2), rel=1e-6)
    assert high == pytest.approx(1.0)


@pytest.mark.parametrize(("worse", "better"), [(0.01, 0.005), (0.03, 0.03), (0.002, 0.0)])
def test_it_holds_the_truth_as_often_as_it_says(worse: float, better: float) -> None:
    generator, rows = np.random.default_rng(0), 600
    draws = generator.multinomial(rows, [worse, better, 1 - worse - better], size=400)
    spans = {(int(b), int(c)): paired_interval(int(b), int(c), rows, confidence=0.90) for b, c, _ in draws}
    held = sum(spans[int(b), int(c)][0] <= worse - better <= spans[int(b), int(c)][1] for b, c, _ in draws)
    assert held / len(draws) > 0.90 - 3 * math.sqrt(0.09 / len(draws))


def test_an_answer_that_is_no_number_is_a_wrong_one() -> None:
    from deploy.spec import Dim, Spec, TensorSpec
    from deploy.validate.metric import answers
    from deploy.validate.samples import Samples

    spec = Spec(
        inputs=(TensorSpec(name="x", dtype="float32", shape=("batch", 2)),),
        outputs=(TensorSpec(name="y", dtype="float32", shape=("batch", 2), decision_axis=1),),
        dims=(Dim(name="batch", minimum=1, maximum=2),),
    )
    rows = np.array([[0.0, 1.0], [np.nan, 1.0], [3.0, 1.0]], dtype=np.float32)
    from pathlib import Path

    samples = Samples(path=Path("x.npz"), inputs=(rows,), labels=np.array([1, 1, 0]), digest="")
    assert answers(samples, spec, np.arange(3), lambda inputs: inputs).tolist() == [1, -1, 0]
