"""A program that `torch.export.save` wrote becomes a Checkpoint and a module: its graph is the architecture.

Owns reading its inputs and dynamic sizes, what of them cannot be served, and running it in another dtype.
Called by load. The program is exported again in `convert`, from this module, so that every later step is the same.
"""

import contextlib
import io
import logging
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from deploy.checkpoint.inputs import UNKNOWN_NOTE
from deploy.checkpoint.program_types import register_stand_in
from deploy.checkpoint.vetting import vet
from deploy.errors import UsageError
from deploy.spec import BATCH, Dim, TensorSpec

if TYPE_CHECKING:
    from torch import Tensor, nn
    from torch.export import ExportedProgram
    from torch.fx import GraphModule, Node

PROGRAM = "program/"
_BATCH_LIMITS = "batch"  # the option that holds the bounds the program was exported with
_EXPORT_AGAIN = "torch.export.export(model.eval(), example, dynamic_shapes=({0: torch.export.Dim('batch')},))"
# Where each operator says that it runs as in training: the index of its argument, and its name.
_TRAINING = {"batch_norm": (5, "training"), "dropout": (2, "train"), "native_dropout": (2, "train")}
_UNBOUNDED = 2**31


@dataclass(frozen=True, slots=True, kw_only=True)
class ReadProgram:
    """What is known of a program. `batch` are the inclusive bounds of its batch, the upper one None for no bound."""

    exported: "ExportedProgram"
    name: str
    inputs: tuple[TensorSpec, ...]
    dims: tuple[Dim, ...]
    batch: tuple[int, int | None]
    tensors: dict[str, "Tensor"]
    notes: tuple[str, ...] = (UNKNOWN_NOTE,)

    @property
    def options(self) -> dict[str, Any]:
        """What the checkpoint keeps: the batches that the program was made for."""
        return {_BATCH_LIMITS: list(self.batch)}


def read_program(path: Path, *, trust_pickle: bool) -> ReadProgram:
    """The program and its contract. Raises UsageError if it cannot be loaded, trusted or served."""
    exported = load_exported(path, trust_pickle=trust_pickle)
    _check_inference(path, exported)
    placeholders = {node.name: node for node in exported.graph.nodes if node.op == "placeholder"}
    named = [(name, placeholders[name]) for name in _user_inputs(exported) if name is not None]
    sizes = _Sizes(path, exported.range_constraints)
    inputs = tuple(_input(path, name, node.meta.get("val"), sizes) for name, node in named)
    tensors = {**exported.state_dict, **{k: v for k, v in exported.constants.items() if _is_tensor(v)}}
    return ReadProgram(
        exported=exported,
        name=_class_name(exported),
        inputs=inputs,
        dims=tuple(sizes.dims.values()),
        batch=sizes.batch(inputs),
        tensors=tensors,
    )


def _user_inputs(exported: "ExportedProgram") -> list[str | None]:
    """The name of each thing that a call gives, in order; None for a value that the export has fixed."""
    from torch.export.graph_signature import ConstantArgument, InputKind

    given = [one.arg for one in exported.graph_signature.input_specs if one.kind is InputKind.USER_INPUT]
    return [None if isinstance(one, ConstantArgument) else one.name for one in given]


def load_exported(path: Path, *, trust_pickle: bool) -> "ExportedProgram":
    """The program itself. Raises UsageError if loading it could run code, or if this torch cannot read it."""
    import torch

    if not trust_pickle:
        vet(path)
    said: list[str] = []
    try:
        with _kept_in(said), path.open("rb") as stream:
            # From a stream: a path must end in .pt2, and the content decides here.
            return torch.export.load(io.BytesIO(stream.read()))
    except Exception as error:  # the loader raises anything, mostly about versions and operators
        reason = _reason(error, said)
        if register_stand_in(reason):
            return load_exported(path, trust_pickle=True)
        raise UsageError(
            f"{path} cannot be loaded by torch {torch.__version__}: {reason}",
            expected="a program of this torch's own release, of operators that are registered here",
            fix="export it with this release, or install the one it was exported with",
        ) from error


def program_module(exported: "ExportedProgram", dtype: str | None) -> "nn.Module":
    """The program as a module that takes its inputs one by one, all its floating values in `dtype` if that is named."""
    import torch

    module = exported.module(check_guards=False)
    if dtype:
        _convert(module, getattr(torch, dtype))
    for parameter in module.parameters():
        parameter.requires_grad_(False)
    _flatten(module, exported)
    return module


