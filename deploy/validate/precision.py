"""What an artifact in bf16, fp16 or int8 must show before it is called proven.

Owns the budgets of the lower precisions and the order of their checks; `run` proves in fp32, `parity` judges by the
budgets that are made here, `metric` by the task's own measure. Called by package.

    1. The fp32 program passes parity: a wrong program is not excused by few bits.
    2. bf16 and fp16: the artifact is judged by twice the error that eager makes in that precision, the largest of a run
       as it is and of two with weights rounded once more. A file in bf16 fits fp16 exactly, so that eager as it is has
       no error of weights, and whoever folds a scale into them has. Where eager overflows, or is so coarse that its
       errors reach a tenth of the signal, no artifact can pass.
    3. int8: the error is at most a tenth of the signal (20 dB), and decisions hold where margins allow. With labelled
       samples the drop in accuracy decides instead, and a third of the signal is the most (10 dB).

The signal is how much an output varies from row to row: a constant offset carries no information, and would hide noise.
Twenty decibels: two small networks came to 39 to 45 dB in int8, one of them with the scales of a layer doubled to less
than 10. `benchmarks/precision.py` measures larger ones.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain

import numpy as np

from deploy.checkpoint.model import Checkpoint
from deploy.convert.model import Artifact, Format, Precision
from deploy.errors import UsageError
from deploy.evidence import Judgement, OutputBudget, OutputParity, ParityEvidence, ParityFailure, Verdict
from deploy.processes import ChildFailed, Worker
from deploy.spec import TensorSpec
from deploy.validate.baseline import Baseline, Question, RowSet, is_floating, make_baseline
from deploy.validate.cases import calls_of, make_cases
from deploy.validate.executables import AotiModel, EagerModel, OnnxModel, ProgramModel
from deploy.validate.families import REAL, SEEDED
from deploy.validate.metric import Metric, answers, decides, judge_accuracy
from deploy.validate.parity import Answer, judge
from deploy.validate.run import Plan, Proof, nudged_calls, plain_calls, prove, prove_artifact
from deploy.validate.samples import Samples

SQNR_DB = 20.0
# A metric sees the best class alone; scores that are off by a third of the signal are another network's all the same.
METRIC_DB = 10.0
# How far over its root mean square noise may reach: with fewer, one element in a million of honest noise is over.
_PEAK = 6.0
_LARGE = "large"
_LARGEST = {"fp16": "65,504, and bf16 reaches as far as fp32"}
# A version that the metric let through is held to twice its own artifact's error, as halves are to eager's.
_SERVED = 2.0
_METRIC_DECIDES = ("error", "decision", "batch")


@dataclass(frozen=True, slots=True, kw_only=True)
class Demand:
    """What is asked of artifacts in `precision`. `held_out` numbers the samples that no scale was taken from.

    `max_drop` is in percentage points, None where signal to noise decides whether there are labels or not; `metric`:
    the user insists on it.
    """

    precision: Precision
    held_out: tuple[int, ...] = ()
    max_drop: float | None = None
    metric: Metric | None = None


def prove_in(
    demand: Demand, checkpoint: Checkpoint, artifacts: Sequence[Artifact], samples: Samples | None, plan: Plan,
    *, first: Proof | None = None,
) -> Proof:  # fmt: skip
    """The proof of artifacts in the precision asked for; `first` is that of fp32 artifacts, where there were any.

    Raises UnfinishedError if the checkpoint itself cannot run, or not within the limits; UsageError if a metric was
    insisted on that cannot be counted.
    """
    if demand.metric is not None and not decides(samples, plan.spec):
        raise UsageError(
            f"--metric {demand.metric} was given, and no output of the network is a row of class scores",
            expected="a classifier and labelled samples",
            fix="leave --metric out: signal to noise then decides",
        )
    if demand.precision == "fp32":
        return prove(checkpoint, artifacts, samples, plan)
    fp32 = first or prove(checkpoint, (), samples, plan)
    # A place is searched for by the checkpoint's own constants and values, which these artifacts do not have.
    plan = replace(plan, search_seconds=0.0)
    if obstacle := _obstacle(fp32, plan):
        refused = {one.format: _not_asked(one, fp32.baseline, obstacle, demand.precision) for one in artifacts}
        return replace(fp32, evidence=refused, own={})
    subject = _Subject(demand=demand, checkpoint=checkpoint, samples=samples, plan=plan)
    baseline = subject.baseline(fp32.baseline)
    evidence: dict[Format, ParityEvidence] = {}
    own: dict[Format, Baseline] = {}
    for artifact in artifacts:
        evidence[artifact.format], own[artifact.format] = subject.prove(artifact, baseline)
    return replace(fp32, evidence=evidence, own=own)


def _obstacle(fp32: Proof, plan: Plan) -> ParityFailure | None:
    """Why no artifact of the checkpoint can pass, whatever its precision: its model, or its program, is wrong."""
    if fp32.behaviour.status == "refuted":
        return ParityFailure(check="behaviour", output="", case="expected outputs", message=fp32.behaviour.statement)
    if any(one.judgement.passed for one in fp32.evidence.values()):
        return None
    found = judge(fp32.baseline, _program_answers(fp32.baseline.question, plan), format="program")
    if found.judgement.passed:
        return None
    message = f"the fp32 program fails parity first: {found.judgement.reason}"
    return ParityFailure(check="precision", output="", case="fp32", message=message)


def _program_answers(question: Question, plan: Plan) -> Iterator[Answer]:
    pools = {pool.family: pool for pool in question.pools}
    assert plan.program is not None
    with Worker("parity of the program", log=plan.logs / "parity-of-the-program.log", limits=plan.limits) as worker:
        worker.make(ProgramModel, plan.program, threads=plan.threads, device=plan.device)
        for call in calls_of(question.cases):
            try:
                outputs = worker.call("run", call.inputs(pools))
            except ChildFailed as error:
                yield Answer(case=call.cases[0], error=error.found)
                if not worker.alive:
                    return
                continue
            for case, part in zip(call.cases, call.part(outputs), strict=True):
                yield Answer(case=case, outputs=part)


def _not_asked(artifact: Artifact, baseline: Baseline, failure: ParityFailure, precision: Precision) -> ParityEvidence:
    """The evidence of an artifact that was not asked, because nothing could make it right."""
    return ParityEvidence(
        format=artifact.format,
        judgement=Judgement(verdict=Verdict.FAIL, reason=failure.message),
        reference=baseline.reference,
        max_limit=baseline.question.limits.max_multiple,
        l2_limit=baseline.question.limits.l2_multiple,
        cases=(),
        rows=0,
        outputs=(),
        failures=(failure,),
        seed=baseline.question.seed,
        precision=precision,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Subject:
    """One checkpoint in one precision."""

    demand: Demand
    checkpoint: Checkpoint
    samples: Samples | None
    plan: Plan

    def baseline(self, fp32: Baseline) -> Baseline:
        if self.demand.precision == "int8":
            return noise_baseline(fp32)
        with self._worker(f"eager in {self.demand.precision}") as worker:
            worker.make(
                EagerModel, self.checkpoint, threads=self.plan.threads, device=self.plan.device,
                precision=self.demand.precision,
            )  # fmt: skip
            return half_baseline(fp32, self.demand.precision, worker)

    def prove(self, artifact: Artifact, baseline: Baseline) -> tuple[ParityEvidence, Baseline]:
        """The evidence, and what a server's answers are judged by later."""
        found = prove_artifact(self.checkpoint, artifact, baseline, self.plan)
        found = found.model_copy(update={"precision": self.demand.precision})
        if self.demand.precision != "int8":
            return found, baseline
        by_metric = self.demand.max_drop is not None and decides(self.samples, self.plan.spec)
        found = _in_decibels(found, least=METRIC_DB if by_metric else SQNR_DB)
        hard = [one for one in found.failures if one.check not in _METRIC_DECIDES]
        noisy = any((output.sqnr_db or 0.0) < METRIC_DB for output in found.outputs)
        if hard or noisy or self.demand.max_drop is None or not by_metric:
            return found, baseline
        return self._by_metric(artifact, found, self.demand.max_drop), _widened(baseline, found)

    def _by_metric(self, artifact: Artifact, found: ParityEvidence, max_drop: float) -> ParityEvidence:
        """The evidence, decided by the accuracy on the rows that no scale was taken from."""
        samples, spec = self.samples, self.plan.spec
        assert samples is not None and samples.labels is not None
        # Dynamic scales were taken from none.
        static = artifact.details.get("int8", "").startswith("static")
        rows = np.array(self.demand.held_out if static and self.demand.held_out else range(samples.rows))
        with self._worker("eager on the labelled samples") as worker:
            worker.make(EagerModel, self.checkpoint, threads=self.plan.threads, device=self.plan.device)
            before = answers(samples, spec, rows, lambda inputs: worker.call("run", inputs))
        with self._worker(f"{artifact.format} on the labelled samples") as worker:
            model = AotiModel if artifact.format == "aoti" else OnnxModel
            worker.make(model, artifact.path, threads=self.plan.threads, device=self.plan.device)
            after = answers(samples, spec, rows, lambda inputs: worker.call("run", inputs))
        metric = judge_accuracy(samples.labels[rows], before, after, max_drop=max_drop)
        reason = f"{metric.judgement.reason}; {found.judgement.reason}"
        judgement = metric.judgement.model_copy(update={"reason": reason})
        return found.model_copy(update={"metric": metric, "judgement": judgement})

    def _worker(self, name: str) -> Worker:
        return Worker(name, log=self.plan.logs / f"{name.replace(' ', '-')}.log", limits=self.plan.limits)


