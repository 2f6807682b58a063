"""Where the values inside an artifact or a program leave those of the eager module.

Owns running each with its intermediate values kept, and finding eager's values among them. Values are found by their
numbers, not by names, so that renaming, fusing and reordering do not matter. Runs in a child. Called by locate.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from deploy.convert.export import load_program
from deploy.convert.model import Program
from deploy.files import link_or_copy
from deploy.spec import wire_input, wire_output
from deploy.validate.tensors import relative_error, tensors_for

# Of eager's own error at the same place; and the floor, for places where eager is exact.
_MULTIPLE = 20.0
_FLOOR = 5e-6


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """One module's output in float64, in the order in which modules finish; `noise` is eager's own relative error."""

    name: str
    module: str
    is_leaf: bool
    before_norm: bool
    value: np.ndarray
    noise: float

    @property
    def tolerance(self) -> float:
        """The relative error up to which another value counts as the same."""
        return max(_FLOOR, _MULTIPLE * self.noise)


@dataclass(frozen=True, slots=True, kw_only=True)
class Departure:
    """The first module whose output is not found, the last one found before it, and the value nearest to it."""

    module: Step | None
    after: str
    nearest: str
    error: float


def module_steps(exact: Any, eager: Any, inputs: Sequence[np.ndarray]) -> list[Step]:
    """What each module of the checkpoint computes for these inputs: from `exact` (float64), with `eager`'s errors."""
    wanted, rounded = module_values(exact, inputs, dtype="float64"), module_values(eager, inputs)
    order, modules = list(wanted), dict(exact.named_modules())
    leaves = [name for name in order if _is_leaf(modules[_called(name)])]
    following = dict(pairwise(leaves))
    return [
        Step(
            name=name,
            module=repr(modules[_called(name)]).splitlines()[0],
            is_leaf=name in leaves,
            before_norm=name in following and _folds(modules[_called(name)], modules[_called(following[name])]),
            value=wanted[name],
            noise=relative_error(wanted[name], rounded[name]),
        )
        for name in order
    ]


def find_departure(steps: Sequence[Step], values: Mapping[str, np.ndarray]) -> Departure:
    """The first module whose output is nowhere among `values`; its `module` is None if all are found."""
    by_size: dict[int, dict[str, np.ndarray]] = {}
    for name, value in values.items():
        by_size.setdefault(value.size, {})[name] = value
    found = {step.name: _nearest(step, by_size.get(step.value.size, {})) for step in steps}
    right = {step.name for step in steps if found[step.name][1] <= step.tolerance}
    last = "the inputs"
    for step in steps:
        if step.name in right:
            last = step.name if step.is_leaf else last
        elif step.is_leaf and not step.before_norm and not _inside(step.name, right):
            nearest, error = found[step.name]
            return Departure(module=step, after=last, nearest=nearest, error=error)
    return Departure(module=None, after=last, nearest="", error=0.0)


def program_values(program: Program, inputs: Sequence[np.ndarray]) -> tuple[dict[str, np.ndarray], list[np.ndarray]]:
    """Every value inside an exported program, called eagerly, and its outputs. Names are `node (operator)`."""
    import torch

    values: dict[str, np.ndarray] = {}

    class Recorder(torch.fx.Interpreter):
        def run_node(self, n: torch.fx.Node) -> Any:
            result = super().run_node(n)
            if n.op == "call_function" and isinstance(result, torch.Tensor) and result.is_floating_point():
                values[f"{n.name} ({n.target})"] = result.detach().cpu().numpy()
            return result

    module = load_program(program).module()
    assert isinstance(module, torch.fx.GraphModule)
    with torch.inference_mode():
        outputs = Recorder(module).run(*tensors_for(module, inputs))
    return values, [tensor.cpu().numpy() for tensor in _tensors(outputs)]