def check_batch(options: Mapping[str, Any], max_batch: int) -> None:
    """Raises UsageError if the program was not exported for batches of 1 to `max_batch`."""
    _, most = options[_BATCH_LIMITS]
    if most is not None and max_batch > most:
        raise UsageError(
            f"the program was exported for a batch of {most}" + (" at most" if most > 1 else " alone"),
            expected=f"--max-batch {most} or less",
            fix=f"use --max-batch {most}, or export it again for more: {_EXPORT_AGAIN}",
        )


class _Sizes:
    """The names of a program's dynamic sizes, by their symbols, and the bounds of each."""

    def __init__(self, path: Path, ranges: Mapping[Any, Any]) -> None:
        self.path = path
        self.ranges = ranges
        self.names: dict[Any, str] = {}
        self.dims: dict[str, Dim] = {}

    def name(self, tensor: str, axis: int, size: Any) -> int | str:
        """An input's size: a number, or a dim's name. Raises UsageError if it follows from others or has no bound."""
        if isinstance(size, int):
            return size
        symbol = size.node.expr
        if symbol in self.names:
            return self.names[symbol]
        if not symbol.is_symbol:
            raise UsageError(
                f"input {tensor!r} of {self.path} has the size {symbol} on axis {axis}, which follows from another",
                expected="sizes that are constant or free",
                fix="export it with a dim of its own there",
            )
        self.names[symbol] = BATCH if axis == 0 else f"{tensor}_{axis}"
        if axis > 0:
            self._bound(tensor, axis, symbol)
        return self.names[symbol]

    def _bound(self, tensor: str, axis: int, symbol: Any) -> None:
        low, high = self._range(symbol)
        if high is None:
            raise UsageError(
                f"axis {axis} of input {tensor!r} of {self.path} has no upper bound",
                expected="one: samples, buffers and memory are sized by it",
                fix=f"export it with one: torch.export.Dim('{self.names[symbol]}', max=512)",
            )
        self.dims[self.names[symbol]] = Dim(name=self.names[symbol], minimum=max(1, low), maximum=high)

    def batch(self, inputs: tuple[TensorSpec, ...]) -> tuple[int, int | None]:
        """The bounds of the batch. Raises UsageError if a batch of 1 is outside."""
        symbol = next((symbol for symbol, name in self.names.items() if name == BATCH), None)
        if symbol is None:
            return 1, 1
        low, high = self._range(symbol)
        # Torch writes 2 for a size left to it (Dim.AUTO), whose graph holds for 1 too; parity shows it at batch 1.
        if low > 2:
            raise UsageError(
                f"{self.path} was exported for batches of {low} and more",
                expected="a program that takes one sample too: a server must answer a lone request",
                fix=f"export it again: {_EXPORT_AGAIN}",
            )
        return 1, high

    def _range(self, symbol: Any) -> tuple[int, int | None]:
        found = self.ranges[symbol]
        high = found.upper
        return int(found.lower), int(high) if high.is_integer and high.is_finite and high < _UNBOUNDED else None


def _input(path: Path, name: str, value: Any, sizes: _Sizes) -> TensorSpec:
    if not _is_tensor(value):
        raise UsageError(
            f"input {name!r} of {path} is a {type(value).__name__}, no tensor",
            expected="tensors: what a request can carry",
            fix="export it with that value fixed, or as a tensor",
        )
    shape = tuple(sizes.name(name, axis, size) for axis, size in enumerate(value.shape))
    if not shape or shape[0] not in (1, BATCH):
        raise UsageError(
            f"input {name!r} of {path} has the shape {list(shape)}",
            expected="the batch first, dynamic or 1",
            fix=f"export it again: {_EXPORT_AGAIN}",
        )
    return TensorSpec(name=name, dtype=str(value.dtype).removeprefix("torch."), shape=(BATCH, *shape[1:]))


def _check_inference(path: Path, exported: "ExportedProgram") -> None:
    """Raises UsageError for a program that was exported as in training, or that changes its own weights."""
    for node in exported.graph.nodes:
        where = _TRAINING.get(_operator(node))
        if where and _argument(node, *where) is True:
            raise UsageError(
                f"{path} was exported in training mode: {node.target} runs as in training",
                expected="a program exported for inference",
                fix=f"export it again: {_EXPORT_AGAIN}",
            )
    changed = [*exported.graph_signature.buffers_to_mutate.values(), *_written(exported)]
    if changed:
        raise UsageError(
            f"{path} changes its own state when it runs: {', '.join(changed[:3])}",
            expected="a program that gives the same answer to the same input",
            fix="export it in eval mode, without caches or counters",
        )