def half_baseline(fp32: Baseline, precision: Precision, worker: Worker) -> Baseline:
    """What artifacts in bf16 or fp16 are judged by: `worker` runs eager in that precision.

    Its failures name an overflow, and a precision that is too coarse for the network.
    """
    # Whether the outputs vary was judged in fp32: beside the errors of half precision few vary a thousandfold.
    question = replace(fp32.question, precision=precision, allow_constant_output=True)
    reference = {family: list(rows.reference) for family, rows in fp32.rows.items()}
    eager = chain(plain_calls(worker, question), nudged_calls(worker, question))
    made = make_baseline(question, reference, eager, mixed=[])
    failures = (*fp32.failures, *_overflows(fp32, made, precision), *_too_coarse(made, precision))
    return replace(made, rows=_both(fp32.rows, made.rows), failures=failures, reference=fp32.reference)


def _both(left: Mapping[str, RowSet], right: Mapping[str, RowSet]) -> dict[str, RowSet]:
    """The rows, judged where both are."""
    return {
        family: replace(rows, judged=tuple(a & b for a, b in zip(rows.judged, right[family].judged, strict=True)))
        for family, rows in left.items()
    }


def _overflows(fp32: Baseline, half: Baseline, precision: Precision) -> Iterator[ParityFailure]:
    """A failure for each output that is finite in fp32 and not in half precision; large inputs may overflow."""
    for family, rows in fp32.rows.items():
        if family == _LARGE:
            continue
        for index, output in enumerate(fp32.question.spec.outputs):
            lost = rows.judged[index] & np.isfinite(rows.reference[index]) & ~half.rows[family].judged[index]
            if is_floating(output) and lost.any():
                ends = f": {precision} ends at {_LARGEST[precision]}" if precision in _LARGEST else ""
                message = (
                    f"in {precision} {int(lost.sum())} of {lost.size} values of output {output.name!r} overflow on "
                    f"{family} inputs, where fp32's are finite{ends}"
                )
                yield ParityFailure(check="precision", output=output.name, case=family, message=message)


