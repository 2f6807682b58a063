"""The main job for a TorchScript archive whose owner insists: it becomes a version as it is, proven or marked unproven.

Owns the order of the steps and what each outcome means. Called by the command `package` with `--as-is`. An archive has
no architecture to build, so there is no float64 reference: only what training computed, in the samples' `expected/`
outputs, can prove it. This process never imports torch.

    1. Find what this machine lacks, before any work: an engine.
    2. Read the archive's signature, the labels and the samples.
    3. Run it: which outputs it has, what it answers, and how far that is from the `expected/` outputs.
    4. Stage it, serve it from the stage in a real tritonserver, and hold the answers against its own.
    5. Publish it with its digests, by one rename: proven, or where the user accepted it, marked unproven for ever.
"""

import os
import shutil
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from deploy.checkpoint.model import Checkpoint
from deploy.checkpoint.torchscript import read_script
from deploy.convert.export import program_dims, program_inputs
from deploy.convert.model import ARTIFACT_FILES, Artifact
from deploy.errors import ExitCode, UsageError
from deploy.evidence import BehaviourEvidence, Judgement, ParityEvidence, ServedEvidence, Verdict
from deploy.files import disk_errors_explained, sha256_file
from deploy.processes import Limits, Worker, prepare
from deploy.progress import Progress, Silent
from deploy.report.child import Reporter
from deploy.report.findings import BEHAVIOUR_FILE, PARITY_FILE, SERVED_FILE
from deploy.report.html import REPORT_FILE
from deploy.repository.config import ConfigPlan, build_config, warmup_tensors
from deploy.repository.contract import check_contract
from deploy.repository.layout import check_name, next_number
from deploy.repository.lint import require_clean
from deploy.repository.manifest import CheckpointOrigin, Environment, Manifest, Verdicts, created_now, wire_names
from deploy.repository.publish import PublishedVersion, PublishOptions, publish
from deploy.repository.stage import Stage, open_stage
from deploy.request import PackageRequest
from deploy.serve.engines import Engine, find_engine
from deploy.serve.parity import ServedQuestion, check_served
from deploy.serve.server import ServerFailed
from deploy.spec import Spec
from deploy.validate.baseline import Baseline, Question, declared_baseline
from deploy.validate.behaviour import check_behaviour, check_labels, read_labels
from deploy.validate.cases import Case, make_cases
from deploy.validate.families import make_pools
from deploy.validate.samples import Samples, load_samples
from deploy.validate.script import ScriptModel
from deploy.validate.store import save_baseline

FORMAT = "torchscript"
_REASON = "a TorchScript archive has no architecture to build"
ACCEPT = "--unsafe-accept-parity-failure"
_SEED = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class AsIsPlan:
    """What steps 1 and 2 found."""

    checkpoint: Checkpoint
    name: str
    number: int
    classes: tuple[str, ...] | None
    samples: Samples | None
    engine: Engine | None


@dataclass(frozen=True, slots=True, kw_only=True)
class AsIsResult:
    """What came of it. `published` is None where nothing was."""

    plan: AsIsPlan
    parity: Judgement
    behaviour: BehaviourEvidence
    served: ServedEvidence | None
    published: PublishedVersion | None
    lost: str = ""

    @property
    def exit_code(self) -> ExitCode:
        """0 where a version was published, else 1."""
        return ExitCode.OK if self.published else ExitCode.NO


@dataclass(frozen=True, slots=True, kw_only=True)
class _Ran:
    """What running the archive showed."""

    spec: Spec
    baseline: Baseline
    behaviour: BehaviourEvidence
    parity: Judgement


def plan_as_is(request: PackageRequest, *, progress: Progress = Silent()) -> AsIsPlan:
    """Steps 1 and 2; nothing is written. Raises MissingError or UsageError."""
    engine = find_engine() if request.serve_check else None
    prepare("deploy.convert.preload")
    with progress.stage("read the archive"), Worker("archive", log=Path(os.devnull)) as worker:
        checkpoint = worker.run(read_script, request.checkpoint).value
    name = check_name(request.name or checkpoint.name)
    labels = read_labels(request.labels) if request.labels else None
    if not request.samples:
        progress.note(f"no --samples: nothing can prove the archive, so that {ACCEPT} is needed to publish it")
    return AsIsPlan(
        checkpoint=checkpoint,
        name=name,
        number=next_number(request.repository / name),
        classes=check_labels(labels, checkpoint),
        samples=load_samples(request.samples, checkpoint.inputs) if request.samples else None,
        engine=engine,
    )


