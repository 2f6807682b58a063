"""The conversions of one checkpoint, each in a child of its own, side by side where the machine allows it.

Owns which child does what, and what becomes of a failure: the program's ends all, a format's ends that one. No torch
in this process. Called by package.

    1. Write a job per format, so that each can be run again alone.
    2. Export the program, in the child of the first format.
    3. Convert: the first format in that child, each other one in a child that reads the program from disk.
"""

import os
import shlex
import shutil
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import count
from pathlib import Path
from typing import TypeVar

import psutil

from deploy.cache import Store, cache_folder
from deploy.checkpoint.model import Checkpoint
from deploy.convert.export import export_program
from deploy.convert.job import ConversionJob, Converters, converters_for
from deploy.convert.model import FORMATS, Artifact, Device, Format, Program
from deploy.convert.precision import Lowering
from deploy.convert.room import minding_the_disk
from deploy.errors import DeployError
from deploy.processes import ChildFailed, Limits, Worker, called_after
from deploy.progress import Progress
from deploy.targets import Target

_TAIL_LINES = 25
# Most conversions take less; some never end, and nothing tells which. No limit of time is set unasked.
_LONG = 300.0
_COMPILERS = ("cc1plus", "clang", "ptxas", "cicc")
_MOST_AT_ONCE = 2
_CHILD_MEMORY = 1_200_000_000  # bytes of a child beside the weights: torch, the graph, the C++ compiler
_COPIES_OF_WEIGHTS = 2  # at the peak of a conversion: the checkpoint's mapped file, and what the compiler writes
_LARGE = 1_000_000_000  # bytes of weights; side by side, the second child's code and compiler would come on top of them
# bfloat16 weights are computed with in float32, and ONNX Runtime makes float32 of float16 ones.
_WIDENED = {"bfloat16": 2, "float16": 2}

T = TypeVar("T")
U = TypeVar("U")


@dataclass(frozen=True, slots=True, kw_only=True)
class ConversionPlan:
    """What to convert to, and how. `timeout` is seconds per child and step, `memory_limit` bytes per child (PSS).

    `jobs` is how many children may work at once; None means as many as cores and free memory allow, at most two, and
    one where the weights are large. `store`: where what was made before for the same graph is taken from, and kept for
    the next. `device`: where it is exported and compiled. `lowering` is the precision of the artifacts; `program`,
    always in fp32, the one that an earlier conversion of this run exported. `packed`: whether AOTInductor may pack
    weights.
    """

    formats: tuple[Format, ...] = FORMATS
    max_batch: int
    target: Target
    folder: Path
    jobs: int | None = None
    timeout: float | None = None
    memory_limit: int | None = None
    store: Store | None = None
    lowering: Lowering = field(default_factory=Lowering)
    program: Program | None = None
    device: Device = "cpu"
    packed: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class ConversionFailure:
    """Why a format has no artifact: the message, the child's last lines, its whole log, and a command to repeat it."""

    format: Format
    message: str
    tail: str
    log: Path
    reproduce: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Conversion:
    """The program, and for each format that was asked for either an artifact or a failure."""

    program: Program
    artifacts: dict[Format, Artifact]
    failures: dict[Format, ConversionFailure]


def convert(
    checkpoint: Checkpoint, plan: ConversionPlan, progress: Progress, *, converters: Converters | None = None
) -> Conversion:
    """The checkpoint's program and its artifacts, in folders below `plan.folder`.

    A format that fails is a value in `failures`, whatever its child died of. Raises UnfinishedError (UsageError where
    the model's inputs or outputs cannot be served) if there is no program: then every format is lost.
    """
    # AOTInductor first: an operator that cannot be saved (FlexAttention) lives only in the child that exported it.
    jobs = [_write_job(checkpoint, plan, format_) for format_ in sorted(plan.formats, key=FORMATS.index)]
    at_once = jobs_at_once(plan, checkpoint)
    with ExitStack() as workers:
        first = workers.enter_context(_worker(jobs[0], plan))
        program = plan.program or _export(first, jobs[0], plan.store, progress)
        by_format = converters or converters_for(checkpoint, plan.max_batch, plan.lowering, packed=plan.packed)

        def one(job: ConversionJob) -> Artifact | ConversionFailure:
            # Known to the outer block too, which is left first when the user interrupts.
            with first if job is jobs[0] else workers.enter_context(_worker(job, plan)) as worker:
                convert_program = minding_the_disk(by_format[job.format], weights=_size(checkpoint))
                return _convert(worker, job, partial(convert_program, program, store=plan.store), progress)

        outcomes = _side_by_side(one, jobs, at_once=at_once)
    return Conversion(
        program=program,
        artifacts={made.format: made for made in outcomes if isinstance(made, Artifact)},
        failures={failed.format: failed for failed in outcomes if isinstance(failed, ConversionFailure)},
    )


def _write_job(checkpoint: Checkpoint, plan: ConversionPlan, format_: Format) -> ConversionJob:
    job = ConversionJob(
        checkpoint=checkpoint, format=format_, target=plan.target, max_batch=plan.max_batch, folder=plan.folder,
        device=plan.device, lowering=plan.lowering,
    )  # fmt: skip
    job.artifact_folder.mkdir(parents=True)
    job.write(_job_file(job))
    return job