def _too_coarse(half: Baseline, precision: Precision) -> Iterator[ParityFailure]:
    """A failure for each output whose eager errors are over a tenth of the signal in every family of inputs."""
    for index, output in enumerate(half.question.spec.outputs):
        if not is_floating(output):
            continue
        ratios = {
            family: decibels(signal(rows.reference[index]), _eager_rms(half.budgets[output.name, family]))
            for family, rows in half.rows.items()
        }
        family = max(ratios, key=lambda name: ratios[name])
        if ratios[family] < SQNR_DB:
            message = (
                f"{precision} is too coarse for this network: eager's own output {output.name!r} has "
                f"{ratios[family]:.1f} dB signal to noise on {family} inputs, {SQNR_DB:g} is the least"
            )
            yield ParityFailure(check="precision", output=output.name, case=family, message=message)


def _eager_rms(budget: OutputBudget) -> float:
    return budget.l2_unit


def noise_baseline(fp32: Baseline) -> Baseline:
    """What int8 artifacts are judged by: noise of a tenth of the signal, on real rows where there are some.

    Static scales are taken from real rows and hold for such alone, so that seeded inputs say nothing then. Nor do
    seeded rows that are all alike, such as texts of one token: they have no signal, which any noise is over.
    """
    families = [REAL] if REAL in fp32.rows else [name for name in fp32.rows if _varies(fp32, name)]
    rows = {family: fp32.rows[family] for family in families}
    pools = tuple(pool for pool in fp32.question.pools if pool.family in rows)
    cases = make_cases(fp32.question.spec, pools, mixed=False)
    question = replace(fp32.question, precision="int8", pools=pools, cases=cases)
    budgets = {
        (output.name, family): _noise_budget(output, fp32.budgets[output.name, family], held.reference[index])
        for family, held in rows.items()
        for index, output in enumerate(question.spec.outputs)
    }
    return replace(fp32, question=question, rows=rows, budgets=budgets)


