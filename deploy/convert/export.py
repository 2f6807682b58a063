"""A checkpoint becomes one `torch.export` program, with the complete spec read from it.

Owns the dynamic dims and the calls that come before an export; the spec is read in `contract`. Compiles nothing.
Called by run and `__main__`, always in a child process.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from deploy.cache import Store
from deploy.checkpoint.model import Checkpoint
from deploy.checkpoint.program import check_batch
from deploy.convert.advice import advise_call
from deploy.convert.contract import read_spec, require_poolable, require_rows
from deploy.convert.cuda import exact_float32, moved
from deploy.convert.explain import explain_export_error, user_line
from deploy.convert.fingerprint import program_key
from deploy.convert.flatten import arguments_of, leaves, output_names, positional
from deploy.convert.flex import count_flex_attention, plain_attention
from deploy.convert.hollow import fill, holds_only, save_hollow
from deploy.convert.kept_program import PROGRAM_FILE, keep_program, module_of, take_program
from deploy.convert.model import Device, Precision, Program
from deploy.convert.precision import HALVES, with_edges
from deploy.convert.rebuilt import require_rebuilt
from deploy.convert.repeats import buffer_versions, changed_buffers, require_inputs_kept, require_repeatable
from deploy.convert.torchao_int8 import quantize_linear
from deploy.errors import DeployError, UnfinishedError, UsageError
from deploy.files import sha256_bytes
from deploy.spec import BATCH, Dim, TensorSpec

if TYPE_CHECKING:
    from torch import Tensor, nn
    from torch.export import ExportedProgram

    from deploy.convert.flatten import Arrange

_SAMPLE_BATCH = 2  # a sample of one row makes the exporter take the batch for the constant 1
# GPU kernels are tuned for the sizes of the sample. With 32 rows in place of 2, ViT-B/16 and BERT-base in float16 took
# 3 to 7 % less at batch 32 and 128, and the same at 1 and 8 (H200, torch 2.11, one run of four rounds).
_GPU_SAMPLE_BATCH = 32
_SEED = 0

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
    parameters = [tensor.name for tensor in inputs]
    arrange = arguments_of(module, parameters, checkpoint.absent)
    versions = buffer_versions(module)
    example, outputs = _first_call(module, arrange, inputs, dims, device=device)
    names = output_names(outputs)
    if max_batch > 1:  # statistics of a batch, say, have none of one row
        require_rows(names, outputs, _call(module, arrange, [tensor[:1] for tensor in example]))
    notes = _numbers(module, arrange, example, outputs=outputs, max_batch=max_batch)
    flat = with_edges(positional(module, parameters, checkpoint.absent), checkpoint, precision)
    exported = _export(flat, example, inputs=inputs, dims=dims)
    require_poolable(exported)
    given = [tensor._version for tensor in example]
    again = _call(module, arrange, example)
    require_inputs_kept(dict(zip(parameters, example, strict=True)), given)
    require_repeatable(outputs, again, exported, changed=changed_buffers(versions, module))
    if checkpoint.how == "factory" and precision == "fp32":
        require_rebuilt(
            module,
            outputs,
            build=lambda: build_module(checkpoint).to(device),
            call=lambda one: _call(one, arrange, example),
        )
    spec = read_spec(exported, inputs, names, dims=dims, checkpoint=checkpoint)
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


def seeded_inputs(inputs: Sequence[TensorSpec], *, batch: int, dims: Sequence[Dim] = ()) -> tuple[Tensor, ...]:
    """One tensor per input, the same in every run: normal where floating, else in the input's own range."""
    import torch

    generator = torch.Generator().manual_seed(_SEED)
    sizes = _example_sizes(inputs, batch=batch, dims=dims)
    tensors = []
    for tensor in inputs:
        shape, dtype = tensor.concrete(**sizes), getattr(torch, tensor.dtype)
        if tensor.mask:
            tensors.append(torch.ones(shape, dtype=dtype))
        elif dtype.is_floating_point:
            tensors.append(torch.randn(shape, generator=generator).to(dtype))
        else:
            low, high = tensor.values or (0, 1)
            tensors.append(torch.randint(low, high + 1, shape, generator=generator).to(dtype))
    return tuple(tensors)


def _example_sizes(inputs: Sequence[TensorSpec], *, batch: int, dims: Sequence[Dim]) -> dict[str, int]:
    """A size for each dim within its bounds, if possible unlike every other size: equal ones look tied to a tracer."""
    sizes = {BATCH: batch}
    taken = {0, 1, batch, *(size for tensor in inputs for size in tensor.shape if isinstance(size, int))}
    for dim in dims:
        if dim.name == BATCH:
            continue
        free = (size for size in (*range(dim.middle, dim.maximum + 1), *range(dim.minimum, dim.middle)))
        sizes[dim.name] = next((size for size in free if size not in taken), dim.middle)
        taken.add(sizes[dim.name])
    return sizes


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


