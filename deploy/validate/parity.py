"""The judge: an artifact's answers against a baseline, and what did not hold, named.

Owns the verdict. Numpy only: it neither runs a model nor looks for the cause (`locate` does). Called by run, and by
serve and verify with what a server answered.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np

from deploy.evidence import Judgement, OutputBudget, OutputParity, ParityEvidence, ParityFailure, Verdict, WorstElement
from deploy.spec import TensorSpec
from deploy.validate.baseline import Baseline, structure_problem
from deploy.validate.cases import Case
from deploy.validate.compare import Comparison, Element, Errors, as_rows, compare, row_axis, same_kind

# What explains the others comes first, for the first failure is the reason that is shown.
_CHECKS = (
    "precision", "vacuous", "rows", "run", "structure", "finite", "nothing", "repeat", "error", "decision", "batch",
)  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What a model gave for one case: its outputs, those of the same call again, or why there are none."""

    case: Case
    outputs: Sequence[np.ndarray] = ()
    again: Sequence[np.ndarray] | None = None
    error: str = ""


@dataclass(slots=True, kw_only=True)
class _Findings:
    """What the calls are reduced to as they come in, so that no more than one call's outputs are held."""

    calls: dict[tuple[str, str], list[tuple[Case, Comparison]]] = field(default_factory=dict)
    alone: dict[tuple[str, str, int], np.ndarray] = field(default_factory=dict)
    failures: dict[tuple[str, str], ParityFailure] = field(default_factory=dict)
    cases: list[str] = field(default_factory=list)
    rows: int = 0
    repeatable: bool | None = None
    invariant: bool | None = None

    def fail(self, failure: ParityFailure) -> None:
        """Keep the first failure of each check and output: the rest say the same again."""
        self.failures.setdefault((failure.check, failure.output), failure)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Place:
    """One output of one call, and what it is judged by."""

    baseline: Baseline
    case: Case
    index: int

    @property
    def output(self) -> TensorSpec:
        return self.baseline.question.spec.outputs[self.index]

    @property
    def budget(self) -> OutputBudget:
        return self.baseline.budgets[self.output.name, self.case.family]

    def failure(self, check: str, message: str, element: Element | None = None) -> ParityFailure:
        """A failure here; `message` says what is wrong with the output, whose name is put before it."""
        text = f"output {self.output.name!r} {message}"
        if element is None:
            return ParityFailure(check=check, output=self.output.name, case=self.case.name, message=text)
        sample = _sample(self.baseline, self.case, element.row)
        where = f" at sample {sample} {list(element.index)} of {self.case.name!r}"
        return ParityFailure(
            check=check,
            output=self.output.name,
            case=self.case.name,
            message=f"{text}{where}: reference {element.reference:.6g}, found {element.found:.6g}",
            sample=sample,
            index=element.index,
            reference=element.reference,
            found=element.found,
        )


def judge(baseline: Baseline, answers: Iterable[Answer], *, format: str) -> ParityEvidence:
    """The evidence for one artifact. Its verdict is pass only if every output was compared and nothing failed."""
    findings = _Findings()
    for answer in answers:
        _take(findings, baseline, answer)
    outputs = tuple(_sum_up(findings, baseline))
    failures = tuple(sorted((*baseline.failures, *findings.failures.values()), key=_rank))
    return ParityEvidence(
        format=format,
        judgement=_verdict(baseline, failures, outputs),
        reference=baseline.reference,
        max_limit=baseline.question.limits.max_multiple,
        l2_limit=baseline.question.limits.l2_multiple,
        cases=tuple(findings.cases),
        rows=findings.rows,
        outputs=outputs,
        failures=failures,
        bitwise_repeatable=findings.repeatable,
        bitwise_batch_invariant=findings.invariant,
        seed=baseline.question.seed,
    )


