"""A checkpoint becomes one `torch.export` program, with the complete spec read from it.

Owns the dynamic dims and the program's file; the graph is traced in `traced`. Compiles nothing.
Called by run and `__main__`, always in a child process.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from deploy.cache import Store
from deploy.checkpoint.model import Checkpoint
from deploy.checkpoint.program import check_batch
from deploy.convert.cuda import exact_float32
from deploy.convert.fingerprint import program_key
from deploy.convert.flex import count_flex_attention, plain_attention
from deploy.convert.hollow import fill, holds_only, save_hollow
from deploy.convert.kept_program import PROGRAM_FILE, keep_program, module_of, take_program
from deploy.convert.model import Device, Precision, Program
from deploy.convert.precision import HALVES
from deploy.convert.torchao_int8 import quantize_linear
from deploy.convert.traced import Traceable
from deploy.errors import UsageError
from deploy.files import sha256_bytes
from deploy.spec import BATCH, Dim, TensorSpec

if TYPE_CHECKING:
    from torch.export import ExportedProgram


_made_here: dict[Path, ExportedProgram] = {}


def export_program(
    checkpoint: Checkpoint, *, max_batch: int, folder: Path, device: Device = "cpu", precision: Precision = "fp32",
    store: Store | None = None,
) -> Program:  # fmt: skip
    """The checkpoint's program, written below `folder`; its cost is left for the caller to fill in.

    It is traced on `device`, where its weights then are. The batch is dynamic in 1..max_batch; with `max_batch=1` it is
    static and every shape begins with 1. The other dynamic dims are those of the checkpoint. In another precision than
    fp32 the weights are converted first. From `store` an fp32 export of before is taken, and kept there for the next.
    Raises UsageError if the model's inputs or outputs cannot be served, UnfinishedError if it cannot be exported.
    """
    from deploy.checkpoint.load import build_module

    if max_batch < 1:
        raise UsageError(f"the largest batch is {max_batch}", expected="1 or more", fix="set --max-batch to 1 or more")
    if checkpoint.how == "program":
        check_batch(checkpoint.options, max_batch)
    inputs, dims = program_inputs(checkpoint.inputs, max_batch=max_batch), program_dims(checkpoint, max_batch=max_batch)
    exact_float32(device)
    module = build_module(checkpoint, HALVES.get(precision)).to(device)
    # Whatever is done to the module from here on has to be in the key too, or leave it None and the program whole.
    key = program_key(checkpoint, module, max_batch=max_batch) if store and precision == "fp32" else None
    if store and key and (kept := take_program(store, key, folder, module)):
        return replace(kept, checkpoint=checkpoint, device=device)
    scheme = quantize_linear(module) if precision == "int8" else ""
    traced = Traceable(
        checkpoint=checkpoint, module=module, inputs=inputs, dims=dims, device=device, precision=precision
    ).trace()  # fmt: skip
    exported, spec, notes = traced.exported, traced.spec, traced.notes
    path = folder / PROGRAM_FILE
    saved = plain_attention(exported)
    hollow = precision == "fp32" and holds_only(saved, module, checkpoint)
    _save(saved, path, hollow=hollow)
    _made_here.clear()
    _made_here[path] = exported
    uses = count_flex_attention(exported)
    program = Program(
        path=path, spec=spec, digest=_digest(exported, saved), seconds=0.0, peak_memory=0, notes=notes,
        flex_attention=uses, device=device, precision=precision, scheme=scheme,
        checkpoint=checkpoint if hollow else None,
    )  # fmt: skip
    # A number's note follows from values, and FlexAttention's operator from more than can be saved.
    if store and key and hollow and not notes and not uses:
        keep_program(store, key, program, exported)
    return program


def load_program(program: Program) -> ExportedProgram:
    """The exported program itself: the very object in the process that made it, else read from disk.

    Weights that are not in the file are those of the checkpoint, memory-mapped.
    """
    import torch

    if program.path in _made_here:
        return _made_here[program.path]
    exported = torch.export.load(program.path)
    return fill(exported, module_of(program)) if program.checkpoint else exported


def _save(exported: ExportedProgram, path: Path, *, hollow: bool) -> None:
    import torch

    if hollow:
        save_hollow(exported, path)
    else:
        torch.export.save(exported, path)


def program_inputs(inputs: tuple[TensorSpec, ...], *, max_batch: int) -> tuple[TensorSpec, ...]:
    """The program's inputs: the checkpoint's, with a batch of 1 in the shape for a static program.

    Raises UsageError if a shape does not begin with the batch.
    """
    for tensor in inputs:
        if tensor.shape[:1] != (BATCH,) or BATCH in tensor.shape[1:]:
            raise UsageError(
                f"input {tensor.name!r} has the shape {list(tensor.shape)}", expected=f"[{BATCH!r}, sizes ...]"
            )
    if max_batch > 1:
        return inputs
    return tuple(tensor.model_copy(update={"shape": (1, *tensor.shape[1:])}) for tensor in inputs)


def program_dims(checkpoint: Checkpoint, *, max_batch: int) -> tuple[Dim, ...]:
    """The dynamic dims of the program's inputs: the batch, unless it is static, and the checkpoint's own."""
    batch = (Dim(name=BATCH, minimum=1, maximum=max_batch),) if max_batch > 1 else ()
    return (*batch, *checkpoint.dims)


def _digest(exported: ExportedProgram, saved: ExportedProgram) -> str:
    """Of both programs' text: graphs within the graph, such as a score_mod, show in the saved one alone."""
    codes = dict.fromkeys(program.graph_module.code for program in (exported, saved))
    text = (*codes, str(exported.graph_signature), str(exported.range_constraints))
    return sha256_bytes("\n".join(text).encode())
