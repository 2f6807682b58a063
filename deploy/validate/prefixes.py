"""Which operator a compiler gets wrong: the program is cut short, compiled again, and compared with itself uncompiled.

Owns the bisection and its time limit. Runs in a child. Called by locate, for AOTInductor, whose archives do not show
their intermediate values.
"""

import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from deploy.convert.export import load_program
from deploy.convert.model import Program
from deploy.evidence import FaultPlace
from deploy.validate.tensors import relative_error, tensors_for

# Far above what another order of summation does in float32, far below what a wrong operator does.
_WRONG = 1e-4

# Compiles an exported program as the artifact was compiled, and gives what runs it.
Compile = Callable[[Any], Callable[..., Any]]


def find_wrong_operator(
    program: Program, inputs: Sequence[np.ndarray], *, compile: Compile, seconds: float
) -> FaultPlace:
    """The first operator after which the compiled program leaves the uncompiled one, as far as `seconds` allow."""
    deadline = time.monotonic() + seconds

    module = load_program(program).module()
    tensors = tensors_for(module, inputs)
    cuts = _cuts(module, tensors)
    whole = _error_after(module, cuts[-1], tensors, compile)
    if whole <= _WRONG:
        message = "compiled again, the same program is right: this archive was compiled otherwise, or changed since"
        return FaultPlace(kind="program prefix", name=cuts[-1], message=message, reproduced=False)
    low, high, error, took = -1, len(cuts) - 1, whole, 0.0
    while high - low > 1 and time.monotonic() + took < deadline:
        started, middle = time.monotonic(), (low + high) // 2
        found = _error_after(module, cuts[middle], tensors, compile)
        took = time.monotonic() - started
        if found > _WRONG:
            high, error = middle, found
        else:
            low = middle
    return _place(cuts, low, high, error)


def _place(cuts: Sequence[str], low: int, high: int, error: float) -> FaultPlace:
    start = cuts[low] if low >= 0 else "the inputs"
    if high - low > 1:
        message = f"compiled, it goes wrong after {start} and up to {cuts[high]} (the time for the search ran out)"
    else:
        message = f"compiled, {cuts[high]} is off by {error:.2g} relative; it is right up to {start}"
    return FaultPlace(kind="program prefix", name=cuts[high], message=message, reproduced=True)


def _cuts(module: Any, tensors: Sequence[Any]) -> list[str]:
    """The operators, in order, whose value is one floating-point tensor, so that a program can end there."""
    import torch

    names: list[str] = []

    class Recorder(torch.fx.Interpreter):
        def run_node(self, n: torch.fx.Node) -> Any:
            result = super().run_node(n)
            if n.op == "call_function" and isinstance(result, torch.Tensor) and result.is_floating_point():
                names.append(n.name)
            return result

    with torch.inference_mode():
        Recorder(module).run(*tensors)
    return names


def _error_after(module: Any, cut: str, tensors: Sequence[Any], compile: Compile) -> float:
    """The relative error of the compiled program that ends at the operator `cut`."""
    import torch

    prefix = _prefix(module, cut)
    with torch.inference_mode():
        wanted = prefix(*tensors)
        found = compile(torch.export.export(prefix, tuple(tensors)))(*tensors)
    found = found[0] if isinstance(found, list | tuple) else found
    return relative_error(wanted.cpu().numpy(), found.cpu().numpy())


def _prefix(module: Any, cut: str) -> Any:
    """The same module, ended at the operator `cut`; weights are shared, not copied."""
    import torch

    graph = torch.fx.Graph()
    made: dict[torch.fx.Node, torch.fx.Node] = {}
    for node in module.graph.nodes:
        if node.op == "call_module":
            continue  # torch's guards on input shapes, the only modules an exported program calls
        made[node] = graph.node_copy(node, lambda old: made[old])
        if node.name == cut:
            graph.output(made[node])
            break
    graph.eliminate_dead_code()
    return torch.fx.GraphModule(module, graph)
