"""A module becomes a graph: the calls that come before an export, the export, and what of it cannot be served.

Owns the order of those calls and the sample that is traced; the spec is read in `contract`. Called by export, always in
a child process.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from deploy.checkpoint.model import Checkpoint
from deploy.convert.advice import BEYOND, advise_call, beyond_sizes
from deploy.convert.attention_layers import attention_in_place
from deploy.convert.contiguity import unbound_sizes
from deploy.convert.contract import read_spec, require_poolable, require_rows
from deploy.convert.cuda import moved
from deploy.convert.every_size import distances_of_any_number, sizes_tried
from deploy.convert.explain import SIZES_BOUND, explain_export_error, user_line
from deploy.convert.flatten import arguments_of, leaves, output_names, positional
from deploy.convert.lengths import lengths_unbound
from deploy.convert.model import Device, Precision
from deploy.convert.precision import with_edges
from deploy.convert.rebuilt import require_rebuilt
from deploy.convert.repeats import buffer_versions, changed_buffers, require_inputs_kept, require_repeatable
from deploy.convert.transformer_layers import traceable_transformers
from deploy.errors import DeployError, UnfinishedError, UsageError
from deploy.spec import BATCH, Dim, Spec, TensorSpec

if TYPE_CHECKING:
    from torch import Tensor, nn
    from torch.export import ExportedProgram

    from deploy.convert.flatten import Arrange

_SAMPLE_BATCH = 2  # a sample of one row makes the exporter take the batch for the constant 1
# GPU kernels are tuned for the sizes of the sample. With 32 rows in place of 2, ViT-B/16 and BERT-base in float16 took
# 3 to 7 % less at batch 32 and 128, and the same at 1 and 8 (H200, torch 2.11, one run of four rounds).
_GPU_SAMPLE_BATCH = 32
_SEED = 0
# Torch takes a size for 2 or more: one of 1..2 would be the constant 2 in a program that is loaded from disk.
_FEWEST_SIZES = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class Traced:
    """A graph with its contract, and what the user should know of its outputs."""

    exported: ExportedProgram
    spec: Spec
    notes: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Traceable:
    """The checkpoint's module on `device` and in `precision`, with the inputs and dynamic dims of its program."""

    checkpoint: Checkpoint
    module: nn.Module
    inputs: tuple[TensorSpec, ...]
    dims: tuple[Dim, ...]
    device: Device = "cpu"
    precision: Precision = "fp32"

    def trace(self) -> Traced:
        """The module's graph. Raises UsageError if its inputs or outputs cannot be served.

        Raises UnfinishedError if the module fails, or cannot be exported.
        """
        module, inputs, absent = self.module, self.inputs, self.checkpoint.absent
        parameters, batched = [tensor.name for tensor in inputs], any(dim.name == BATCH for dim in self.dims)
        arrange, versions = arguments_of(module, parameters, absent), buffer_versions(module)
        example, outputs = _first_call(module, arrange, inputs, self.dims, device=self.device)
        names = output_names(outputs)
        if batched:  # statistics of a batch, say, have none of one row
            require_rows(names, outputs, _call(module, arrange, [tensor[:1] for tensor in example]))
        notes = _numbers(module, arrange, example, outputs=outputs, batched=batched)
        if self.checkpoint.how == "factory":
            _call_at_the_ends(module, arrange, inputs, self.dims, device=self.device)
        flat = with_edges(positional(module, parameters, absent), self.checkpoint, self.precision)
        exported = _export(flat, example, inputs=inputs, dims=self.dims, folder=self.checkpoint.how == "config")
        require_poolable(exported)
        given = [tensor._version for tensor in example]
        again = _call(module, arrange, example)
        require_inputs_kept(dict(zip(parameters, example, strict=True)), given)
        require_repeatable(outputs, again, exported, changed=changed_buffers(versions, module))
        self._require_rebuilt(arrange, example, outputs)
        spec = read_spec(exported, inputs, names, dims=self.dims, checkpoint=self.checkpoint)
        return Traced(exported=exported, spec=spec, notes=notes)

    def _require_rebuilt(self, arrange: Arrange, example: Sequence[Tensor], outputs: Any) -> None:
        """Raises UsageError if the user's factory gives another network in each call."""
        from deploy.checkpoint.load import build_module

        if self.checkpoint.how == "factory" and self.precision == "fp32":
            require_rebuilt(
                self.module,
                outputs,
                build=lambda: build_module(self.checkpoint, like=self.module).to(self.device),
                call=lambda one: _call(one, arrange, example),
            )


@contextmanager
def traceable() -> Iterator[None]:
    """While this lasts an export sees torch's own layers as they are traced best. Not for several threads at once."""
    with (
        traceable_transformers(), attention_in_place(), unbound_sizes(), distances_of_any_number(), lengths_unbound()
    ):  # fmt: skip
        yield


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


