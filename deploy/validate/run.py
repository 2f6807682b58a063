"""The proof of a set of artifacts: which models run in which children, in what order.

Owns the orchestration, in the command's own process and so without torch; judging is in `parity`, the search for a
cause in `locate`. Called by package.

    1. One child runs the reference in float64 over every row.
    2. One child runs eager over every row, and again with weights off by a rounding; the budgets come from its
       errors, and it is held against `expected/`.
    3. One child per artifact answers every case, each row twice, and is judged.
    4. For an artifact that failed, one more child finds the place.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain, cycle, islice, repeat
from pathlib import Path

import numpy as np

from deploy.checkpoint.model import Checkpoint
from deploy.convert.model import Artifact, Device, Format, Program
from deploy.convert.ort_session import options_in
from deploy.errors import DeployError
from deploy.evidence import BehaviourEvidence, FaultPlace, Judgement, ParityEvidence, ParityFailure, Verdict
from deploy.processes import ChildFailed, Limits, OutOfMemory, Worker
from deploy.spec import Spec
from deploy.targets import Target
from deploy.validate.baseline import Arrays, Baseline, Question, declared_baseline, make_baseline
from deploy.validate.behaviour import check_behaviour
from deploy.validate.cases import Case, call_with, calls_of, make_cases
from deploy.validate.compare import as_rows
from deploy.validate.executables import AotiModel, EagerModel, OnnxModel
from deploy.validate.families import Pool, make_pools
from deploy.validate.locate import Suspect, locate
from deploy.validate.pace import IN_FLOAT64, Pace
from deploy.validate.parity import Answer, judge
from deploy.validate.samples import Samples

# Eager runs as it is, and so many times more with its weights nudged: see `baseline` for why.
_NUDGES = 2
# Failures of values, which have a place in the artifact.
_PLACED = ("finite", "repeat", "error", "decision", "batch")
# Float64 kernels sum in another order for another batch; that is far below what float32 can show.
_MIXED = 1e-9


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """How to prove: the contract, where children log, what they may use, and how long a cause is looked for.

    `program` is the exported program; with it the search for a cause can tell a wrong export from a wrong
    compilation. `search_seconds` of 0 means no search. `device` is where everything runs, the reference included.
    `pace` is told what was asked.
    """

    spec: Spec
    logs: Path
    threads: int
    target: Target
    program: Program | None = None
    seed: int = 0
    limits: Limits = field(default_factory=Limits)
    allow_constant_output: bool = False
    search_seconds: float = 120.0
    device: Device = "cpu"
    pace: Pace = field(default_factory=Pace)


@dataclass(frozen=True, slots=True, kw_only=True)
class Proof:
    """What was proven: evidence per format, whose model it is, and what server answers are judged by later.

    `own` is what those are judged by of a format in a lower precision, which has budgets of its own.
    """

    evidence: dict[Format, ParityEvidence]
    behaviour: BehaviourEvidence
    baseline: Baseline
    own: dict[Format, Baseline] = field(default_factory=dict)

    def baseline_of(self, format: Format) -> Baseline:
        """What a format's answers are judged by."""
        return self.own.get(format, self.baseline)


def prove(checkpoint: Checkpoint, artifacts: Sequence[Artifact], samples: Samples | None, plan: Plan) -> Proof:
    """The proof of these artifacts. An artifact whose child crashes fails with the reason; the others live.

    Raises UnfinishedError if the checkpoint itself cannot run, or not within the limits.
    """
    baseline, behaviour = measure_baseline(checkpoint, samples, plan)
    if behaviour.status == "refuted":
        evidence = {artifact.format: _refuted(artifact, baseline, behaviour) for artifact in artifacts}
    else:
        evidence = {artifact.format: prove_artifact(checkpoint, artifact, baseline, plan) for artifact in artifacts}
    return Proof(evidence=evidence, behaviour=behaviour, baseline=baseline)


def measure_baseline(checkpoint: Checkpoint, samples: Samples | None, plan: Plan) -> tuple[Baseline, BehaviourEvidence]:
    """The reference values, the budgets from eager's errors, and whose model it is. Needs no artifact."""
    question = ask(samples, plan)
    plan.pace.begin(question)
    reference, mixed, trouble = _reference(checkpoint, question, plan)
    with _worker("eager", plan) as worker:
        worker.make(EagerModel, checkpoint, threads=plan.threads, device=plan.device)
        if trouble:
            eager = _counted(plain_calls(worker, question), plan.pace)
            baseline = declared_baseline(question, eager, reason=trouble)
        else:
            eager = _counted(chain(plain_calls(worker, question), nudged_calls(worker, question)), plan.pace)
            baseline = make_baseline(question, reference, eager, mixed=mixed)
        behaviour = check_behaviour(checkpoint, samples, plan.spec, lambda inputs: worker.call("run", inputs))
    return baseline, behaviour


