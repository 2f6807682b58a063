"""Which precisions are built for a request, from which rows int8 takes its scales, and which precision is taken.

Owns the choice among precisions; converting is `convert`'s, judging `validate.precision`'s. Called by package.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from deploy.checkpoint.model import Checkpoint
from deploy.convert.model import PRECISIONS, Format, Precision
from deploy.convert.precision import Lowering
from deploy.convert.run import Conversion
from deploy.convert.torchao_int8 import require_torchao
from deploy.errors import UsageError
from deploy.evidence import Judgement, Verdict
from deploy.latency_evidence import LatencyRatio, PrecisionEvidence, PrecisionTrial
from deploy.processes import Limits
from deploy.progress import Progress
from deploy.request import Inputs, PackageRequest
from deploy.spec import wire_input
from deploy.targets import Target
from deploy.validate.contenders import Entrant, Surroundings, artifact_entrant, inputs_by_batch, open_entrants
from deploy.validate.families import REAL_ROWS
from deploy.validate.latency import LatencyPlan, take_figures
from deploy.validate.precision import Demand
from deploy.validate.run import Proof
from deploy.validate.samples import Samples, load_samples
from deploy.validate.winner import noise_factor

CALIBRATION_ROWS = 128
CALIBRATION_FILE = "calibration.npz"
DEFAULT_DROP = 0.5
# Any of which computes in that precision itself; without one, values are widened first and nothing is won.
_INSTRUCTIONS: dict[Precision, tuple[str, ...]] = {
    "bf16": ("avx512_bf16", "amx_bf16"),
    "fp16": ("avx512_fp16", "amx_fp16"),
    "int8": ("avx2", "avx512_vnni", "avx_vnni", "amx_int8"),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Rows:
    """Rows of the samples by number: those that scales are taken from, and those that the result is judged by."""

    calibration: tuple[int, ...]
    held_out: tuple[int, ...]


def check_precision(request: PackageRequest) -> None:
    """Raises UsageError for an option that does not go with the precision that was asked for.

    Raises MissingError without torchao where int8 was asked for in AOTInductor by name.
    """
    if request.precision != "fp32" and request.ensemble is not None:
        raise UsageError(
            f"--ensemble was given with --precision {request.precision}",
            expected="--precision fp32, the only one that ensembles are proven in",
            fix="leave one of them out",
        )
    if request.precision in ("int8", "auto"):
        if request.precision == "int8" and request.by_name and "aoti" in request.formats:
            require_torchao()
        return
    given = {"--calibration": request.calibration, "--metric": request.metric, "--max-drop": request.max_drop}
    said = next((option for option, value in given.items() if value is not None), None)
    if said:
        raise UsageError(
            f"{said} was given with --precision {request.precision}",
            expected="--precision int8 or auto, which alone are calibrated and judged by a metric",
            fix=f"leave out {said}, or ask for int8",
        )


def check_rows(request: PackageRequest, checkpoint: Checkpoint, samples: Samples | None) -> None:
    """Raises UsageError where a metric was asked for that cannot be counted, or calibration rows are no such."""
    if request.calibration is not None:
        load_samples(request.calibration, checkpoint.inputs, checkpoint.dims)
    if (request.metric or request.max_drop is not None) and (samples is None or samples.labels is None):
        raise UsageError(
            f"{'--metric' if request.metric else '--max-drop'} was given without labelled samples",
            expected="--samples FILE.npz with an array 'labels', the true class of each row",
            fix="add the labels to the samples, or leave the option out: signal to noise then decides",
        )


def split(samples: Samples | None, *, calibrated_elsewhere: bool) -> Rows:
    """Which rows are for calibration: at most 128 and half of all, spread evenly, none that parity is shown on."""
    if samples is None:
        return Rows(calibration=(), held_out=())
    everything = range(samples.rows)
    if calibrated_elsewhere:
        return Rows(calibration=(), held_out=tuple(everything))
    shown = {int(row) for row in np.linspace(0, samples.rows - 1, min(REAL_ROWS, samples.rows)).round()}
    free = [row for row in everything if row not in shown]
    count = min(CALIBRATION_ROWS, samples.rows // 2, len(free))
    chosen = {free[int(at)] for at in np.linspace(0, len(free) - 1, count).round()} if count else set()
    return Rows(calibration=tuple(sorted(chosen)), held_out=tuple(row for row in everything if row not in chosen))


def lowering(request: PackageRequest, precision: Precision | None, inputs: Inputs, *, folder: Path) -> Lowering:
    """How the program is lowered: to what was asked for, or to one more `precision` of `auto`.

    The calibration rows are written to `folder`. Raises UsageError for a bad file of them.
    """
    wanted = precision or _asked(request)
    if wanted != "int8":
        return Lowering(precision=wanted)
    rows = _calibration_rows(request, inputs)
    if rows is None:
        return Lowering(precision=wanted)
    path = folder / CALIBRATION_FILE
    np.savez(path, allow_pickle=False, **{wire_input(index): array for index, array in enumerate(rows)})
    return Lowering(precision=wanted, calibration=path, static=request.calibration is not None)


def _calibration_rows(request: PackageRequest, inputs: Inputs) -> list[np.ndarray] | None:
    """One array per input; None where there is nothing to calibrate by."""
    if request.calibration is not None:
        given = load_samples(request.calibration, inputs.checkpoint.inputs, inputs.checkpoint.dims)
        rows = np.unique(np.linspace(0, given.rows - 1, min(CALIBRATION_ROWS, given.rows)).round().astype(int))
        return [array[rows] for array in given.inputs]
    chosen = list(split(inputs.samples, calibrated_elsewhere=False).calibration)
    return [array[chosen] for array in inputs.samples.inputs] if inputs.samples and chosen else None


def _asked(request: PackageRequest) -> Precision:
    """The precision that the first conversion is in."""
    return "fp32" if request.precision == "auto" else request.precision


def demand(request: PackageRequest, precision: Precision | None, samples: Samples | None) -> Demand:
    """What artifacts must show in the precision asked for, or in one more `precision` of `auto`."""
    held_out = split(samples, calibrated_elsewhere=request.calibration is not None).held_out
    drop = DEFAULT_DROP if request.max_drop is None else request.max_drop
    return Demand(precision=precision or _asked(request), held_out=held_out, max_drop=drop, metric=request.metric)


def worth_trying(target: Target) -> tuple[Precision, ...]:
    """The precisions beside fp32 that may gain something on the target."""
    left_out = _left_out(target)
    return tuple(name for name in PRECISIONS if name != "fp32" and name not in left_out)


def _left_out(target: Target) -> dict[Precision, str]:
    """Why precisions gain nothing on a CPU, by this machine's own instructions, which stand for the target's."""
    if target.device != "cpu":
        return {}
    flags = _cpu_flags()
    return {
        name: f"this processor has none of {', '.join(any_of)}"
        for name, any_of in _INSTRUCTIONS.items()
        if not any(flag in flags for flag in any_of)
    }


def _cpu_flags() -> frozenset[str]:
    path = Path("/proc/cpuinfo")
    lines = path.read_text().splitlines() if path.exists() else []
    return frozenset(next((line for line in lines if line.startswith("flags")), "").split())


@dataclass(frozen=True, slots=True, kw_only=True)
class Attempt:
    """One precision that was tried: what was converted, and its proof."""

    precision: Precision
    conversion: Conversion
    proof: Proof


@dataclass(frozen=True, slots=True, kw_only=True)
class Taken:
    """The conversion and proof that go on. `evidence` is what all precisions came to, None where one was asked for."""

    conversion: Conversion
    proof: Proof
    evidence: PrecisionEvidence | None = None


def take_fastest(request: PackageRequest, attempts: Sequence[Attempt], *, logs: Path, progress: Progress) -> Taken:
    """For each format the fastest precision that passed. The first attempt gives way only to the shown faster."""
    first = attempts[0]
    artifacts, evidence, own = dict(first.conversion.artifacts), dict(first.proof.evidence), dict(first.proof.own)
    trials: list[PrecisionTrial] = []
    chosen: dict[str, str] = {}
    for format_ in (*first.conversion.artifacts, *first.conversion.failures):
        passed = [one for one in attempts if _passed(one, format_)]
        ratios = _race(passed, format_, request, logs=logs, progress=progress)
        best = best_of(passed, ratios)
        if best is not None:
            artifacts[format_] = best.conversion.artifacts[format_]
            evidence[format_] = best.proof.evidence[format_]
            own |= {name: baseline for name, baseline in best.proof.own.items() if name == format_}
            chosen[format_] = best.precision
        trials += [_trial(one, format_, ratios) for one in attempts]
    for trial in trials:
        if trial.ratio is not None and trial.ratio.low > 1.0:
            progress.note(f"{trial.format} in {trial.precision} is slower than in fp32: {trial.ratio}")
    failures = {name: failed for name, failed in first.conversion.failures.items() if name not in artifacts}
    left_out = {str(name): why for name, why in _left_out(request.target).items()}
    return Taken(
        conversion=replace(first.conversion, artifacts=artifacts, failures=failures),
        proof=replace(first.proof, evidence=evidence, own=own),
        evidence=PrecisionEvidence(chosen=chosen, trials=tuple(trials), left_out=left_out),
    )


def _passed(attempt: Attempt, format_: Format) -> bool:
    evidence = attempt.proof.evidence.get(format_)
    return evidence is not None and evidence.judgement.passed


def _race(
    field: Sequence[Attempt], format_: Format, request: PackageRequest, *, logs: Path, progress: Progress
) -> tuple[LatencyRatio, ...]:
    """The time of each at batch 1 in multiples of the first one's, with a control; nothing where there is no rival."""
    plan = LatencyPlan(
        max_batch=request.max_batch,
        sizes=(1,),
        threads=request.resources.threads,
        device=request.device,
        target_device=request.target.device,
        incumbent=field[0].precision if field else None,
        seconds_per_cell=request.resources.seconds_per_cell,
    )
    if len(field) < 2 or plan.device != plan.target_device:
        return ()
    first = field[0]
    rows = list(first.proof.baseline.question.pools[0].inputs)
    surroundings = Surroundings(
        inputs=inputs_by_batch(rows, first.conversion.program.spec, plan.batches),
        threads=plan.threads,
        logs=logs,
        limits=Limits(seconds=request.resources.seconds, memory=request.resources.memory),
        device=request.device,
    )
    entrants = [
        artifact_entrant(
            one.precision,
            one.conversion.artifacts[format_].path,
            format=format_,
            threads=plan.threads,
            device=request.device,
        )
        for one in field
    ]
    everyone: list[Entrant] = [entrants[0], entrants[0].control(), *entrants[1:]]
    names = ", ".join(one.precision for one in field)
    with (
        progress.stage(f"race {format_} in {names}"),
        open_entrants(everyone, surroundings) as contenders,
    ):
        figures = take_figures(contenders, plan)
    for gone in figures.lost:
        progress.note(str(gone))
    lost = {gone.contender for gone in figures.lost}
    return tuple(ratio for ratio in figures.ratios if ratio.contender not in lost)