def _take(findings: _Findings, baseline: Baseline, answer: Answer) -> None:
    """Judge one call: that it ran, then its structure, then each output."""
    case = answer.case
    problem = answer.error or _structure_problem(baseline, case, answer.outputs)
    if problem:
        check = "run" if answer.error else "structure"
        findings.fail(ParityFailure(check=check, output="", case=case.name, message=f"{problem} ({case.name})"))
        return
    findings.cases.append(case.name)
    findings.rows += len(case.rows)
    for index, output in enumerate(answer.outputs):
        place = _Place(baseline=baseline, case=case, index=index)
        rows = as_rows(output, place.output)
        _judge_values(findings, place, rows)
        _judge_alone(findings, place, rows)
        if answer.again is not None:
            _judge_repeat(findings, place, rows, as_rows(answer.again[index], place.output))


def _structure_problem(baseline: Baseline, case: Case, outputs: Sequence[np.ndarray]) -> str:
    """What is wrong with the outputs by the spec, or by the reference where a size follows from the inputs' sizes."""
    rows, spec = baseline.rows[case.family], baseline.question.spec
    problem = structure_problem(spec, case, outputs, pool=rows.pool)
    if problem:
        return problem
    for tensor, array, reference in zip(spec.outputs, outputs, rows.reference, strict=True):
        found, wanted = as_rows(array, tensor).shape[1:], reference.shape[1:]
        if found != wanted:
            return f"output {tensor.name!r} has rows of shape {list(found)} instead of {list(wanted)}"
    return ""


def _judge_values(findings: _Findings, place: _Place, found: np.ndarray) -> None:
    rows = place.baseline.rows[place.case.family]
    chosen = list(place.case.rows)
    comparison = compare(
        rows.reference[place.index][chosen],
        found,
        judged=rows.judged[place.index][chosen],
        axis=row_axis(place.output),
        allowed=place.budget.allowed,
    )
    findings.calls.setdefault((place.output.name, place.case.family), []).append((place.case, comparison))
    if comparison.misplaced:
        findings.fail(place.failure("finite", "is not finite where it should be, or the reverse", comparison.misplaced))
    if comparison.flipped:
        message = f"decides differently in {comparison.flips} of {comparison.decisions} rows that are no near tie"
        findings.fail(place.failure("decision", message, comparison.flipped))


def _judge_alone(findings: _Findings, place: _Place, found: np.ndarray) -> None:
    """A row must be answered the same, within the budget, whoever shares its batch."""
    for position, row in enumerate(place.case.rows):
        key = (place.output.name, place.case.family, row)
        if place.case.alone:
            findings.alone[key] = found[position].copy()
        elif key in findings.alone:
            alone = findings.alone[key]
            findings.invariant = findings.invariant is not False and _bitwise(alone, found[position])
            if _differs(place, alone, found[position]):
                findings.fail(place.failure("batch", f"changes for row {row} with the batch it is in"))


def _judge_repeat(findings: _Findings, place: _Place, first: np.ndarray, second: np.ndarray) -> None:
    same = first.shape == second.shape and _bitwise(first, second)
    findings.repeatable = findings.repeatable is not False and same
    if not same and _differs(place, first, second):
        message = "changes when the same call is made again: dropout or another random operation is left on"
        findings.fail(place.failure("repeat", message))


def _bitwise(left: np.ndarray, right: np.ndarray) -> bool:
    return left.tobytes() == right.tobytes()


def _differs(place: _Place, left: np.ndarray, right: np.ndarray) -> bool:
    """True where two answers differ by more than the budget, or in which elements are finite."""
    if left.shape != right.shape or not same_kind(left, right).all():
        return True
    finite = np.isfinite(left)
    gap = np.abs(left[finite].astype(np.float64) - right[finite].astype(np.float64))
    return bool(gap.max(initial=0.0) > place.budget.allowed)


def _sum_up(findings: _Findings, baseline: Baseline) -> list[OutputParity]:
    """The errors of each output in its worst family. Over the budget is a failure, and so is nothing to compare."""
    outputs: list[OutputParity] = []
    if not findings.calls and findings.failures:
        return outputs
    for output in baseline.question.spec.outputs:
        calls = {key: found for key, found in findings.calls.items() if key[0] == output.name}
        if not any(comparison.elements for found in calls.values() for _, comparison in found):
            if ("finite", output.name) not in findings.failures:
                message = f"output {output.name!r} has no element that could be compared"
                findings.fail(ParityFailure(check="nothing", output=output.name, case="all", message=message))
            continue
        parities = [_family_parity(baseline, key, found) for key, found in calls.items()]
        worst = max(parities, key=lambda parity: _strain(baseline, parity))
        if _strain(baseline, worst) > 1.0:
            findings.fail(_over_budget(baseline, worst))
        outputs.append(worst)
    return outputs