def _call_at_the_ends(
    module: nn.Module, arrange: Arrange, inputs: Sequence[TensorSpec], dims: Sequence[Dim], *, device: Device
) -> None:
    """Raises UnfinishedError if the greatest integers lie beyond the least sizes, as lengths do beyond a short row.

    Both are what was asked for, and every proof tries them together.
    """
    import torch

    ranges = {index: tensor.values for index, tensor in enumerate(inputs) if tensor.values and not tensor.mask}
    least = tuple(dim.model_copy(update={"maximum": dim.minimum}) for dim in dims)
    tensors = list(seeded_inputs(inputs, batch=sample_rows(dims, device), dims=least))
    for index, (low, _) in ranges.items():
        tensors[index] = torch.full_like(tensors[index], low)
    for index, (low, high) in ranges.items() if any(dim.name != BATCH for dim in dims) else ():
        tensors[index] = torch.full_like(tensors[index], high)
        try:
            _call(module, arrange, moved(tuple(tensors), device))
        except UnfinishedError as error:
            # What else fails at such sizes is told by the export, which knows what sizes the model takes.
            if BEYOND.search(error.found):
                expected, fix = beyond_sizes(inputs[index].name)
                raise UnfinishedError(error.found, expected=expected, fix=fix) from error
        tensors[index] = torch.full_like(tensors[index], low)


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
    module: nn.Module, arrange: Arrange, example: Sequence[Tensor], *, outputs: Any, batched: bool
) -> tuple[str, ...]:
    """A note for each output that is a single number. Raises UsageError if it sums up the rows of a batch."""
    import torch

    named = dict(zip(output_names(outputs), (tensor for _, tensor in leaves(outputs)), strict=True))
    numbers = {name: tensor for name, tensor in named.items() if tensor.dim() == 0}
    if not numbers:
        return ()
    if batched:
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
    module: nn.Module, example: tuple[Tensor, ...], *, inputs: Sequence[TensorSpec], dims: Sequence[Dim], folder: bool
) -> ExportedProgram:
    import torch

    largest = {dim.name: max(dim.maximum, _FEWEST_SIZES) for dim in dims}
    symbols = {dim.name: torch.export.Dim(dim.name, min=dim.minimum, max=largest[dim.name]) for dim in dims}
    shapes = tuple(
        {axis: symbols[size] for axis, size in enumerate(tensor.shape) if isinstance(size, str)} for tensor in inputs
    )

    def traced(export: Callable[..., ExportedProgram]) -> ExportedProgram:
        with traceable():
            return export(module, example, dynamic_shapes=(shapes,) if symbols else None, strict=False)

    untried: list[int] = []

    def attempt(*, general: bool = False) -> ExportedProgram:
        # Not for a draft, which tells its questions apart by torch's own stack.
        with sizes_tried(general=general) as tries:
            try:
                return traced(torch.export.export)
            finally:
                untried.append(tries.untried)

    def draft() -> ExportedProgram:
        return traced(torch.export.draft_export)

    # What torch's compiler keeps of the calls before, FlexAttention's among them, would bind this one's sizes.
    if compiler := sys.modules.get("torch._dynamo"):
        compiler.reset()
    try:
        return attempt()
    except DeployError:
        raise
    except Exception as error:
        # Graphs that fit the sample best bind its sizes where torch cannot tell; those for any size need not.
        if SIZES_BOUND in str(error):
            with suppress(Exception):
                return attempt(general=True)
        _require_padding_taken(module, example, inputs)
        explained = explain_export_error(error, attempt, draft, dims=dims, folder=folder)
        raise _with_untried(explained, untried[0]) from error


def _with_untried(error: UnfinishedError, count: int) -> UnfinishedError:
    """The error, with how many questions torch answered for the sample's sizes alone, as they were too long to try."""
    if not count:
        return error
    return UnfinishedError(
        f"{error.found}; {count} question(s) about sizes were too long to try at each, and bind those of the sample",
        expected=error.expected,
        fix=error.fix,
    )


def _require_padding_taken(module: nn.Module, example: Sequence[Tensor], inputs: Sequence[TensorSpec]) -> None:
    """Raises UnfinishedError if the module itself fails on rows that are filled up; the sample's masks are all ones."""
    import torch

    padded = [tensor.clone() for tensor in example]
    for tensor, spec in zip(padded, inputs, strict=True):
        if spec.mask and tensor.shape[spec.mask_axis] > 1:
            tensor.narrow(spec.mask_axis, tensor.shape[spec.mask_axis] - 1, 1).zero_()
    if all(map(torch.equal, padded, example)):
        return
    try:
        with torch.no_grad():
            module(*padded)
    except DeployError:
        raise
    except Exception as error:
        raise UnfinishedError(
            f"the model fails on rows that are filled up, as their mask says: {error}{user_line(error)}",
            expected="a forward that takes rows with padding: shorter texts of a batch have some",
            fix="mend that code; or, for rows of one length without padding, give a module that takes no mask as "
            "--factory",
        ) from error
