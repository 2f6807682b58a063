"""The judge on stated numbers: what passes, what fails, and why, without any model."""

from collections.abc import Callable, Iterator

import numpy as np
import pytest

from deploy.errors import UnfinishedError
from deploy.evidence import ParityEvidence
from deploy.spec import BATCH, Dim, Spec, TensorSpec
from deploy.validate.baseline import Baseline, Question, declared_baseline, make_baseline
from deploy.validate.cases import Case, calls_of, make_cases
from deploy.validate.families import make_pools
from deploy.validate.parity import Answer, judge

Arrays = list[np.ndarray]
Model = Callable[[np.ndarray], Arrays]

WIDTH = 6
WEIGHT = np.random.default_rng(5).standard_normal((WIDTH, 4))
EPSILON = float(np.finfo(np.float32).eps)


def spec(*outputs: TensorSpec, maximum: int = 4) -> Spec:
    first: int | str = BATCH if maximum > 1 else 1
    logits = TensorSpec(name="logits", dtype="float32", shape=(first, 4), decision_axis=1)
    return Spec(
        inputs=(TensorSpec(name="x", dtype="float32", shape=(first, WIDTH)),),
        outputs=outputs or (logits,),
        dims=(Dim(name=BATCH, minimum=1, maximum=maximum),) if maximum > 1 else (),
    )


def question(contract: Spec, *, constant: bool = False) -> Question:
    pools = make_pools(contract, None, seed=0)
    return Question(
        spec=contract, pools=pools, cases=make_cases(contract, pools), seed=0, allow_constant_output=constant
    )


def exact(x: np.ndarray) -> Arrays:
    return [x.astype(np.float64) @ WEIGHT]


def single(x: np.ndarray) -> Arrays:
    return [(x @ WEIGHT.astype(np.float32)).astype(np.float32)]


def calls(asked: Question, model: Model) -> Iterator[tuple[Case, Arrays]]:
    pools = {pool.family: pool for pool in asked.pools}
    for call in calls_of(asked.cases):
        yield from zip(call.cases, call.part(model(call.inputs(pools)[0])), strict=True)


def baseline(
    asked: Question | None = None, reference: Model = exact, eager: Model = single, mixed: tuple[str, ...] = ()
) -> Baseline:
    asked = asked or question(spec())
    rows = {pool.family: reference(pool.inputs[0]) for pool in asked.pools}
    return make_baseline(asked, rows, calls(asked, eager), mixed=mixed)


def judged(model: Model, against: Baseline | None = None, again: Model | None = None) -> ParityEvidence:
    against = against or baseline()
    second = {case.name: outputs for case, outputs in calls(against.question, again or model)}
    answers = [
        Answer(case=case, outputs=outputs, again=second[case.name]) for case, outputs in calls(against.question, model)
    ]
    return judge(against, answers, format="onnx")


def checks(evidence: ParityEvidence) -> list[str]:
    return [failure.check for failure in evidence.failures]


def off_by(relative: float) -> Model:
    return lambda x: [(single(x)[0] * (1 + relative)).astype(np.float32)]


def test_another_order_of_summation_passes() -> None:
    order = np.random.default_rng(1).permutation(WIDTH)
    evidence = judged(lambda x: [(x[:, order] @ WEIGHT[order].astype(np.float32)).astype(np.float32)])
    assert evidence.judgement.passed, evidence.judgement.reason
    assert evidence.rows == 4 * (1 + 1 + 1 + 2 + 3) + 2 * 4  # four families, and two batches of them all
    assert evidence.bitwise_repeatable
    assert evidence.outputs[0].decisions_compared > 0


def test_an_error_of_many_epsilons_fails_and_names_the_worst_element() -> None:
    def model(x: np.ndarray) -> Arrays:
        outputs = single(x)
        outputs[0][-1, 2] += np.float32(0.01)
        return outputs

    evidence = judged(model)
    assert checks(evidence)[0] == "error"
    failure = evidence.failures[0]
    assert failure.output == "logits" and failure.index == (2,)
    assert failure.found is not None and failure.reference is not None
    assert failure.found - failure.reference == pytest.approx(0.01, rel=1e-3)