def _first_call(
    module: nn.Module, arrange: Arrange, inputs: Sequence[TensorSpec], dims: Sequence[Dim], *, device: Device
) -> tuple[tuple[Tensor, ...], Any]:
    """Inputs that the module takes, and what it returns for them.

    Where it fails at sizes between the bounds of the dynamic dims, the greatest are tried: then the export can say
    which sizes it takes.
    """
    rows = sample_rows(dims, device)
    example = moved(seeded_inputs(inputs, batch=rows, dims=dims), device)
    try:
        return example, _call(module, arrange, example)
    except UnfinishedError:
        greatest = tuple(dim.model_copy(update={"minimum": dim.maximum}) for dim in dims)
        largest = moved(seeded_inputs(inputs, batch=rows, dims=greatest), device)
        if [one.shape for one in largest] == [one.shape for one in example]:
            raise
        # Where the largest sizes fail too, the first error is the one to tell.
        with suppress(UnfinishedError):
            return largest, _call(module, arrange, largest)
        raise


def sample_rows(dims: Sequence[Dim], device: Device) -> int:
    """How many rows the sample has that is traced: on a GPU as many as are served at once, up to 32."""
    if device == "cpu":
        return _SAMPLE_BATCH
    largest = max((dim.maximum for dim in dims if dim.name == BATCH), default=_SAMPLE_BATCH)
    return max(_SAMPLE_BATCH, min(largest, _GPU_SAMPLE_BATCH))


def _call(module: nn.Module, arrange: Arrange, example: Sequence[Tensor]) -> Any:
    """What the module itself returns. This call comes before the export, since it explains a model's own errors."""
    import torch

    arguments, keywords = arrange(example)
    try:
        with torch.no_grad():
            return module(*arguments, **keywords)
    except DeployError:
        raise
    except Exception as error:
        shapes, place = ", ".join(str(list(tensor.shape)) for tensor in example), user_line(error)
        expected, fix = advise_call(error, place)
        raise UnfinishedError(
            f"the model fails on a batch of inputs of shape {shapes}: {error}{place}", expected=expected, fix=fix
        ) from error


def _numbers(
    module: nn.Module, arrange: Arrange, example: Sequence[Tensor], *, outputs: Any, max_batch: int
) -> tuple[str, ...]:
    """A note for each output that is a single number. Raises UsageError if it sums up the rows of a batch."""
    import torch

    named = dict(zip(output_names(outputs), (tensor for _, tensor in leaves(outputs)), strict=True))
    numbers = {name: tensor for name, tensor in named.items() if tensor.dim() == 0}
    if not numbers:
        return ()
    if max_batch > 1:
        first = [tensor for _, tensor in leaves(_call(module, arrange, [tensor[:1] for tensor in example]))]
        alone = dict(zip(named, first, strict=True))
        for name, tensor in numbers.items():
            if not torch.equal(tensor, alone[name]):
                raise UsageError(
                    f"the model's {name} is a single number for all rows of a batch",
                    expected="one row per sample: a server merges requests, whose answers must be told apart",
                    fix="leave it out of what the model's forward returns, keep the rows apart in it "
                    "(reduction='none'), or use --max-batch 1",
                )
    return tuple(f"output {name!r} is a single number: it is served as [{BATCH}, 1]" for name in numbers)


def _export(
    module: nn.Module, example: tuple[Tensor, ...], *, inputs: Sequence[TensorSpec], dims: Sequence[Dim]
) -> ExportedProgram:
    import torch

    symbols = {dim.name: torch.export.Dim(dim.name, min=dim.minimum, max=dim.maximum) for dim in dims}
    shapes = tuple(
        {axis: symbols[size] for axis, size in enumerate(tensor.shape) if isinstance(size, str)} for tensor in inputs
    )

    def attempt() -> ExportedProgram:
        return torch.export.export(module, example, dynamic_shapes=(shapes,) if symbols else None, strict=False)

    def draft() -> ExportedProgram:
        return torch.export.draft_export(module, example, dynamic_shapes=(shapes,) if symbols else None, strict=False)

    # What torch's compiler keeps of the calls before, FlexAttention's among them, would bind this one's sizes.
    if compiler := sys.modules.get("torch._dynamo"):
        compiler.reset()
    try:
        return attempt()
    except DeployError:
        raise
    except Exception as error:
        raise explain_export_error(error, attempt, draft, dims=dims) from error


def _digest(exported: ExportedProgram, saved: ExportedProgram) -> str:
    """Of both programs' text: graphs within the graph, such as a score_mod, show in the saved one alone."""
    codes = dict.fromkeys(program.graph_module.code for program in (exported, saved))
    text = (*codes, str(exported.graph_signature), str(exported.range_constraints))
    return sha256_bytes("\n".join(text).encode())
