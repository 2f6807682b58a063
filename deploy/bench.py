"""The third main job: a published version's latency is measured again, against eager or against another version.

Owns the order of the steps and who takes part; the race is `deploy.validate.latency`'s. Called by the command `bench`,
and by diff. This process never imports torch: what needs it runs in children.

    1. Find the versions, and find every file as it was published: an artifact may be native code.
    2. Find what speaks against the run before any work: the device, the batch sizes, two that take no common input.
    3. Check the checkpoint for eager, where one was given, against the one the version was made from.
    4. Race them on the samples of the version's own evidence, a control beside each that another is compared with.
    5. Judge the comparison, where a limit was asked for.
    6. Keep the result as an attestation of the version.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from deploy.checkpoint.model import Checkpoint, CheckpointRequest
from deploy.convert.model import ARTIFACT_FILES, Device
from deploy.convert.providers import ONNXRUNTIME_ADVICE
from deploy.device import look
from deploy.errors import DeployError, ExitCode, MissingError, UsageError
from deploy.evidence import Judgement, Verdict
from deploy.gpu import LocalGpu, visible_gpu
from deploy.latency_evidence import EAGER, BenchEvidence
from deploy.processes import Limits, prepare
from deploy.progress import Progress, Silent
from deploy.repository.attest import attest_or_tell, require_attestable
from deploy.repository.find import find_version
from deploy.repository.integrity import require_artifact, require_intact
from deploy.repository.layout import Version
from deploy.repository.manifest import Manifest, created_now, version_digest
from deploy.repository.origin import restore_checkpoint
from deploy.scratch import scratch_folder
from deploy.spec import BATCH, TensorSpec
from deploy.validate.contenders import (
    Entrant,
    Surroundings,
    artifact_entrant,
    eager_entrant,
    inputs_by_batch,
    open_entrants,
)
from deploy.validate.latency import Figures, LatencyPlan, evidence_of, take_figures
from deploy.validate.machine import default_threads
from deploy.validate.store import load_baseline
from deploy.validate.winner import Outcome, inform, judge_slowdown

KIND = "bench"


@dataclass(frozen=True, slots=True, kw_only=True)
class BenchRequest:
    """What the user asked for. `compare` numbers the other version; `eager` says where the checkpoint is.

    `max_slowdown`: the version may take at most so many times the time of the other one. `sizes` are the batch sizes;
    empty for 1 and the largest. `timeout` is in seconds for each thing a child is asked.
    """

    repository: Path
    reference: str
    compare: int | None = None
    eager: CheckpointRequest | None = None
    max_slowdown: float | None = None
    sizes: tuple[int, ...] = ()
    thorough: bool = False
    threads: int = field(default_factory=default_threads)
    seconds_per_cell: float = 2.5
    timeout: float | None = None
    attest: bool = True
    command: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.max_slowdown is not None and self.compare is None:
            raise UsageError(
                "a slowdown was limited without a version to compare with",
                expected="--max-slowdown beside --compare",
                fix="add --compare N",
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class BenchResult:
    """What was measured and judged, and where it is kept: None where that was not asked for, or `not_kept` says why."""

    evidence: BenchEvidence
    attestation: Path | None
    not_kept: DeployError | None = None

    @property
    def exit_code(self) -> ExitCode:
        """What was asked decides: 0 or 1 by the limit on the slowdown; 4 where somebody was lost, so nothing did.

        A result that could not be kept ends as that error does.
        """
        if self.not_kept is not None:
            return self.not_kept.exit_code
        latency, limited = self.evidence.latency, self.evidence.max_slowdown is not None
        if latency.lost and not (limited and latency.judgement.verdict is not Verdict.UNDECIDED):
            return ExitCode.UNFINISHED
        return ExitCode.OK if latency.judgement.passed or not limited else ExitCode.NO


@dataclass(frozen=True, slots=True, kw_only=True)
class _Side:
    """One version that takes part: where it lies and what it says about itself."""

    version: Version
    manifest: Manifest
    digest: str

    @property
    def name(self) -> str:
        """What the tables call it, such as `onnx v2`: two versions of one model mostly have one format."""
        return f"{self.manifest.format} v{self.version.number}"

    @property
    def device(self) -> Device:
        """Where it is built to run."""
        return self.manifest.target.device

    def entrant(self, threads: int) -> Entrant:
        path = self.version.folder / ARTIFACT_FILES[self.manifest.compiled]
        manifest = self.manifest
        return artifact_entrant(
            self.name, path, format=manifest.compiled, threads=threads, device=self.device, details=manifest.artifact
        )


def bench(request: BenchRequest, *, progress: Progress = Silent()) -> BenchResult:
    """The latency of a published version, beside eager's, another version's, or at the least its own once more.

    Raises UsageError if a version does not exist or has changed, MissingError if it is built for another device, and
    UnfinishedError if no version could be measured.
    """
    ours = _find(find_version(request.repository, request.reference))  # 1
    other = _find_other(ours, request.compare)
    plan = _plan(request, ours, other)  # 2
    checkpoint = restore_checkpoint(ours.manifest, request.eager) if request.eager else None  # 3
    with progress.stage("measure latency"):
        figures = _race(ours, other, checkpoint, plan=plan, limits=Limits(seconds=request.timeout))  # 4
    judgement = _judge(figures, ours, other, limit=request.max_slowdown)  # 5
    evidence = BenchEvidence(
        version=str(ours.version),
        digest=ours.digest,
        compared=str(other.version) if other else None,
        compared_digest=other.digest if other else None,
        checkpoint=checkpoint.digest if checkpoint else None,
        max_slowdown=request.max_slowdown,
        created=created_now(),
        command=request.command,
        latency=evidence_of(figures, plan, Outcome(winner=None, rule="", judgement=judgement)),
    )
    kept, lost = None, None
    if request.attest:
        kept, lost = attest_or_tell(ours.version, KIND, evidence, digest=ours.digest)  # 6
    return BenchResult(evidence=evidence, attestation=kept, not_kept=lost)


def _find(version: Version) -> _Side:
    """The version with its manifest, every file compared with its digest. Nothing of it was loaded before."""
    manifest = require_artifact(version, require_intact(version), doing="time it alone")
    return _Side(version=version, manifest=manifest, digest=version_digest(version.folder))


def _find_other(ours: _Side, number: int | None) -> _Side | None:
    if number is None:
        return None
    if number == ours.version.number:
        raise UsageError(
            f"{ours.version} was to be compared with itself",
            expected="another version of the same model",
            fix="leave out --compare: without a checkpoint a version runs beside itself anyway",
        )
    return _find(find_version(ours.version.repository, f"{ours.version.name}:{number}"))


def _plan(request: BenchRequest, ours: _Side, other: _Side | None) -> LatencyPlan:
    """How the race is run. Raises what speaks against it before any work."""
    sides = [side for side in (ours, other) if side]
    gpu = gpu_for([side.manifest for side in sides])
    if other:
        _check_inputs(ours, other)
    _check_sizes(request.sizes, sides)
    if request.attest:
        require_attestable(ours.version)
    base = other or (None if request.eager else ours)
    return LatencyPlan(
        max_batch=min(side.manifest.spec.max_batch for side in sides),
        sizes=request.sizes,
        thorough=request.thorough,
        threads=request.threads,
        device=ours.device,
        gpu=str(gpu or ""),
        target_device=ours.device,
        seconds_per_cell=request.seconds_per_cell,
        incumbent=base.name if base else None,
    )


def gpu_for(versions: Sequence[Manifest]) -> LocalGpu | None:
    """The GPU that versions run on, None on CPU. Raises MissingError where it, or a runtime for it, is not here."""
    on_gpu = next((one for one in versions if one.target.device == "cuda"), None)
    if on_gpu is None:
        return None
    target = on_gpu.target
    built = f"{on_gpu.name}:{on_gpu.version} is built for {target.device} (target {target.name})"
    if visible_gpu() is None or not all(one.target.device == "cuda" for one in versions):
        raise MissingError(
            f"{built}, and this run is on the CPU",
            expected="a machine with such a GPU, and versions for one device",
            fix="measure it where it will run",
        )
    stack = look()
    if stack.onnx and any(one.format == "onnx" for one in versions):
        raise MissingError(stack.onnx, expected="an onnxruntime that runs on the GPU", fix=ONNXRUNTIME_ADVICE)
    return stack.gpu


def _check_inputs(ours: _Side, other: _Side) -> None:
    """Refuse two versions that cannot be given the same arrays: a name's contract may have been changed between.

    A static program takes those of a batch of one.
    """
    wanted, found = ([(one.dtype, *one.shape) for one in side.manifest.spec.inputs] for side in (ours, other))
    rows = [[(one.dtype, *_of_one_row(one)) for one in side.manifest.spec.inputs] for side in (ours, other)]
    lows, highs = zip(_bounds(ours), _bounds(other), strict=True)
    if rows[0] != rows[1] or max(lows) > min(highs):
        raise UsageError(
            f"{ours.version} takes {wanted} and {other.version} takes {found}",
            expected="two versions that take the same inputs, in batches of one size",
            fix="compare versions of one contract, or bench each alone",
        )


def _of_one_row(tensor: TensorSpec) -> tuple[int | str, ...]:
    return (1, *tensor.shape[1:]) if tensor.shape[:1] == (BATCH,) else tensor.shape


def _bounds(side: _Side) -> tuple[int, int]:
    """The smallest and the largest batch that a version takes."""
    batch = side.manifest.spec.batch
    return (batch.minimum, batch.maximum) if batch else (1, 1)


def _check_sizes(sizes: Sequence[int], sides: Sequence[_Side]) -> None:
    for side in sides:
        low, high = _bounds(side)
        if wrong := [size for size in sizes if not low <= size <= high]:
            raise UsageError(
                f"{side.version} takes no batch of {wrong[0]}",
                expected=f"{low} to {high}",
                fix="choose another --batch",
            )


def _race(
    ours: _Side, other: _Side | None, checkpoint: Checkpoint | None, *, plan: LatencyPlan, limits: Limits
) -> Figures:
    entrants = _entrants(ours, other, checkpoint, plan.threads)
    if checkpoint or any(side and side.manifest.format == "aoti" for side in (ours, other)):
        prepare(__name__, "deploy.convert.preload")
    spec = ours.manifest.spec
    rows = list(load_baseline(ours.version.evidence, spec).question.pools[0].inputs)
    with scratch_folder("bench") as logs:
        surroundings = Surroundings(
            # Every contender's first call is one of batch 1.
            inputs=inputs_by_batch(rows, spec, sorted({1, *plan.batches})),
            threads=plan.threads,
            logs=logs,
            limits=limits,
            device=plan.device,
        )
        with open_entrants(entrants, surroundings) as contenders:
            return take_figures(contenders, plan)


def _entrants(ours: _Side, other: _Side | None, checkpoint: Checkpoint | None, threads: int) -> list[Entrant]:
    """Eager if it can run, what the version is compared with, the version; and a control of each of the first two.

    With neither, the version is the control of itself.
    """
    own = ours.entrant(threads)
    eager = [eager_entrant(checkpoint, threads=threads, device=ours.device)] if checkpoint else []
    bases = [*eager, *([other.entrant(threads)] if other else [])] or [own]
    pairs = [one for base in bases for one in (base, base.control())]
    return pairs if own in bases else [*pairs, own]


def _judge(figures: Figures, ours: _Side, other: _Side | None, *, limit: float | None) -> Judgement:
    """The verdict on the slowdown; without a limit, what the figures say."""
    lost = {one.contender for one in figures.lost}
    if other and limit is not None:
        return judge_slowdown(figures.ratios, ours.name, other.name, limit, lost=lost)
    bases = {one.contender for one in figures.cells} | lost
    known = [other.name if other else None, EAGER]
    return inform(figures.ratios, [base for base in known if base in bases] or [ours.name], lost=lost)