def package_as_is(request: PackageRequest, *, progress: Progress = Silent()) -> AsIsResult:
    """Package an archive as it is, and say what came of it.

    Raises MissingError, UsageError or UnfinishedError as the exit codes have it.
    """
    plan = plan_as_is(request, progress=progress)  # 1, 2
    with open_stage(request.repository, plan.name, keep_failed=request.keep_failed) as stage:
        run = _Run(request=request, plan=plan, stage=stage, progress=progress)
        artifact = run.copy()
        ran = run.run(artifact)  # 3
        result = AsIsResult(plan=plan, parity=ran.parity, behaviour=ran.behaviour, served=None, published=None)
        if not ran.parity.passed and not request.accept_parity_failure:
            return result
        served, lost = run.serve(artifact, ran)  # 4
        published = None if lost else run.publish(artifact, ran, served)  # 5
        return AsIsResult(
            plan=plan, parity=ran.parity, behaviour=ran.behaviour, served=served, published=published, lost=lost
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Run:
    """One run: what it was asked, what it read, and the stage it fills. One method per step."""

    request: PackageRequest
    plan: AsIsPlan
    stage: Stage
    progress: Progress

    def copy(self) -> Artifact:
        """The archive in the stage. Raises UsageError if it is not the one that was read."""
        folder = self.stage.work / FORMAT
        file = folder / ARTIFACT_FILES["torchscript"]
        with disk_errors_explained("copying the archive"):
            folder.mkdir(parents=True)
            shutil.copyfile(self.plan.checkpoint.path, file)
        if sha256_file(file) != self.plan.checkpoint.digest:
            raise UsageError(f"{self.plan.checkpoint.path} changed while it was read", expected="a file at rest")
        return Artifact(format="torchscript", folder=folder, files=(file.name,), seconds=0.0, peak_memory=0, details={})

    def run(self, artifact: Artifact) -> _Ran:
        """Step 3. Raises UsageError if its outputs cannot be served."""
        checkpoint, samples, request = self.plan.checkpoint, self.plan.samples, self.request
        log = self.stage.work / "logs" / "archive.log"
        limits = Limits(seconds=request.resources.seconds, memory=request.resources.memory)
        with self.progress.stage("run the archive"), Worker("the archive", log=log, limits=limits) as worker:
            worker.make(ScriptModel, artifact.path, threads=request.resources.threads)
            inputs = program_inputs(checkpoint.inputs, max_batch=request.max_batch)
            spec: Spec = worker.call("spec", inputs, program_dims(checkpoint, max_batch=request.max_batch))
            pools = make_pools(spec, samples, _SEED)
            question = Question(spec=spec, pools=pools, cases=make_cases(spec, pools), seed=_SEED)
            calls = (
                (case, worker.call("run", pool.take(case.rows)))
                for pool in pools
                for case in (
                    Case(
                        name=pool.family, family=pool.family, rows=tuple(range(at, min(at + spec.max_batch, pool.rows)))
                    )
                    for at in range(0, pool.rows, spec.max_batch)
                )
            )
            baseline = declared_baseline(question, calls, reason=_REASON)
            behaviour = check_behaviour(checkpoint, samples, spec, lambda rows: worker.call("run", rows))
        return _Ran(spec=spec, baseline=baseline, behaviour=behaviour, parity=_parity(behaviour, samples, spec))

    def serve(self, artifact: Artifact, ran: _Ran) -> tuple[ServedEvidence | None, str]:
        """Step 4: the evidence, and why the version is lost where it is."""
        self._fill(artifact, ran)
        if self.plan.engine is None:
            return None, ""
        question = ServedQuestion(baseline=ran.baseline, format="torchscript", classes=self.plan.classes)
        try:
            with self.progress.stage("serve the archive in a real Triton"):
                served = check_served(self.stage.version, self.plan.engine, question, staged=True)
        except ServerFailed as error:
            return None, str(error)
        self.stage.add_evidence(SERVED_FILE, served.to_json().encode())
        return served, "" if served.judgement.passed else served.judgement.reason

    def publish(self, artifact: Artifact, ran: _Ran, served: ServedEvidence | None) -> PublishedVersion:
        """Step 5."""
        manifest = self._manifest(ran, served)
        options = PublishOptions(promote=self.request.promote, new_contract=self.request.new_contract)
        with Reporter(self.stage, manifest) as reporter:
            return publish(self.stage, manifest, options, late={REPORT_FILE: reporter.page})

    def _fill(self, artifact: Artifact, ran: _Ran) -> None:
        stage, request = self.stage, self.request
        stage.add_artifact(artifact)
        rows = ran.baseline.question.pools[0].take([0])
        warmup = warmup_tensors(ran.spec, [np.ascontiguousarray(row) for row in rows])
        config = build_config(
            ConfigPlan(
                name=stage.name,
                version=stage.version.number,
                format="torchscript",
                spec=ran.spec,
                target=request.target,
                threads=request.resources.threads,
                classes=self.plan.classes,
                warmup=warmup,
            )
        )
        stage.add_config(config, classes=self.plan.classes)
        stage.add_warmup(warmup)
        require_clean(config, folder=stage.version.model_folder)
        check_contract(stage.repository, stage.name, self._manifest(ran, None), accept=request.new_contract)
        stage.add_evidence(PARITY_FILE, _evidence(ran).to_json().encode())
        stage.add_evidence(BEHAVIOUR_FILE, ran.behaviour.to_json().encode())
        save_baseline(ran.baseline, stage.version.evidence)

    def _manifest(self, ran: _Ran, served: ServedEvidence | None) -> Manifest:
        environment = Environment.here()
        return Manifest(
            name=self.stage.name,
            version=self.stage.version.number,
            format="torchscript",
            created=created_now(),
            command=self.request.command,
            spec=ran.spec,
            wire=wire_names(ran.spec),
            classes=self.plan.classes,
            preprocessing=self.plan.checkpoint.preprocessing,
            checkpoint=CheckpointOrigin.of(self.plan.checkpoint),
            artifact={"as_is": "not converted", "torch": environment.torch or "unknown"},
            target=self.request.target,
            environment=environment,
            verdicts=Verdicts(
                parity=ran.parity,
                architecture=ran.behaviour.judgement,
                served=served.judgement if served else None,
            ),
            served_check="skipped" if self.plan.engine is None else "done",
            unsafe_accepted=_accepted(ran),
        )


def _parity(behaviour: BehaviourEvidence, samples: Samples | None, spec: Spec) -> Judgement:
    """Pass where the archive computes every output as training did, undecided where nothing says what that was."""
    if behaviour.status == "refuted":
        reason = (
            f"the archive is {behaviour.relative_error:.2g} (relative L2) from the samples' expected outputs; "
            f"{behaviour.relative_limit:g} passes"
        )
        return Judgement(verdict=Verdict.FAIL, reason=reason)
    known = set(samples.expected_outputs(spec)) if samples else set()
    missing = [output.name for index, output in enumerate(spec.outputs) if index not in known]
    if missing:
        reason = (
            f"unproven: {_REASON}, and no samples hold what training computed for {', '.join(missing)} "
            f"(expected/{missing[0]} in --samples)"
        )
        return Judgement(verdict=Verdict.UNDECIDED, reason=reason)
    reason = (
        f"{behaviour.rows} rows of the archive against what training computed: {behaviour.relative_error:.1e} relative "
        f"(L2), {behaviour.relative_limit:g} passes; {_REASON}, so there is no float64 reference"
    )
    return Judgement(verdict=Verdict.PASS, reason=reason)


def _accepted(ran: _Ran) -> tuple[str, ...]:
    """What was published on the user's own responsibility: whatever is not proven, and behaviour that was refuted."""
    refuted = ("architecture",) if ran.behaviour.status == "refuted" else ()
    return () if ran.parity.passed else ("parity", *refuted)


def _evidence(ran: _Ran) -> ParityEvidence:
    """The verdict in the form that every report shows."""
    return ParityEvidence(
        format=FORMAT,
        judgement=ran.parity,
        reference=ran.baseline.reference,
        max_limit=0.0,
        l2_limit=ran.behaviour.relative_limit or 0.0,
        cases=("expected outputs",) if ran.behaviour.rows else (),
        rows=ran.behaviour.rows,
        outputs=(),
        seed=_SEED,
    )