def _family_parity(baseline: Baseline, key: tuple[str, str], calls: Sequence[tuple[Case, Comparison]]) -> OutputParity:
    """The errors of one output in one family; the decisions too."""
    budget, errors = baseline.budgets[key], Errors.of(comparison for _, comparison in calls)
    case, comparison = max(calls, key=lambda call: call[1].max_error)
    return OutputParity(
        output=key[0],
        max_multiple=_multiple(errors.max_error, budget.max_unit),
        l2_multiple=_multiple(errors.rms_error, budget.l2_unit),
        max_error=errors.max_error,
        eager_max_error=budget.eager_max_error,
        reference_scale=budget.scale,
        worst=_worst(baseline, case, comparison.worst),
        decisions_compared=sum(comparison.decisions for _, comparison in calls),
        decisions_flipped=sum(comparison.flips for _, comparison in calls),
    )


def _worst(baseline: Baseline, case: Case, element: Element | None) -> WorstElement | None:
    if element is None:
        return None
    return WorstElement(
        case=case.name,
        sample=_sample(baseline, case, element.row),
        index=element.index,
        reference=element.reference,
        found=element.found,
    )


def _sample(baseline: Baseline, case: Case, position: int) -> int:
    """A row of a call as its number in the user's samples file, or in the seeded pool."""
    row, origin = case.rows[position], baseline.rows[case.family].pool.origin
    return origin[row] if origin else row


def _rank(failure: ParityFailure) -> int:
    return _CHECKS.index(failure.check)


def _multiple(error: float, unit: float) -> float:
    if error == 0.0:
        return 0.0
    return error / unit if unit > 0.0 else math.inf


def _strain(baseline: Baseline, parity: OutputParity) -> float:
    """The part of the budget that is used; above 1 it fails."""
    limits = baseline.question.limits
    return max(parity.max_multiple / limits.max_multiple, parity.l2_multiple / limits.l2_multiple)


def _over_budget(baseline: Baseline, parity: OutputParity) -> ParityFailure:
    limits, worst = baseline.question.limits, parity.worst
    assert worst is not None
    message = (
        f"output {parity.output!r} is off by {parity.max_multiple:,.1f} x {_errors(baseline)} at its worst "
        f"(limit {limits.max_multiple:g}) and {parity.l2_multiple:,.1f} x over all elements "
        f"(limit {limits.l2_multiple:g}); worst at sample {worst.sample} {list(worst.index)} of {worst.case!r}: "
        f"reference {worst.reference:.6g}, found {worst.found:.6g}"
    )
    return ParityFailure(
        check="error",
        output=parity.output,
        case=worst.case,
        message=message,
        sample=worst.sample,
        index=worst.index,
        reference=worst.reference,
        found=worst.found,
    )


def _errors(baseline: Baseline) -> str:
    """The unit of errors: `eager's own error`, `the noise that passes`."""
    unit = baseline.question.unit
    return f"{unit} error" if unit == "eager's own" else unit


def _verdict(baseline: Baseline, failures: Sequence[ParityFailure], outputs: Sequence[OutputParity]) -> Judgement:
    if failures:
        more = f" (and {len(failures) - 1} more)" if len(failures) > 1 else ""
        return Judgement(verdict=Verdict.FAIL, reason=failures[0].message + more)
    worst_max = max(output.max_multiple for output in outputs)
    worst_l2 = max(output.l2_multiple for output in outputs)
    limits = baseline.question.limits
    reason = (
        f"errors are at most {worst_max:.2g} x {baseline.question.unit} (limit {limits.max_multiple:g}), "
        f"{worst_l2:.2g} x in L2 (limit {limits.l2_multiple:g})"
    )
    return Judgement(verdict=Verdict.PASS, reason=reason)