def test_limits_are_multiples_of_eagers_own_error_for_the_maximum_and_over_all() -> None:
    against = baseline()
    budget = against.budgets["logits", "normal"]

    def one_element(multiple: float) -> Model:
        def model(x: np.ndarray) -> Arrays:
            out = exact(x)[0]
            if len(x) == 3 and abs(x).max() < 5:
                out[0, 0] += multiple * budget.max_unit
            return [out.astype(np.float32)]

        return model

    assert judged(one_element(8), against).judgement.passed
    assert checks(judged(one_element(13), against))[0] == "error"


def test_many_small_errors_fail_over_all_elements_though_none_is_large() -> None:
    against = baseline()

    def model(x: np.ndarray) -> Arrays:
        family = next(
            pool.family for pool in against.question.pools if any((row == x[0]).all() for row in pool.inputs[0])
        )
        budget = against.budgets["logits", family]
        return [(exact(x)[0] + min(8 * budget.l2_unit, 9 * budget.max_unit)).astype(np.float32)]

    evidence = judged(model, against)
    assert checks(evidence)[0] == "error"
    assert evidence.outputs[0].max_multiple < 10 < 2 * evidence.outputs[0].l2_multiple


def test_where_eager_is_exact_the_floor_of_eight_epsilons_stands() -> None:
    powers = np.diag([2.0, 4.0, 0.5, 1.0])

    def scaled(x: np.ndarray) -> Arrays:
        return [x[:, :4].astype(np.float64) @ powers]

    def scaled_single(x: np.ndarray) -> Arrays:
        return [scaled(x)[0].astype(np.float32)]

    against = baseline(reference=scaled, eager=scaled_single)
    assert all(budget.eager_max_error == 0 for budget in against.budgets.values())
    assert judged(lambda x: [scaled_single(x)[0] * np.float32(1 + 4 * EPSILON)], against).judgement.passed
    assert checks(judged(lambda x: [scaled_single(x)[0] * np.float32(1 + 40 * EPSILON)], against))[0] == "error"


def test_errors_of_the_large_family_excuse_none_of_the_others() -> None:
    against = baseline()
    large = against.budgets["logits", "large"].allowed
    assert large > 10 * against.budgets["logits", "normal"].allowed

    def model(x: np.ndarray) -> Arrays:
        return [(single(x)[0] + (large / 2 if abs(x).max() < 5 else 0.0)).astype(np.float32)]

    assert checks(judged(model, against))[0] == "error"


def test_a_decision_counts_only_beyond_the_allowed_error() -> None:
    contract = spec()
    asked = question(contract)
    allowed = baseline(asked).budgets["logits", "normal"].allowed

    def tied(gap: float) -> Model:
        """The first class is ahead of the second by `gap`, and both are far ahead of the others."""

        def model(x: np.ndarray) -> Arrays:
            out = exact(x)[0]
            out[:, 0] = 100.0 + out[:, 2]
            out[:, 1] = out[:, 0] - gap
            return [out]

        return model

    def as_single(model: Model) -> Model:
        return lambda x: [array.astype(np.float32) for array in model(x)]

    def swapped(model: Model) -> Model:
        return lambda x: [array[:, [1, 0, 2, 3]].astype(np.float32) for array in model(x)]

    near = tied(allowed / 10)
    assert judged(swapped(near), baseline(asked, near, as_single(near))).judgement.passed
    far = tied(1.0)
    evidence = judged(swapped(far), baseline(asked, far, as_single(far)))
    assert checks(evidence) == ["error", "decision"]
    assert evidence.outputs[0].decisions_flipped == evidence.outputs[0].decisions_compared > 0


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_value_that_is_not_finite_fails(value: float) -> None:
    def model(x: np.ndarray) -> Arrays:
        out = single(x)[0]
        out[0, 1] = value
        return [out]

    evidence = judged(model)
    assert checks(evidence)[0] == "finite"
    assert evidence.failures[0].index == (1,)