def _job_file(job: ConversionJob) -> Path:
    return job.folder / f"{job.format}.json"


def _log(job: ConversionJob) -> Path:
    return job.folder / f"{job.format}.log"


def _keep(job: ConversionJob) -> ConversionJob:
    """The failed job and its log in the user's cache, where they outlive the stage; one per model and format.

    The job as it is where the cache has no room or may not be written: one format's failure ends no other one.
    """
    path = job.checkpoint.path.resolve()
    folder = cache_folder("failed", f"{job.checkpoint.name}-{job.format}")
    kept = job.model_copy(update={"folder": folder, "checkpoint": job.checkpoint.model_copy(update={"path": path})})
    try:
        kept = kept.model_copy(update={"lowering": kept.lowering.kept_in(folder)})
        kept.write(_job_file(kept))
        if _log(job).exists():
            shutil.copyfile(_log(job), _log(kept))
    except OSError as error:
        print(f"the failed conversion to {job.format} is not kept in {folder}: {error.strerror}", file=sys.stderr)
        return job
    return kept


def _command(job: ConversionJob) -> str:
    return shlex.join([sys.executable, "-m", "deploy.convert", str(_job_file(job))])


def _worker(job: ConversionJob, plan: ConversionPlan) -> Worker:
    limits = Limits(seconds=plan.timeout, memory=plan.memory_limit)
    return Worker(f"conversion to {job.format}", log=_log(job), limits=limits, watch_memory=True)


def _export(worker: Worker, job: ConversionJob, store: Store | None, progress: Progress) -> Program:
    with progress.stage("export"):
        try:
            done = worker.run(
                minding_the_disk(export_program, weights=0), job.checkpoint, max_batch=job.max_batch,
                folder=job.folder, device=job.device, store=store,
            )  # fmt: skip
        except ChildFailed as error:
            fix = error.fix or f"see it happen alone: {_command(_keep(job))}"
            raise ChildFailed(error.found, expected=error.expected, fix=fix, tail=error.tail) from error
    return replace(done.value, seconds=done.seconds, peak_memory=done.peak_memory)


def _convert(
    worker: Worker, job: ConversionJob, convert_program: Callable[..., Artifact], progress: Progress
) -> Artifact | ConversionFailure:
    try:
        told = _telling_that_it_is_long(worker, job, progress)
        with (
            progress.stage(f"convert to {job.format}{job.in_words}"),
            called_after(_LONG, partial(next, told), every=_LONG),
        ):
            done = worker.run(convert_program, target=job.target, folder=job.artifact_folder)
    except DeployError as error:
        kept = _keep(job)
        return ConversionFailure(
            format=job.format,
            message=str(error),
            tail=_last_lines(_log(kept)),
            log=_log(kept),
            reproduce=_command(kept),
        )
    details = done.value.details | {"precision": job.lowering.precision}
    return replace(done.value, seconds=done.seconds, peak_memory=done.peak_memory, details=details)


def _telling_that_it_is_long(worker: Worker, job: ConversionJob, progress: Progress) -> Iterator[None]:
    """Each step says what is at work; the first one how to do without that format, too."""
    others = ",".join(other for other in FORMATS if other != job.format)
    progress.note(
        f"{job.format} takes its time: {_LONG / 60:.0f} min so far, {_at_work(worker)}. It goes on; "
        f"--formats {others} does without it, --timeout S bounds each step"
    )
    for times in count(2):
        yield
        progress.note(f"{job.format} goes on: {times * _LONG / 60:.0f} min so far, {_at_work(worker)}")


def _at_work(worker: Worker) -> str:
    """Whether it is the compiler, which ends in time, or torch, whose thoughts about a graph may not."""
    with suppress(psutil.Error):
        if any(one.name().startswith(_COMPILERS) for one in psutil.Process(worker.pid).children(recursive=True)):
            return "its compiler at work"
    return "torch at work on the graph"


def _last_lines(log: Path) -> str:
    return "\n".join(log.read_text(errors="replace").splitlines()[-_TAIL_LINES:]) if log.exists() else ""


def jobs_at_once(plan: ConversionPlan, checkpoint: Checkpoint) -> int:
    """How many formats are converted to side by side, by the plan or by what their weights take in memory."""
    if plan.jobs is not None:
        return plan.jobs
    size = _size(checkpoint)
    if size >= _LARGE:
        return 1
    cores = len(os.sched_getaffinity(0))
    fit = psutil.virtual_memory().available // (_CHILD_MEMORY + _COPIES_OF_WEIGHTS * size)
    return max(1, min(_MOST_AT_ONCE, cores, fit))


def _size(checkpoint: Checkpoint) -> int:
    """Bytes of the weights where they are widened."""
    return checkpoint.size * _WIDENED.get(checkpoint.dtype, 1)


def _side_by_side(function: Callable[[T], U], items: Sequence[T], *, at_once: int) -> list[U]:
    """What the function gives for each item, in order. An interrupt is passed on without waiting for those running."""
    pool = ThreadPoolExecutor(max_workers=at_once)
    try:
        return list(pool.map(function, items))
    finally:
        pool.shutdown(wait=False, cancel_futures=True)
