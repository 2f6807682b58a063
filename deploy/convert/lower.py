"""A checkpoint's artifacts in a lower precision: bf16, fp16 or int8.

Owns which way each format takes to each precision, and what no runtime of the target has. Called through job, in a
child process; the fp32 program comes from export as always.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from deploy.cache import Store
from deploy.checkpoint.model import Checkpoint
from deploy.convert.aoti import compile_aoti
from deploy.convert.export import export_program
from deploy.convert.model import Artifact, Format, Program
from deploy.convert.onnx import export_onnx
from deploy.convert.onnx_limits import require_kernels
from deploy.convert.precision import HALVES, Lowering
from deploy.convert.quantize import quantize_onnx
from deploy.convert.tactics import Tactic
from deploy.errors import UnfinishedError
from deploy.targets import Target


@dataclass(frozen=True, slots=True, kw_only=True)
class Subject:
    """What is lowered and how: a program of another precision is exported from the checkpoint itself."""

    checkpoint: Checkpoint
    max_batch: int
    lowering: Lowering


def lowered_converters(subject: Subject) -> dict[Format, Callable[..., Artifact]]:
    """The converters that give artifacts in the precision asked for; like the others they take the fp32 program."""
    return {"aoti": partial(_to_aoti, subject), "onnx": partial(_to_onnx, subject)}


def _to_aoti(
    subject: Subject, program: Program, *, target: Target, folder: Path, store: Store | None = None,
    tactic: Tactic | None = None,
) -> Artifact:  # fmt: skip
    """The archive. Raises UnfinishedError if the precision cannot be had for this network."""
    kept = store if subject.lowering.precision in HALVES else None  # int8 weights depend on more than their shapes
    with tempfile.TemporaryDirectory(prefix="program-", dir=folder) as work:
        lowered, scheme = _program(subject, program, Path(work))
        made = compile_aoti(lowered, target=target, folder=folder, store=kept, tactic=tactic)
    return replace(made, details=made.details | scheme)


def _to_onnx(
    subject: Subject, program: Program, *, target: Target, folder: Path, store: Store | None = None,
    tactic: Tactic | None = None,
) -> Artifact:  # fmt: skip
    """The graph. Raises UnfinishedError if the precision cannot be had for this network, or not on this target."""
    if subject.lowering.precision == "int8":
        return quantize_onnx(program, subject.lowering, target=target, folder=folder, store=store)
    with tempfile.TemporaryDirectory(prefix="program-", dir=folder) as work:
        lowered, _ = _program(subject, program, Path(work))
        made = export_onnx(lowered, target=target, folder=folder, store=store, tactic=tactic)
    if program.device == "cpu":  # where it is proven, wherever it will run
        fix = "use --formats aoti, or another --precision"
        needed = require_kernels(made.path, subject.lowering.precision, fix=fix)
        made = replace(made, details=made.details | needed)
    return made


def _program(subject: Subject, program: Program, folder: Path) -> tuple[Program, dict[str, str]]:
    """The program in the precision asked for, with the same contract, and what there is to say of it."""
    precision = subject.lowering.precision
    lowered = export_program(
        subject.checkpoint, max_batch=subject.max_batch, folder=folder, device=program.device, precision=precision
    )
    if lowered.spec != program.spec:
        raise UnfinishedError(
            f"in {precision} the program has the outputs {lowered.spec.outputs} instead of {program.spec.outputs}",
            expected="the same outputs in every precision",
            fix="use --precision fp32",
        )
    return lowered, {"int8": lowered.scheme} if lowered.scheme else {}
