"""A checkpoint becomes one `torch.export` program, with the complete spec read from it.

Owns the batch dimension and what is said when a model does not have one; compiles nothing.
Called by run and `__main__`, always in a child process.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from deploy.checkpoint.model import Checkpoint
from deploy.convert.explain import explain_export_error, user_line
from deploy.convert.flatten import output_names, positional
from deploy.convert.flex import count_flex_attention, plain_attention
from deploy.convert.model import Program
from deploy.errors import DeployError, UnfinishedError, UsageError
from deploy.files import sha256_bytes
from deploy.spec import BATCH, Dim, Spec, TensorSpec

if TYPE_CHECKING:
    from torch import Tensor, nn
    from torch.export import ExportedProgram

PROGRAM_FILE = "program.pt2"
_SAMPLE_BATCH = 2  # a sample of one row makes the exporter take the batch for the constant 1
_SEED = 0

_made_here: dict[Path, ExportedProgram] = {}


def export_program(checkpoint: Checkpoint, *, max_batch: int, folder: Path) -> Program:
    """The checkpoint's program, written to `folder/program.pt2`; its cost is left for the caller to fill in.

    The batch is dynamic in 1..max_batch; with `max_batch=1` the program is static and every shape begins with 1.
    Raises UsageError if the model's inputs or outputs cannot be served, UnfinishedError if it cannot be exported.
    """
    import torch

    from deploy.checkpoint.load import build_module

    if max_batch < 1:
        raise UsageError(f"the largest batch is {max_batch}", expected="1 or more", fix="set --max-batch to 1 or more")
    inputs = program_inputs(checkpoint.inputs, max_batch=max_batch)
    module = build_module(checkpoint)
    example = seeded_inputs(inputs, batch=_SAMPLE_BATCH)
    names = _names_from_a_call(module, example)
    exported = _export(positional(module), example, max_batch=max_batch)
    spec = _spec(exported, inputs, names, max_batch=max_batch)
    path = folder / PROGRAM_FILE
    torch.export.save(plain_attention(exported), path)
    _made_here.clear()
    _made_here[path] = exported
    uses = count_flex_attention(exported)
    return Program(path=path, spec=spec, digest=_digest(exported), seconds=0.0, peak_memory=0, flex_attention=uses)


def load_program(program: Program) -> ExportedProgram:
    """The exported program itself: the very object in the process that made it, else read from disk."""
    import torch

    if program.path in _made_here:
        return _made_here[program.path]
    return torch.export.load(program.path)


def seeded_inputs(inputs: Sequence[TensorSpec], *, batch: int) -> tuple[Tensor, ...]:
    """One tensor per input, the same in every run: normal where floating, 0 or 1 otherwise."""
    import torch

    generator = torch.Generator().manual_seed(_SEED)
    tensors = []
    for tensor in inputs:
        shape, dtype = tensor.concrete(**{BATCH: batch}), getattr(torch, tensor.dtype)
        if dtype.is_floating_point:
            tensors.append(torch.randn(shape, generator=generator).to(dtype))
        else:
            tensors.append(torch.randint(0, 2, shape, generator=generator).to(dtype))
    return tuple(tensors)


def program_inputs(inputs: tuple[TensorSpec, ...], *, max_batch: int) -> tuple[TensorSpec, ...]:
    """The program's inputs: the checkpoint's, with a batch of 1 in the shape for a static program.

    Raises UsageError if a shape does not begin with the batch.
    """
    for tensor in inputs:
        if tensor.shape[:1] != (BATCH,) or not all(isinstance(size, int) for size in tensor.shape[1:]):
            raise UsageError(
                f"input {tensor.name!r} has the shape {list(tensor.shape)}", expected=f"[{BATCH!r}, sizes ...]"
            )
    if max_batch > 1:
        return inputs
    return tuple(tensor.model_copy(update={"shape": (1, *tensor.shape[1:])}) for tensor in inputs)


def _names_from_a_call(module: nn.Module, example: tuple[Tensor, ...]) -> tuple[str, ...]:
    """The outputs' names. An eager call comes before the export, since it explains a model's own errors better."""
    import torch

    try:
        with torch.no_grad():
            outputs = module(*example)
    except DeployError:
        raise
    except Exception as error:
        shapes = ", ".join(str(list(tensor.shape)) for tensor in example)
        raise UnfinishedError(
            f"the model fails on a batch of inputs of shape {shapes}: {error}{user_line(error)}",
            fix="check --input-shape and the model's forward",
        ) from error
    return output_names(outputs)


def _export(module: nn.Module, example: tuple[Tensor, ...], *, max_batch: int) -> ExportedProgram:
    import torch

    batch = torch.export.Dim(BATCH, min=1, max=max_batch) if max_batch > 1 else None
    shapes = (tuple({0: batch} for _ in example),) if batch else None

    def attempt() -> ExportedProgram:
        return torch.export.export(module, example, dynamic_shapes=shapes, strict=False)

    try:
        return attempt()
    except DeployError:
        raise
    except Exception as error:
        raise explain_export_error(error, attempt, max_batch=max_batch) from error


def _spec(exported: ExportedProgram, inputs: tuple[TensorSpec, ...], names: tuple[str, ...], *, max_batch: int) -> Spec:
    values = [node.meta["val"] for node in exported.graph.output_node().args[0]]
    assert len(values) == len(names)
    batch = None if max_batch == 1 else _batch_symbol(exported)
    outputs = tuple(_output(name, value, batch) for name, value in zip(names, values, strict=True))
    dims = () if batch is None else (Dim(name=BATCH, minimum=1, maximum=max_batch),)
    return Spec(inputs=inputs, outputs=outputs, dims=dims)


def _batch_symbol(exported: ExportedProgram) -> Any:
    user_inputs = set(exported.graph_signature.user_inputs)
    first = next(node for node in exported.graph.nodes if node.name in user_inputs)
    return first.meta["val"].shape[0].node.expr


def _output(name: str, value: Tensor, batch: Any) -> TensorSpec:
    shape = tuple(_size(name, size, batch) for size in value.shape)
    if batch is not None and (shape[0] != BATCH or BATCH in shape[1:]):
        raise UsageError(
            f"output {name!r} has the shape {list(shape)}",
            expected=f"[{BATCH!r}, sizes ...]: the batch first, and nowhere else",
            fix="return one row per sample from the model's forward, or use --max-batch 1",
        )
    decides = value.is_floating_point() and len(shape) == 2 and shape[1] != 1
    dtype = str(value.dtype).removeprefix("torch.")
    return TensorSpec(name=name, dtype=dtype, shape=shape, decision_axis=1 if decides else None)


def _size(name: str, size: Any, batch: Any) -> int | str:
    if isinstance(size, int):
        return size
    if size.node.expr == batch:
        return BATCH
    formula = str(size.node.expr).replace(str(batch), BATCH)
    raise UsageError(
        f"output {name!r} has a size that depends on the inputs in another way than by the batch: {formula}",
        expected="sizes that are the batch or constant",
        fix="return one row of constant size per sample from the model's forward, or use --max-batch 1",
    )


def _digest(exported: ExportedProgram) -> str:
    text = (exported.graph_module.code, str(exported.graph_signature), str(exported.range_constraints))
    return sha256_bytes("\n".join(text).encode())