def ask(samples: Samples | None, plan: Plan) -> Question:
    """The rows and cases that every model is asked."""
    pools = make_pools(plan.spec, samples, plan.seed)
    return Question(
        spec=plan.spec,
        pools=pools,
        cases=make_cases(plan.spec, pools),
        seed=plan.seed,
        allow_constant_output=plan.allow_constant_output,
    )


def _reference(checkpoint: Checkpoint, question: Question, plan: Plan) -> tuple[dict[str, Arrays], list[str], str]:
    """The float64 rows by family, the families in which a row depends on its batch, and why there are none.

    Raises ChildFailed if the child was ended or found no memory: too little of it must not make the check a weaker one.
    """
    with _worker("reference", plan) as worker:
        try:
            worker.make(EagerModel, checkpoint, dtype="float64", threads=plan.threads, device=plan.device)
            rows = {pool.family: _pool_rows(worker, question.spec, pool, plan.pace) for pool in question.pools}
        except ChildFailed as error:
            if not worker.alive or isinstance(error, OutOfMemory):
                raise
            return {}, [], error.found
        first = question.pools[0]
        mixed = _mixes_rows(worker, question.spec, first, rows[first.family])
        return rows, [first.family] if mixed else [], ""


def _pool_rows(worker: Worker, spec: Spec, pool: Pool, pace: Pace) -> Arrays:
    """The outputs for all rows of a pool in float64, rows first, in batches within the bounds."""
    calls = []
    for chosen in _batches(spec, pool):
        outputs = worker.call("run", pool.take(chosen))
        pace.asked(IN_FLOAT64 * len(chosen))
        calls.append([as_rows(array, output) for array, output in zip(outputs, spec.outputs, strict=True)])
    return [np.concatenate(arrays) for arrays in zip(*calls, strict=True)]


def _mixes_rows(worker: Worker, spec: Spec, pool: Pool, rows: Arrays) -> bool:
    """True where the reference answers a row differently alone than in a batch; never asked of a static program."""
    if spec.batch is None or spec.batch.minimum > 1 or pool.rows < 2:
        return False
    alone = worker.call("run", pool.take([pool.rows - 1]))
    return any(
        float(np.nanmax(np.abs(single[0] - batch[-1]), initial=0.0))
        > _MIXED * float(np.nanmax(np.abs(batch), initial=0.0))
        for single, batch in zip(alone, rows, strict=True)
        if batch.dtype.kind == "f" and len(batch) == pool.rows
    )


def plain_calls(worker: Worker, question: Question) -> Iterator[tuple[Case, Arrays]]:
    """Eager's answers to every row, in batches within the bounds."""
    for pool in question.pools:
        for rows in _batches(question.spec, pool):
            case = Case(name=f"{pool.family}, eager", family=pool.family, rows=tuple(rows))
            yield case, worker.call("run", pool.take(rows))


def nudged_calls(worker: Worker, question: Question) -> Iterator[tuple[Case, Arrays]]:
    """The same rows again, with weights off by a rounding."""
    for draw in range(_NUDGES):
        for pool in question.pools:
            for rows in _batches(question.spec, pool):
                case = Case(name=f"{pool.family}, eager nudged {draw}", family=pool.family, rows=tuple(rows))
                yield case, worker.call("run_nudged", pool.take(rows), draw=draw)


def _counted(calls: Iterable[tuple[Case, Arrays]], pace: Pace) -> Iterator[tuple[Case, Arrays]]:
    for case, outputs in calls:
        pace.asked(len(case.rows))
        yield case, outputs


def _batches(spec: Spec, pool: Pool) -> Iterator[range]:
    """The rows of a pool in batches of at most the maximum."""
    for start in range(0, pool.rows, spec.max_batch):
        yield range(start, min(start + spec.max_batch, pool.rows))


def prove_artifact(checkpoint: Checkpoint, artifact: Artifact, baseline: Baseline, plan: Plan) -> ParityEvidence:
    """The evidence for one artifact, with the place where it goes wrong if it does."""
    with _worker(f"parity of {artifact.format}", plan) as worker:
        evidence = judge(baseline, _answers(worker, artifact, baseline.question, plan), format=artifact.format)
    evidence = evidence.model_copy(update={"judgement": _where_proven(evidence.judgement, plan)})
    if evidence.judgement.passed or plan.search_seconds <= 0:
        return evidence
    return evidence.model_copy(
        update={"place": _find_place(checkpoint, artifact, baseline, evidence=evidence, plan=plan)}
    )


