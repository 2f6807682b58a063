"""The complete spec of an exported program: what its outputs are called, and which dims they share with the inputs.

Owns the reading of shapes out of the program, and what is refused of them. Called by export.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from deploy.checkpoint.model import Checkpoint
from deploy.convert.explain import traced_line
from deploy.convert.flatten import leaves
from deploy.errors import UnfinishedError, UsageError
from deploy.spec import BATCH, DTYPES, Dim, Spec, TensorSpec, decision_axis_of

if TYPE_CHECKING:
    from torch import Tensor
    from torch.export import ExportedProgram

_POOLINGS = re.compile(r"_?adaptive_(avg|max)_pool")


def read_spec(
    exported: ExportedProgram,
    inputs: tuple[TensorSpec, ...],
    names: tuple[str, ...],
    *,
    dims: tuple[Dim, ...],
    checkpoint: Checkpoint,
) -> Spec:
    """The spec, its outputs under these names. Raises UsageError if an output has no row per sample."""
    values = [node.meta["val"] for node in exported.graph.output_node().args[0]]
    assert len(values) == len(names)
    sizes = _Sizes(symbols=_symbols(exported, inputs), bounds=dims, derived={})
    batched = any(dim.name == BATCH for dim in dims)
    outputs = tuple(
        _output(name, value, sizes, batched=batched, checkpoint=checkpoint)
        for name, value in zip(names, values, strict=True)
    )
    return Spec(inputs=inputs, outputs=outputs, dims=(*dims, *sizes.derived.values()))


def require_rows(names: Sequence[str], several: Any, lone: Any) -> None:
    """Raises UsageError if an output for a lone row has fewer or more dimensions than one for several rows."""
    found = (tensor for _, tensor in leaves(several)), (tensor for _, tensor in leaves(lone))
    for name, many, one in zip(names, *found, strict=False):
        if many.dim() != one.dim():
            raise UsageError(
                f"output {name!r} has the shape {list(one.shape)} for one row and {list(many.shape)} for "
                f"{many.shape[0] if many.dim() else 'several'}",
                expected="the same dimensions for any number of rows",
                fix="name the axis that is to go: squeeze(-1), not squeeze(), which drops a batch of one",
            )


def require_poolable(exported: ExportedProgram) -> None:
    """Raises UnfinishedError for a pooling of a dynamic size to a constant one.

    ONNX has none, its exporter writes one for the sizes of the example, and so does AOTInductor.
    """
    for node in exported.graph.nodes:
        if not _POOLINGS.match(str(getattr(getattr(node.target, "overloadpacket", None), "__name__", ""))):
            continue
        wanted: Any = node.args[1]
        into = list(wanted) if isinstance(wanted, list | tuple) else [wanted]
        sizes = node.args[0].meta["val"].shape[-len(into) :]
        if any(not isinstance(size, int) and left != 1 for size, left in zip(sizes, into, strict=True)):
            raise UnfinishedError(
                f"the model pools an input of any size to {' x '.join(map(str, into))}"
                f"{traced_line(node.meta.get('stack_trace') or '')}, which neither format can",
                expected="a pooling to 1 x 1 (AdaptiveAvgPool2d(1)), or inputs of one size",
                fix="leave these axes out of --dynamic (of a program: export it for one size), or "
                "resize inside the forward: functional.interpolate(x, size=...)",
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Sizes:
    """The names of sizes: of the inputs' dims by their symbol, and of what outputs compute from them."""

    symbols: dict[Any, str]
    bounds: tuple[Dim, ...]
    derived: dict[str, Dim]

    def name(self, output: str, size: Any) -> int | str:
        """A constant size, or the name of a dynamic one. Raises UsageError if it follows from the batch."""
        if isinstance(size, int):
            return size
        expression = size.node.expr
        if expression in self.symbols:
            return self.symbols[expression]
        formula = str(expression.xreplace({symbol: type(symbol)(name) for symbol, name in self.symbols.items()}))
        used = {self.symbols.get(symbol) for symbol in expression.free_symbols}
        if None in used:
            raise UsageError(
                f"output {output!r} has a size that depends on the values of the inputs",
                expected="sizes that are the batch, follow from another dynamic dim, or are constant",
                fix="keep every row and say which count (by torch.where, or a mask as an output)",
            )
        if BATCH in used:
            raise UsageError(
                f"output {output!r} has a size that depends on the inputs in another way than by the batch: {formula}",
                expected="sizes that are the batch, follow from another dynamic dim, or are constant",
                fix="return one row per sample from the model's forward, or use --max-batch 1",
            )
        self.derived.setdefault(formula, self._bounded(formula, expression))
        return formula

    def _bounded(self, formula: str, expression: Any) -> Dim:
        """The dim of a computed size, its bounds by interval arithmetic."""
        from torch.utils._sympy.value_ranges import ValueRanges, bound_sympy

        known = {dim.name: dim for dim in self.bounds}
        ranges = {
            symbol: ValueRanges(known[name].minimum, known[name].maximum)
            for symbol, name in self.symbols.items()
            if name in known
        }
        found = bound_sympy(expression, ranges)
        return Dim(name=formula, minimum=max(1, int(found.lower)), maximum=int(found.upper))


def _symbols(exported: ExportedProgram, inputs: Sequence[TensorSpec]) -> dict[Any, str]:
    placeholders = {node.name: node for node in exported.graph.nodes if node.op == "placeholder"}
    symbols: dict[Any, str] = {}
    for tensor, name in zip(inputs, exported.graph_signature.user_inputs, strict=True):
        shape = placeholders[str(name)].meta["val"].shape
        for declared, size in zip(tensor.shape, shape, strict=True):
            if isinstance(declared, str) and not isinstance(size, int):
                symbols.setdefault(size.node.expr, declared)
    return symbols


def _moved(shape: tuple[int | str, ...]) -> str:
    """How to bring the batch to the front, where it stands elsewhere, as in a recurrent layer's states."""
    return f"move the batch first (.transpose(0, {shape.index(BATCH)})); else " if BATCH in shape[1:] else ""


def _output(name: str, value: Tensor, sizes: _Sizes, *, batched: bool, checkpoint: Checkpoint) -> TensorSpec:
    shape = tuple(sizes.name(name, size) for size in value.shape)
    if batched and (shape[0] != BATCH or BATCH in shape[1:]):
        raise UsageError(
            f"output {name!r} has the shape {list(shape)}",
            expected=f"[{BATCH!r}, sizes ...]: the batch first, and nowhere else",
            fix=f"{_moved(shape)}return one row per sample from the model's forward, or use --max-batch 1",
        )
    if 0 in shape:
        raise UsageError(
            f"output {name!r} has the shape {list(shape)}, which holds nothing",
            expected="outputs with elements: Triton has no size 0",
            fix="leave it out of what the model's forward returns",
        )
    dtype = str(value.dtype).removeprefix("torch.")
    if dtype not in DTYPES:
        raise UsageError(
            f"output {name!r} is {dtype}, which Triton has no tensors of",
            expected="floats, integers or truth values",
            fix="return it as such: torch.view_as_real for complex numbers",
        )
    axis = decision_axis_of(shape, floating=value.is_floating_point(), num_classes=checkpoint.num_classes)
    return TensorSpec(
        name=name,
        dtype=dtype,
        shape=shape,
        decision_axis=checkpoint.decisions.get(name, axis),
    )