def test_infinities_must_stand_where_the_reference_has_them() -> None:
    def masked(model: Model) -> Model:
        def run(x: np.ndarray) -> Arrays:
            out = model(x)[0]
            out[:, 3] = -np.inf
            return [out]

        return run

    against = baseline(reference=masked(exact), eager=masked(single))
    assert judged(masked(single), against).judgement.passed
    assert checks(judged(single, against))[0] == "finite"


def test_what_overflows_in_eager_too_is_not_judged() -> None:
    def overflowing(x: np.ndarray) -> Arrays:
        out = single(x)[0]
        out[:, 0] = np.where(abs(x).max(axis=1) > 20, np.inf, out[:, 0])
        return [out]

    against = baseline(eager=overflowing)
    assert judged(overflowing, against).judgement.passed
    assert judged(single, against).judgement.passed


def test_nothing_to_compare_is_a_fail() -> None:
    def nothing(x: np.ndarray) -> Arrays:
        return [np.full((len(x), 4), np.nan, np.float32)]

    assert "nothing" in checks(judged(nothing, baseline(eager=nothing)))
    assert checks(judge(baseline(), [], format="onnx")) == ["nothing"]


def test_a_zero_head_makes_the_reference_worthless() -> None:
    def bias_only(x: np.ndarray) -> Arrays:
        return [np.zeros((len(x), 4)) + np.array([0.1, 0.2, 0.3, 0.4])]

    def bias_single(x: np.ndarray) -> Arrays:
        return [bias_only(x)[0].astype(np.float32)]

    evidence = judged(bias_single, baseline(reference=bias_only, eager=bias_single))
    assert checks(evidence) == ["vacuous"]
    assert "--allow-constant-output" in evidence.judgement.reason
    allowed = baseline(question(spec(), constant=True), bias_only, bias_single)
    assert judged(bias_single, allowed).judgement.passed


def test_half_precision_is_no_constant_output() -> None:
    asked = question(spec(TensorSpec(name="logits", dtype="float16", shape=(BATCH, 4))))

    def reference(x: np.ndarray) -> Arrays:
        return [1.0 + 0.3 * np.tanh(exact(x)[0])]

    def eager(x: np.ndarray) -> Arrays:
        return [reference(x)[0].astype(np.float16)]

    def mostly_bias(x: np.ndarray) -> Arrays:
        return [100.0 + exact(x)[0] * 1e-3]

    def bias_in_half(x: np.ndarray) -> Arrays:
        return [mostly_bias(x)[0].astype(np.float16)]

    assert judged(eager, baseline(asked, reference, eager)).judgement.passed
    assert checks(judged(bias_in_half, baseline(asked, mostly_bias, bias_in_half))) == ["vacuous"]


def test_one_constant_output_among_two_is_named() -> None:
    outputs = [TensorSpec(name=name, dtype="float32", shape=(BATCH, 4)) for name in ("live", "dead")]
    asked = question(spec(*outputs))

    def reference(x: np.ndarray) -> Arrays:
        return [exact(x)[0], np.zeros((len(x), 4))]

    def eager(x: np.ndarray) -> Arrays:
        return [single(x)[0], np.zeros((len(x), 4), np.float32)]

    evidence = judged(eager, baseline(asked, reference, eager))
    assert [failure.output for failure in evidence.failures] == ["dead"]


def test_a_run_that_cannot_be_repeated_fails() -> None:
    evidence = judged(single, again=off_by(0.1))
    assert checks(evidence) == ["repeat"]
    assert "dropout" in evidence.judgement.reason
    assert evidence.bitwise_repeatable is False


def test_bits_may_differ_in_a_repeat_but_are_recorded() -> None:
    evidence = judged(single, again=off_by(EPSILON))
    assert evidence.judgement.passed
    assert evidence.bitwise_repeatable is False


@pytest.mark.parametrize("row", [0, 3, 31])
def test_a_row_that_is_wrong_in_the_largest_batch_alone_fails(row: int) -> None:
    def model(x: np.ndarray) -> Arrays:
        (y,) = single(x)
        if len(x) == 32:
            y[row] += np.float32(0.01)
        return [y]

    against = baseline(question(spec(maximum=32)))
    *_, largest = calls_of(against.question.cases)
    pools = {pool.family: pool for pool in against.question.pools}
    parts = largest.part(model(largest.inputs(pools)[0]))
    answers = [Answer(case=case, outputs=part) for case, part in zip(largest.cases, parts, strict=True)]
    evidence = judge(against, answers, format="onnx")
    assert "error" in checks(evidence)
    assert "in a batch of 32" in evidence.judgement.reason