def best_of(field: Sequence[Attempt], ratios: Sequence[LatencyRatio]) -> Attempt | None:
    """The first, unless others are faster than it beyond chance and noise: then the fastest of them."""
    if not field:
        return None
    first = field[0]
    found = {ratio.contender: ratio for ratio in ratios if ratio.base == first.precision}
    faster = [
        (found[one.precision].ratio, one)
        for one in field[1:]
        if one.precision in found and found[one.precision].high < 1.0 / noise_factor(ratios, 1, first.precision)
    ]
    return min(faster, key=lambda pair: pair[0])[1] if faster else first


def _trial(attempt: Attempt, format_: Format, ratios: Sequence[LatencyRatio]) -> PrecisionTrial:
    artifact = attempt.conversion.artifacts.get(format_)
    if artifact is None:
        reason = " ".join(attempt.conversion.failures[format_].message.split())
        lost = Judgement(verdict=Verdict.FAIL, reason=reason)
        return PrecisionTrial(format=format_, precision=attempt.precision, judgement=lost)
    return PrecisionTrial(
        format=format_,
        precision=attempt.precision,
        judgement=attempt.proof.evidence[format_].judgement,
        scheme=artifact.details.get("int8", ""),
        ratio=next((one for one in ratios if one.contender == attempt.precision), None),
        size=sum((artifact.folder / name).stat().st_size for name in artifact.files),
    )