def _varies(fp32: Baseline, family: str) -> bool:
    """Whether every output varies with the rows of a family at least by the noise that normal rows may have."""
    usual, rows = fp32.rows[SEEDED[0]].reference, fp32.rows[family].reference
    outputs = enumerate(fp32.question.spec.outputs)
    kept = [index for index, output in outputs if is_floating(output)]
    return all(decibels(signal(rows[index]), signal(usual[index])) >= -SQNR_DB for index in kept)


def _noise_budget(output: TensorSpec, own: OutputBudget, rows: np.ndarray) -> OutputBudget:
    """The most noise that passes, and never less than fp32 itself may be off by."""
    noise = signal(rows) * 10 ** (-SQNR_DB / 20) if is_floating(output) else 0.0
    return own.model_copy(
        update={
            "max_unit": max(_PEAK * noise, own.max_unit * own.max_limit),
            "l2_unit": max(noise, own.l2_unit * own.l2_limit),
            "max_limit": 1.0,
            "l2_limit": 1.0,
        }
    )


def signal(rows: np.ndarray) -> float:
    """The root mean square of how far an output's elements are from their means over the rows; rows first.

    Of a single row, from the mean of all its elements.
    """
    values = np.where(np.isfinite(rows), rows, np.nan).astype(np.float64)
    if not np.isfinite(values).any():
        return 0.0
    middle = np.nanmean(values, axis=0, keepdims=True) if len(values) > 1 else np.nanmean(values)
    return math.sqrt(float(np.nanmean(np.square(values - middle))))


def decibels(of: float, noise: float) -> float:
    """Signal over noise, both root mean squares, in dB; infinite without noise."""
    if noise == 0.0:
        return math.inf
    return 20 * math.log10(of / noise) if of > 0.0 else -math.inf


def _in_decibels(found: ParityEvidence, *, least: float) -> ParityEvidence:
    """The evidence with each output's signal to noise, in its reason too."""
    outputs = tuple(output.model_copy(update={"sqnr_db": _sqnr(output)}) for output in found.outputs)
    if not outputs:
        return found.model_copy(update={"outputs": outputs})
    worst = min(outputs, key=lambda output: output.sqnr_db or 0.0)
    said = f"int8 signal to noise {worst.sqnr_db:.1f} dB in output {worst.output!r} (at least {least:g})"
    if found.judgement.passed:
        flips = sum(output.decisions_compared for output in outputs)
        reason = f"{said}, {flips} decisions with a margin hold" if flips else said
    else:
        reason = f"{said}; {found.judgement.reason}"
    judgement = found.judgement.model_copy(update={"reason": reason})
    return found.model_copy(update={"outputs": outputs, "judgement": judgement})


def _sqnr(output: OutputParity) -> float:
    """By the unit of noise, which is 20 dB under the signal."""
    return SQNR_DB + decibels(1.0, output.l2_multiple)


def _widened(baseline: Baseline, found: ParityEvidence) -> Baseline:
    """The budgets where the metric decided: what was proven is that artifact, so it is what a server must give."""
    seen = {output.output: output for output in found.outputs}
    budgets = {
        key: budget.model_copy(
            update={
                "max_unit": max(budget.max_unit, _SERVED * seen[key[0]].max_error),
                "l2_unit": max(budget.l2_unit, _SERVED * seen[key[0]].l2_multiple * budget.l2_unit),
            }
        )
        if key[0] in seen
        else budget
        for key, budget in baseline.budgets.items()
    }
    return replace(baseline, budgets=budgets)