def onnx_values(path: Path, inputs: Sequence[np.ndarray]) -> tuple[dict[str, np.ndarray], list[np.ndarray]]:
    """Every value inside an ONNX graph, run without ONNX Runtime's optimisations, and its outputs in wire order.

    Names are `node (operator, attribute=value, ...)`.
    """
    import onnx
    import onnxruntime

    model = onnx.load(path, load_external_data=False)
    outputs = [value.name for value in model.graph.output]
    producers = {name: node for node in model.graph.node for name in node.output if name}
    model.graph.output.extend(onnx.ValueInfoProto(name=name) for name in producers if name not in outputs)
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 4
    with TemporaryDirectory() as folder:
        for sibling in path.parent.iterdir():
            if sibling.is_file() and sibling != path:
                link_or_copy(sibling, Path(folder, sibling.name))
        onnx.save(model, Path(folder, path.name))
        session = onnxruntime.InferenceSession(Path(folder, path.name), options, providers=["CPUExecutionProvider"])
    names = [value.name for value in session.get_outputs()]
    feed = {wire_input(index): np.ascontiguousarray(array) for index, array in enumerate(inputs)}
    arrays = dict(zip(names, session.run(names, feed), strict=True))
    inner = {_node_name(producers[name], name): arrays[name] for name in producers if _is_float(arrays[name])}
    return inner, [arrays[wire_output(index)] for index in range(len(outputs))]


def _is_float(value: Any) -> bool:
    return isinstance(value, np.ndarray) and value.dtype.kind == "f"


def _node_name(node: Any, value: str) -> str:
    """The node with its attributes; tensors among them are left out."""
    from onnx import helper

    attributes = {item.name: helper.get_attribute_value(item) for item in node.attribute if item.type not in (4, 5)}
    shown = [f"{name}={text.decode() if isinstance(text, bytes) else text}" for name, text in attributes.items()]
    return f"{value} ({', '.join([node.op_type, *shown])})"


def module_values(module: Any, inputs: Sequence[np.ndarray], *, dtype: str | None = None) -> dict[str, np.ndarray]:
    """The tensor output of every submodule, in the order in which they finish; a second call is named `name#2`.

    Floating-point inputs are given in `dtype` where it is named.
    """
    import torch

    values: dict[str, np.ndarray] = {}

    def keep(name: str) -> Any:
        def hook(_module: Any, _inputs: Any, output: Any) -> None:
            tensors = _tensors(output)
            if tensors and tensors[0].is_floating_point():
                calls = sum(_called(held) == name for held in values)
                values[f"{name}#{calls + 1}" if calls else name] = tensors[0].detach().double().numpy()

        return hook

    handles = [child.register_forward_hook(keep(name)) for name, child in module.named_modules() if name]
    tensors = [torch.from_numpy(np.ascontiguousarray(array)) for array in inputs]
    if dtype:
        tensors = [tensor.to(getattr(torch, dtype)) if tensor.is_floating_point() else tensor for tensor in tensors]
    try:
        with torch.inference_mode():
            module(*tensors)
    finally:
        for handle in handles:
            handle.remove()
    return values


def _tensors(output: Any) -> list[Any]:
    """The tensors in a module's output, however nested, in torch's flattened order."""
    import torch
    from torch.utils import _pytree

    return [leaf for leaf in _pytree.tree_leaves(output) if isinstance(leaf, torch.Tensor)]


def _called(name: str) -> str:
    return name.partition("#")[0]


def _is_leaf(module: Any) -> bool:
    return next(module.children(), None) is None


def _folds(module: Any, following: Any) -> bool:
    """True where a converter folds the next module into this one, so that the value between is computed nowhere."""
    return hasattr(module, "kernel_size") and hasattr(following, "running_var")


def _inside(name: str, right: set[str]) -> bool:
    """True for a part of a module whose own output is right: whatever it computes, nothing wrong comes of it."""
    parts = _called(name).split(".")
    return any(".".join(parts[:count]) in right for count in range(1, len(parts)))


def _nearest(step: Step, candidates: Mapping[str, np.ndarray]) -> tuple[str, float]:
    """The value of the same size that is nearest, and its relative error."""
    nearest, least = "", float("inf")
    for name, value in candidates.items():
        error = relative_error(step.value.reshape(-1), value.reshape(-1))
        if error < least:
            nearest, least = name, error
            if error <= _FLOOR:
                break
    return nearest, least
