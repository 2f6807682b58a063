"""An ONNX graph without the weights of the program it was made from, and those weights in it again.

Owns that no step of the exporter looks at a weight's value, and the form in which a bare graph is kept. Called by onnx,
in a child process.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from deploy.convert.reuse import Weights

if TYPE_CHECKING:
    import onnx_ir as ir
    from torch import Tensor

GRAPH_FILE = "graph.onnx"


@contextmanager
def weights_as_inputs(model: ir.Model, names: Collection[str]) -> Iterator[None]:
    """While this lasts, the initializers so named are inputs of the graph: no rewriting can use, fold or merge values.

    What is unused by then is left out afterwards.
    """
    graph = model.graph
    taken = {name: value for name, value in graph.initializers.items() if name in names}
    tensors = {name: value.const_value for name, value in taken.items()}
    for name, value in taken.items():
        del graph.initializers[name]
        value.const_value = None
        graph.inputs.append(value)
    yield
    for name, value in taken.items():
        graph.inputs.remove(value)
        value.name, value.const_value = name, tensors[name]
        if value.uses() or value.is_graph_output():
            graph.register_initializer(value)


def write_graph(model: ir.Model, weights: Weights, *, into: Path) -> bool:
    """Whether the graph can be kept without its weights; then it is in the new folder `into`.

    It cannot where a weight that the program reads is no initializer of that name, type and shape.
    """
    import onnx_ir as ir

    graph = model.graph
    learnt = sorted(weights.used & weights.learnt.keys())
    if not all(name in graph.initializers and _fits(graph.initializers[name], weights.learnt[name]) for name in learnt):
        return False
    held = {name: graph.initializers.pop(name) for name in learnt}
    for value in held.values():
        graph.inputs.append(value)
    try:
        into.mkdir()
        ir.save(model, into / GRAPH_FILE)
    finally:
        for value in held.values():
            graph.inputs.remove(value)
            graph.register_initializer(value)
    return True


def read_graph(folder: Path, weights: Weights) -> ir.Model:
    """The graph that lies in `folder`, with these weights."""
    import onnx_ir as ir
    from onnx_ir.tensor_adapters import TorchTensor

    model = ir.load(folder / GRAPH_FILE)
    graph = model.graph
    for value in [value for value in graph.inputs if value.name in weights.learnt]:
        assert value.name is not None
        graph.inputs.remove(value)
        value.const_value = TorchTensor(weights.learnt[value.name], name=value.name)
        graph.register_initializer(value)
    return model


def _fits(value: ir.Value, tensor: Tensor) -> bool:
    """Whether an initializer is that weight as it is: its shape, its type, its very values."""
    import torch
    from onnx_ir.tensor_adapters import TorchTensor

    held = value.const_value
    own = TorchTensor(tensor)
    if held is None or held.dtype != own.dtype or tuple(held.shape.numpy()) != tuple(tensor.shape):
        return False
    raw = getattr(held, "raw", None)
    if isinstance(raw, torch.Tensor) and (raw.data_ptr(), raw.stride()) == (tensor.data_ptr(), tensor.stride()):
        return True
    return held.tobytes() == own.tobytes()