def test_a_row_that_depends_on_its_batch_fails() -> None:
    def model(x: np.ndarray) -> Arrays:
        out = single(x)[0]
        out[:, 3] += np.float32(len(x) > 2)
        return [out]

    assert "batch" in checks(judged(model))
    evidence = judged(lambda x: [np.nextafter(single(x)[0], np.float32(1e9 * (len(x) == 4)))])
    assert evidence.judgement.passed
    assert evidence.bitwise_batch_invariant is False


def test_a_checkpoint_that_mixes_rows_fails_whatever_the_artifact_does() -> None:
    evidence = judged(single, baseline(mixed=("normal",)))
    assert checks(evidence) == ["rows"]
    assert "--max-batch 1" in evidence.judgement.reason


@pytest.mark.parametrize(
    ("model", "words"),
    [
        (lambda x: [*single(x), *single(x)], "2 outputs instead of 1"),
        (lambda x: [single(x)[0].astype(np.float64)], "is float64 instead of float32"),
        (lambda x: [single(x)[0][:, :3]], "has the shape [1, 3] instead of [1, 4]"),
        (lambda x: [single(x)[0][:1]], "has the shape [1, 4] instead of [2, 4]"),
    ],
    ids=["number", "dtype", "width", "rows"],
)
def test_structure_is_judged_before_values(model: Model, words: str) -> None:
    evidence = judged(model)
    assert checks(evidence)[0] == "structure"
    assert words in evidence.judgement.reason


def test_a_case_that_could_not_run_fails_though_the_others_pass() -> None:
    against = baseline()
    answers = [Answer(case=case, outputs=outputs) for case, outputs in calls(against.question, single)]
    answers[4] = Answer(case=answers[4].case, error="it broke")
    evidence = judge(against, answers, format="onnx")
    assert checks(evidence) == ["run"]
    assert "it broke (normal, batch 3)" in evidence.judgement.reason


def test_integers_must_be_equal_except_where_eager_itself_is_not() -> None:
    scores = TensorSpec(name="scores", dtype="float32", shape=(BATCH, 4))
    best = TensorSpec(name="best", dtype="int64", shape=(BATCH,))
    asked = question(spec(scores, best))

    def with_best(model: Model, shift: int = 0) -> Model:
        def run(x: np.ndarray) -> Arrays:
            out = model(x)[0]
            return [out, (out.argmax(axis=1) + shift) % 4]

        return run

    against = baseline(asked, with_best(exact), with_best(single))
    assert judged(with_best(single), against).judgement.passed
    evidence = judged(with_best(single, shift=1), against)
    assert (evidence.failures[0].check, evidence.failures[0].output) == ("error", "best")
    unstable = baseline(asked, with_best(exact), with_best(single, shift=1))
    assert "nothing" in checks(judged(with_best(single), unstable))


def test_a_static_program_is_judged_row_by_row() -> None:
    evidence = judged(single, baseline(question(spec(maximum=1))))
    assert evidence.judgement.passed, evidence.judgement.reason
    assert evidence.rows == 4 * 4
    assert evidence.bitwise_batch_invariant is None
    assert not judged(off_by(1e-3), baseline(question(spec(maximum=1)))).judgement.passed


def test_eager_that_does_not_fit_the_program_is_not_judged_by() -> None:
    with pytest.raises(UnfinishedError, match="instead of"):
        baseline(eager=lambda x: [single(x)[0].astype(np.float64)])


def test_without_float64_a_declared_tolerance_judges_and_says_so() -> None:
    asked = question(spec())
    against = declared_baseline(asked, calls(asked, single), reason="no kernel")
    evidence = judged(off_by(2e-5), against)
    assert evidence.judgement.passed, evidence.judgement.reason
    assert evidence.reference == "declared tolerance (float64 cannot run: no kernel)"
    assert checks(judged(off_by(2e-3), against))[0] == "error"
