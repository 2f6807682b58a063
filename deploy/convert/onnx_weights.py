"""An ONNX graph without the weights of the program it was made from, and those weights in it again.

Owns that no step of the exporter looks at a weight's value, and the form in which a bare graph is kept. Called by onnx,
in a child process.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from deploy.convert.onnx_file import checked_skeleton, initializer
from deploy.convert.onnx_wire import Initializer, Skeleton, write_beside, write_inside
from deploy.convert.reuse import Weights
from deploy.records import Record

if TYPE_CHECKING:
    import onnx_ir as ir
    from torch import Tensor

GRAPH_FILE = "graph.onnx"
RECIPE_FILE = "recipe.json"


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


class Recipe(Record):
    """How a kept graph is made whole again: its bytes at the end of the file, its weights, the artifact's details."""

    graph: int
    weights: tuple[Initializer, ...]
    details: dict[str, str]


def take_apart(model: ir.Model, weights: Weights, details: Mapping[str, str], *, into: Path) -> bool:
    """Whether the graph can be kept without its weights; then it is in the new folder `into`, checked.

    It cannot where a weight that the program reads is no initializer of that name, type and shape. Raises
    UnfinishedError if the model breaks ONNX's rules.
    """
    graph = model.graph
    learnt = sorted(weights.used & weights.learnt.keys())
    if not all(name in graph.initializers and _fits(graph.initializers[name], weights.learnt[name]) for name in learnt):
        return False
    held = {name: graph.initializers.pop(name) for name in learnt}
    try:
        facts = tuple(initializer(name, value.const_value) for name, value in held.items() if value.const_value)
        skeleton = checked_skeleton(model, facts)
    finally:
        for value in held.values():
            graph.register_initializer(value)
    into.mkdir()
    into.joinpath(GRAPH_FILE).write_bytes(skeleton.whole())
    Recipe(graph=len(skeleton.graph), weights=facts, details=dict(details)).write(into / RECIPE_FILE)
    return True


def put_together(
    folder: Path, weights: Weights, path: Path, *, inline_limit: int
) -> tuple[tuple[str, ...], dict[str, str]]:
    """The names of the files written, relative to the folder of `path`, and the details of the graph in `folder`.

    The file at `path`, or above `inline_limit` bytes a folder of that name, has these weights in the kept graph.
    """
    recipe = Recipe.read(folder / RECIPE_FILE)
    skeleton = Skeleton.parted((folder / GRAPH_FILE).read_bytes(), graph=recipe.graph)

    def content(name: str) -> memoryview:
        return _plain_bytes(weights.learnt[name])

    if len(skeleton.graph) + sum(one.size for one in recipe.weights) > inline_limit:
        return write_beside(path, skeleton, recipe.weights, content), recipe.details
    write_inside(path, skeleton, recipe.weights, content)
    return (path.name,), recipe.details


def _plain_bytes(tensor: Tensor) -> memoryview:
    """A tensor's elements in their order, as ONNX wants them: without a copy where they lie so."""
    import torch

    return tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data


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