def _where_proven(judgement: Judgement, plan: Plan) -> Judgement:
    """The judgement, with a word on the device where the target's is another."""
    if plan.target.device == plan.device:
        return judgement
    reason = f"{judgement.reason}; proven on {plan.device.upper()}, the target runs on {plan.target.device}"
    return judgement.model_copy(update={"reason": reason})


def _answers(worker: Worker, artifact: Artifact, question: Question, plan: Plan) -> Iterator[Answer]:
    """Every call, and again where it is to be. An error ends that call; a child that is gone ends them all."""
    pools = {pool.family: pool for pool in question.pools}
    try:
        if artifact.format == "aoti":
            worker.make(AotiModel, artifact.path, threads=plan.threads, device=plan.device)
        else:
            options = options_in(artifact.details)
            worker.make(OnnxModel, artifact.path, threads=plan.threads, device=plan.device, options=options)
    except DeployError as error:
        yield Answer(case=question.cases[0], error=f"it could not be loaded: {error.found}")
        return
    for call in calls_of(question.cases):
        try:
            if call.repeat:
                outputs, again = worker.call("run_twice", call.inputs(pools))
            else:
                outputs, again = worker.call("run", call.inputs(pools)), None
        except ChildFailed as error:
            yield Answer(case=call.cases[0], error=error.found)
            if not worker.alive:
                return
            continue
        seconds = call.part(again) if again is not None else repeat(None)
        plan.pace.asked(call.size * (2 if call.repeat else 1))
        for case, first, second in zip(call.cases, call.part(outputs), seconds, strict=False):
            yield Answer(case=case, outputs=first, again=second)


def _find_place(
    checkpoint: Checkpoint, artifact: Artifact, baseline: Baseline, *, evidence: ParityEvidence, plan: Plan
) -> FaultPlace | None:
    """Where the first failure begins; None where it has no place in the artifact, or where the search itself failed."""
    failed = next((failure for failure in evidence.failures if failure.check in _PLACED), None)
    if failed is None:
        return None
    suspect = _suspect(baseline, artifact, failed, plan)
    limits = Limits(seconds=plan.search_seconds + 60.0, memory=plan.limits.memory)
    try:
        with _worker(f"search in {artifact.format}", replace(plan, limits=limits)) as worker:
            return worker.run(locate, checkpoint, suspect).value
    except DeployError as error:  # whatever keeps the search from its end, the verdict was there before it
        return FaultPlace(
            kind="unknown", name="", message=f"the search for the cause failed: {error.found}", reproduced=False
        )


def _suspect(baseline: Baseline, artifact: Artifact, failed: ParityFailure, plan: Plan) -> Suspect:
    """The call in which the failure was seen, and what its outputs should have been."""
    case = next(case for case in baseline.question.cases if case.name == failed.case)
    rows = baseline.rows[case.family]
    chosen = list(case.rows)
    if case.shared:
        # A batch of this family's rows alone, for the budget is its own; unlike neighbours show what mixes rows.
        others = (row for row in range(rows.pool.rows) if row not in case.rows)
        size = call_with(case, baseline.question.cases).size
        chosen = list(islice(cycle([*dict.fromkeys(case.rows), *others]), size))
    return Suspect(
        format=artifact.format,
        path=artifact.path,
        program=plan.program,
        spec=plan.spec,
        inputs=tuple(rows.pool.take(chosen)),
        reference=tuple(array[chosen] for array in rows.reference),
        allowed=tuple(baseline.budgets[output.name, case.family].allowed for output in plan.spec.outputs),
        target=plan.target,
        seconds=plan.search_seconds,
        device=plan.device,
    )


def _refuted(artifact: Artifact, baseline: Baseline, behaviour: BehaviourEvidence) -> ParityEvidence:
    """The evidence of an artifact that was not asked, because its model is not the one that was trained."""
    question = baseline.question
    failure = ParityFailure(check="behaviour", output="", case="expected outputs", message=behaviour.statement)
    return ParityEvidence(
        format=artifact.format,
        judgement=Judgement(verdict=Verdict.FAIL, reason=behaviour.statement),
        reference=baseline.reference,
        max_limit=question.limits.max_multiple,
        l2_limit=question.limits.l2_multiple,
        cases=(),
        rows=0,
        outputs=(),
        failures=(failure,),
        seed=question.seed,
    )


def _worker(name: str, plan: Plan) -> Worker:
    log = plan.logs / f"{name.replace(' ', '-')}.log"
    return Worker(name, log=log, limits=plan.limits)
