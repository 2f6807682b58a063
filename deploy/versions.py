"""One artifact with its proof becomes one staged, served and published version.

Owns what a version is filled with and the served check of a stage; layout and publication are the repository's.
Called by package.
"""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from deploy.checkpoint.model import Checkpoint
from deploy.convert.model import Artifact
from deploy.convert.ort_session import options_in
from deploy.evidence import Judgement, ServedEvidence, Verdict
from deploy.gpu import LocalGpu
from deploy.latency_evidence import LatencyEvidence, PrecisionEvidence
from deploy.progress import Progress
from deploy.report.child import Reporter
from deploy.report.findings import (
    BEHAVIOUR_FILE,
    LATENCY_FILE,
    PARITY_FILE,
    PRECISION_FILE,
    SERVED_FILE,
    other_parity_file,
)
from deploy.report.html import REPORT_FILE
from deploy.repository.config import ConfigPlan, WarmupTensor, build_config, warmup_tensors
from deploy.repository.lint import require_clean
from deploy.repository.manifest import CheckpointOrigin, Environment, Manifest, Verdicts, created_now, wire_names
from deploy.repository.publish import PublishedVersion, PublishOptions, publish
from deploy.repository.stage import Stage, open_stage
from deploy.serve.engines import Engine
from deploy.serve.parity import ServedQuestion, check_served
from deploy.serve.server import ServerFailed
from deploy.spec import Spec
from deploy.targets import Target
from deploy.validate.run import Proof
from deploy.validate.store import save_baseline


@dataclass(frozen=True, slots=True, kw_only=True)
class VersionPlan:
    """What every version of one packaging run has in common. `engine` is None without a served check.

    `gpu` is the one that it was proven on, None for the CPU.
    """

    checkpoint: Checkpoint
    spec: Spec
    classes: tuple[str, ...] | None
    target: Target
    threads: int
    command: tuple[str, ...]
    proof: Proof
    latency: LatencyEvidence | None
    engine: Engine | None
    publish: PublishOptions
    slo_p99_ms: float | None = None
    precision: PrecisionEvidence | None = None
    gpu: LocalGpu | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class StagedVersion:
    """A version that is complete but for its place. `judgement` is the served check's; without one it is pass."""

    stage: Stage
    artifact: Artifact
    manifest: Manifest
    judgement: Judgement
    served: ServedEvidence | None
    reporter: Reporter


@contextmanager
def staged_version(
    artifact: Artifact, plan: VersionPlan, *, work: Stage, name: str, keep_failed: Path | None, progress: Progress
) -> Iterator[StagedVersion]:
    """A version in a stage of its own, filled, linted and served; the stage goes when the block is left."""
    with ExitStack() as stack:
        stage = stack.enter_context(open_stage(work.repository, name, keep_failed=keep_failed, on_step=work.step))
        _fill(stage, artifact, plan)
        # Drawn while the server answers, which is not timed.
        reporter = stack.enter_context(Reporter(stage, _manifest(stage, artifact, plan, served=None)))
        served, judgement = None, Judgement.yes("not served: --no-serve-check")
        if plan.engine is not None:
            with progress.stage(f"serve {artifact.format} in a real Triton"):
                served, judgement = _serve(stage, artifact, plan, engine=plan.engine)
        if served is not None:
            stage.add_evidence(SERVED_FILE, served.to_json().encode())
        stage.step("served")
        manifest = _manifest(stage, artifact, plan, served=served)
        yield StagedVersion(
            stage=stage, artifact=artifact, manifest=manifest, judgement=judgement, served=served, reporter=reporter
        )


def publish_staged(staged: StagedVersion, plan: VersionPlan) -> PublishedVersion:
    """Make a staged version visible. Raises as `deploy.repository.publish.publish` does."""
    return publish(staged.stage, staged.manifest, plan.publish, late={REPORT_FILE: staged.reporter.page})


def _fill(stage: Stage, artifact: Artifact, plan: VersionPlan) -> None:
    stage.add_artifact(artifact)
    stage.add_kept(plan.checkpoint.kept_files)
    warmup = _warmup(plan)
    config = build_config(
        ConfigPlan(
            name=stage.name,
            version=stage.version.number,
            format=artifact.format,
            spec=plan.spec,
            target=plan.target,
            threads=plan.threads,
            classes=plan.classes,
            warmup=warmup,
            slo_p99_ms=plan.slo_p99_ms,
            options=options_in(artifact.details),
        )
    )
    stage.add_config(config, classes=plan.classes)
    stage.add_warmup(warmup)
    require_clean(config, folder=stage.version.model_folder)
    for name, parity in plan.proof.evidence.items():
        file = PARITY_FILE if name == artifact.format else other_parity_file(name)
        stage.add_evidence(file, parity.to_json().encode())
    stage.add_evidence(BEHAVIOUR_FILE, plan.proof.behaviour.to_json().encode())
    if plan.latency is not None:
        stage.add_evidence(LATENCY_FILE, plan.latency.to_json().encode())
    if plan.precision is not None:
        stage.add_evidence(PRECISION_FILE, plan.precision.to_json().encode())
    save_baseline(plan.proof.baseline_of(artifact.format), stage.version.evidence)
    stage.step("evidence-added")


def _warmup(plan: VersionPlan) -> tuple[WarmupTensor, ...]:
    """The first row of the first family: a real sample where the user gave some."""
    rows = plan.proof.baseline.question.pools[0].take([0])
    return warmup_tensors(plan.spec, [np.ascontiguousarray(row) for row in rows])


def _serve(
    stage: Stage, artifact: Artifact, plan: VersionPlan, *, engine: Engine
) -> tuple[ServedEvidence | None, Judgement]:
    """The answers of a real server on the stage. A server that cannot load the version is a verdict too: it fails."""
    question = ServedQuestion(
        baseline=plan.proof.baseline_of(artifact.format), format=artifact.format, classes=plan.classes
    )
    try:
        served = check_served(stage.version, engine, question, staged=True)
    except ServerFailed as error:
        return None, Judgement.no(str(error))
    return served, served.judgement


def _manifest(stage: Stage, artifact: Artifact, plan: VersionPlan, *, served: ServedEvidence | None) -> Manifest:
    parity = plan.proof.evidence[artifact.format].judgement
    architecture = plan.proof.behaviour.judgement
    return Manifest(
        name=stage.name,
        version=stage.version.number,
        format=artifact.format,
        created=created_now(),
        command=plan.command,
        spec=plan.spec,
        wire=wire_names(plan.spec),
        classes=plan.classes,
        preprocessing=plan.checkpoint.preprocessing,
        checkpoint=CheckpointOrigin.of(plan.checkpoint),
        artifact=artifact.details,
        target=plan.target,
        environment=Environment.here(plan.gpu),
        verdicts=Verdicts(
            parity=parity,
            architecture=architecture,
            latency=plan.latency.judgement if plan.latency else None,
            served=served.judgement if served else None,
        ),
        served_check="skipped" if plan.engine is None else "done",
        unsafe_accepted=_unsafe(parity, architecture),
    )


def _unsafe(parity: Judgement, architecture: Judgement) -> tuple[str, ...]:
    """The checks that failed; a version that gets here with one was published on the user's own responsibility.

    Parity that is undecided, by a metric on too few samples, is such a one too.
    """
    failed = {"parity": not parity.passed, "architecture": architecture.verdict is Verdict.FAIL}
    return tuple(name for name, refused in failed.items() if refused)