def _written(exported: "ExportedProgram") -> list[str]:
    """The weights, buffers and constants that an operator of the graph writes to, itself or through a view."""
    signature = exported.graph_signature
    own = {
        **signature.inputs_to_parameters,
        **signature.inputs_to_buffers,
        **signature.inputs_to_lifted_tensor_constants,
    }
    found = []
    for node in exported.graph.nodes:
        for index, argument in enumerate(getattr(getattr(node.target, "_schema", None), "arguments", ())):
            if argument.alias_info is not None and argument.alias_info.is_write:
                source = _viewed(_argument(node, index, argument.name))
                found += [own[source]] if source in own else []
    return found


def _viewed(node: Any) -> str:
    """The name of the node whose memory a node shows, its own where it shows no other's."""
    while (schema := getattr(node.target, "_schema", None)) and any(one.alias_info for one in schema.returns):
        node = node.args[0]
    return str(node.name)


def _operator(node: "Node") -> str:
    """The name of the operator that a node calls, such as `batch_norm`; empty for what is none."""
    return str(getattr(getattr(node.target, "overloadpacket", None), "__name__", ""))


def _argument(node: "Node", index: int, name: str) -> Any:
    return node.args[index] if len(node.args) > index else node.kwargs.get(name)


def _class_name(exported: "ExportedProgram") -> str:
    """The class that was exported, as the graph remembers it."""
    for node in exported.graph.nodes:
        for _, kind in list((node.meta.get("nn_module_stack") or {}).values())[:1]:
            return kind if isinstance(kind, str) else f"{kind.__module__}.{kind.__qualname__}"
    return "unknown"


def _convert(module: "GraphModule", dtype: Any) -> None:
    """All floating values of a graph in `dtype`: weights, constants, and what its own casts and constructors name."""
    import torch
    from torch.utils import _pytree as pytree

    module.to(dtype)
    for part in module.modules():
        for name, value in list(vars(part).items()):
            if _is_tensor(value) and value.is_floating_point():
                setattr(part, name, value.to(dtype))

    def cast(value: Any) -> Any:
        return dtype if isinstance(value, torch.dtype) and value.is_floating_point else value

    for node in list(module.graph.nodes):
        if _operator(node) == "_assert_tensor_metadata":
            module.graph.erase_node(node)
            continue
        node.args, node.kwargs = pytree.tree_map(cast, (node.args, node.kwargs))
    module.recompile()


def _flatten(module: "GraphModule", exported: "ExportedProgram") -> None:
    """Let a program take its tensors one by one, in order; values that were fixed by the export are asked no more."""
    import torch
    from torch.fx import Interpreter
    from torch.fx.graph import CodeGen
    from torch.fx.traceback import preserve_node_meta
    from torch.utils import _pytree as pytree

    given, spec = _user_inputs(exported), exported.call_spec.out_spec
    assert spec is not None
    for node, name in zip(module.graph.find_nodes(op="placeholder"), given, strict=True):
        if name is None:
            module.graph.erase_node(node)
    module.graph.set_codegen(CodeGen())
    module.recompile()
    # They compare a call with the nested form that was exported.
    module._forward_pre_hooks.clear()
    module._forward_pre_hooks_with_kwargs.clear()
    original = type(module)

    def forward(self: "GraphModule", *inputs: "Tensor") -> Any:
        if torch.compiler.is_exporting():
            # Node by node, so that the new program remembers the lines of the user's code.
            with preserve_node_meta():
                return pytree.tree_unflatten(list(Interpreter(self).run(*inputs)), spec)
        return pytree.tree_unflatten(list(original.forward(self, *inputs)), spec)

    module.__class__ = type(f"Flat{original.__name__}", (original,), {"forward": forward})


def _is_tensor(value: Any) -> bool:
    import torch

    return isinstance(value, torch.Tensor)


def _reason(error: Exception, said: list[str]) -> str:
    """The first line of the error; of what was logged before it, where the error says no more than to look there."""
    text = said[-1] if said and "warnings above" in str(error) else f"{type(error).__name__}: {str(error).strip()}"
    return " ".join(text.partition("\n")[0].split())[:300]


class _Kept(logging.Handler):
    """Puts what is logged into a list."""

    def __init__(self, said: list[str]) -> None:
        super().__init__()
        self.said = said

    def emit(self, record: logging.LogRecord) -> None:
        error = record.exc_info[1] if record.exc_info else None
        self.said.append(f"{type(error).__name__}: {error}" if error else record.getMessage())


@contextlib.contextmanager
def _kept_in(said: list[str]) -> Iterator[None]:
    """What torch's loader warns of goes into the list, and nowhere else."""
    loggers = [logging.getLogger(name) for name in ("torch.export", "torch.export.pt2_archive._package")]
    before = [(logger.handlers, logger.propagate) for logger in loggers]
    for logger in loggers:
        logger.handlers, logger.propagate = [_Kept(said)], False
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, (handlers, propagate) in zip(loggers, before, strict=True):
            logger.handlers, logger.propagate = handlers, propagate
