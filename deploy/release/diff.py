"""Two published versions of one model held against each other: what would change if the newer took the traffic.

Owns the order of the steps; rows and answers are in `asked`, arithmetic in `difference`, facts in `facts`, limits in
`gates`. Called by the command `diff`. This process never imports torch: the versions run in children.

    1. Find both versions, and find every file as it was published: an artifact may be native code.
    2. Refuse what speaks against the run before any work.
    3. Compare what they say of themselves: contract, config, checkpoint, environment, size.
    4. Ask both for the same rows: the given samples, and those that each was proven with.
    5. Race them as `bench` does, a control beside them.
    6. Judge the limits that were asked for, and keep the result as an attestation of the newer version.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from deploy.bench import BenchRequest, bench, gpu_for
from deploy.convert.model import Device
from deploy.errors import DeployError, ExitCode, MissingError, UsageError
from deploy.latency_evidence import LatencyEvidence
from deploy.processes import Limits as ChildLimits
from deploy.processes import prepare
from deploy.progress import Progress, Silent
from deploy.release.asked import Asked, Run, Side, answers, gather_rows
from deploy.release.difference import Answered, compare_answers
from deploy.release.facts import changes, size_difference
from deploy.release.gates import Limits, judge_gates, overall
from deploy.repository.attest import attest_or_tell, require_attestable
from deploy.repository.find import find_model, find_version
from deploy.repository.integrity import require_artifact, require_intact
from deploy.repository.manifest import created_now, version_digest
from deploy.scratch import scratch_folder
from deploy.validate.difference_records import AnswerDifference, DiffEvidence
from deploy.validate.executables import Arrays
from deploy.validate.machine import default_threads

KIND = "diff"
PROMOTED = "promoted"


@dataclass(frozen=True, slots=True, kw_only=True)
class Race:
    """How latency is compared: the batch sizes (empty for 1 and the largest) and seconds per cell."""

    sizes: tuple[int, ...] = ()
    seconds_per_cell: float = 2.5


@dataclass(frozen=True, slots=True, kw_only=True)
class DiffRequest:
    """What the user asked for. `old` and `new` are a version's number, or `promoted`.

    `race` is None where latency is left out. `timeout` is in seconds for each thing a child is asked.
    """

    repository: Path
    name: str
    old: str
    new: str
    samples: Path | None = None
    limits: Limits = field(default_factory=Limits)
    race: Race | None = Race()
    threads: int = field(default_factory=default_threads)
    timeout: float | None = None
    attest: bool = True
    command: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        self.limits.check(latency=self.race is not None)


@dataclass(frozen=True, slots=True, kw_only=True)
class DiffResult:
    """What differs, and where that is kept: None where that was not asked for, or `not_kept` says why."""

    evidence: DiffEvidence
    attestation: Path | None
    not_kept: DeployError | None = None

    @property
    def exit_code(self) -> ExitCode:
        """That of the evidence; a result that could not be kept ends as that error does."""
        return self.evidence.exit_code if self.not_kept is None else self.not_kept.exit_code


def diff(request: DiffRequest, *, progress: Progress = Silent()) -> DiffResult:
    """What differs between two published versions, judged by the limits that were asked for.

    Raises UsageError if a version does not exist or has changed, MissingError if one of them can run on no device that
    is here, and UnfinishedError if one of them cannot be run.
    """
    before, after = (_find(request, asked) for asked in (request.old, request.new))  # 1
    _check(request, before, after)  # 2
    device, elsewhere = _device(before, after, request.limits)
    left_out: dict[str, str] = {}
    facts = changes(before, after)  # 3
    size = size_difference(before.manifest, after.manifest)
    found, latency = None, None
    if reason := _no_common_rows(before, after):
        left_out |= {"answers": reason, "latency": reason}
    else:
        with progress.stage(f"ask {before.version} and {after.version} the same"):
            found = _answers(request, (before, after), device)  # 4
        if found is None:
            left_out["answers"] = "neither version's evidence holds rows that both take: give some with --samples"
        if elsewhere:
            left_out |= {"answers on the GPU": elsewhere, "latency": elsewhere}
        else:
            latency = _race(request, before, after, progress)  # 5
    if latency is None:
        left_out.setdefault("latency", "not asked for")
    gates = judge_gates(  # 6
        request.limits,
        answers=found,
        size=size,
        slowdown=latency.judgement if latency else None,
    )
    evidence = DiffEvidence(
        version=str(after.version),
        digest=after.digest,
        compared=str(before.version),
        compared_digest=before.digest,
        created=created_now(),
        command=request.command,
        judgement=overall(gates),
        gates=gates,
        changes=facts,
        size=size,
        answers=found,
        latency=latency,
        left_out=left_out,
    )
    kept, lost = None, None
    if request.attest:
        kept, lost = attest_or_tell(after.version, KIND, evidence, digest=after.digest)
    return DiffResult(evidence=evidence, attestation=kept, not_kept=lost)


def _find(request: DiffRequest, asked: str) -> Side:
    if asked == PROMOTED:
        # With no number it is the promoted one.
        version = find_version(request.repository, request.name)
    elif asked.isascii() and asked.isdigit():
        version = find_version(request.repository, f"{request.name}:{asked}")
    else:
        numbers = ", ".join(map(str, find_model(request.repository, request.name).versions))
        raise UsageError(f"{asked!r} names no version of {request.name}", expected=f"one of {numbers}, or {PROMOTED}")
    manifest = require_artifact(version, require_intact(version), doing="compare its answers by tensors")
    return Side(version=version, manifest=manifest, digest=version_digest(version.folder))


def _check(request: DiffRequest, before: Side, after: Side) -> None:
    if before.version == after.version:
        raise UsageError(
            f"{after.version} was to be compared with itself",
            expected="two versions of one model",
            fix="name another version as OLD",
        )
    if request.attest:
        require_attestable(after.version)


def _device(before: Side, after: Side, limits: Limits) -> tuple[Device, str]:
    """Where both are run, and why that is not the GPU they are built for; empty where it is what they are built for.

    A graph for a GPU that is not here computes on the CPU, where it was proven too; machine code does not. Raises
    MissingError for that, and where a slowdown is limited that could not be shown.
    """
    try:
        return "cpu" if gpu_for([before.manifest, after.manifest]) is None else "cuda", ""
    except MissingError as error:
        if any(one.manifest.format == "aoti" and one.manifest.target.device == "cuda" for one in (before, after)):
            raise
        if limits.max_slowdown is not None:
            raise MissingError(
                f"{error.found}, so that no slowdown can be shown",
                expected=error.expected,
                fix="compare them where they will run, or leave out --max-slowdown",
            ) from error
        return "cpu", error.found


def _no_common_rows(before: Side, after: Side) -> str:
    """Why nothing can be asked of both; empty if something can."""
    wanted, found = ([(one.dtype, *one.shape) for one in side.manifest.spec.inputs] for side in (before, after))
    return "" if wanted == found else f"{before.version} takes {wanted}, {after.version} takes {found}"


def _answers(request: DiffRequest, sides: tuple[Side, Side], device: Device) -> AnswerDifference | None:
    if any(side.manifest.format == "aoti" for side in sides):
        prepare("deploy.convert.preload")
    asked = gather_rows(sides, request.samples)
    if not asked:
        return None
    limits = ChildLimits(seconds=request.timeout)
    with scratch_folder("diff") as logs:
        given = [
            answers(side, asked, run=Run(device=device, threads=request.threads, logs=logs, limits=limits))
            for side in sides
        ]
    return compare_answers(sides, _paired(asked, *given))


def _paired(asked: Sequence[Asked], old: Sequence[Arrays], new: Sequence[Arrays]) -> list[Answered]:
    return [
        Answered(asked=rows, before=before, after=after) for rows, before, after in zip(asked, old, new, strict=True)
    ]


def _race(request: DiffRequest, before: Side, after: Side, progress: Progress) -> LatencyEvidence | None:
    if request.race is None:
        return None
    asked = BenchRequest(
        repository=request.repository,
        reference=str(after.version),
        compare=before.version.number,
        max_slowdown=request.limits.max_slowdown,
        sizes=request.race.sizes,
        seconds_per_cell=request.race.seconds_per_cell,
        threads=request.threads,
        timeout=request.timeout,
        attest=False,
    )
    return bench(asked, progress=progress).evidence.latency
