"""Attention as one operator of ONNX Runtime's own, `com.microsoft::MultiHeadAttention`.

Owns the pattern: what `onnx_rewrites.translations` writes for attention, with the heads split off before it and merged
after it. No weight's value is looked at. Called by onnx, in a child process.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from deploy.convert.onnx_rewrites import rewrite

if TYPE_CHECKING:
    import onnx_ir as ir

DOMAIN = "com.microsoft"

_SPLIT = (0, 2, 1, 3)  # rows, positions, heads, width to rows, heads, positions, width, and back
_SPLIT_KEYS = (0, 2, 3, 1)  # to rows, heads, width, positions
_HEADS = 4


def rewrite_with_attention(model: ir.Model) -> int:
    """Write each attention as one operator, and the rest as `rewrite` does, in place; gives how many nodes.

    None, and the rest is left, where no attention is found.
    """
    count = fuse_attention(model)
    return count and count + rewrite(model)


def fuse_attention(model: ir.Model) -> int:
    """Write each attention as one operator, in place; gives how many."""
    from onnx_ir.passes.common import RemoveUnusedNodesPass

    found = [attention for node in model.graph if (attention := _match(node))]
    for attention in found:
        _replace(model, attention)
    if found:
        model.opset_imports[DOMAIN] = 1
        RemoveUnusedNodesPass()(model)
    return len(found)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Attention:
    """One attention: its inputs as rows, positions, heads, width; what is added to its scores; the last node.

    `merged` is the node that puts the heads back behind the positions.
    """

    query: ir.Value
    key: ir.Value
    value: ir.Value
    bias: ir.Value | None
    scale: float
    heads: int
    width: int
    merged: ir.Node


def _match(node: ir.Node) -> _Attention | None:
    """The attention whose last product this is: MatMul(Softmax(MatMul(query * scale, keys) [+ bias]), value)."""
    softmax = _made_by(node, 0, "Softmax") if node.op_type == "MatMul" and not node.domain else None
    if softmax is None or softmax.attributes.get_int("axis", -1) not in (-1, _HEADS - 1):
        return None
    merged = _only_user(node)
    added = _made_by(softmax, 0, "Add")
    scores = _made_by(added or softmax, 0, "MatMul")
    scaled = _made_by(scores, 0, "Mul") if scores is not None else None
    if merged is None or scores is None or scaled is None or not _alone(softmax, added, scores, scaled):
        return None
    query, key, value = _before(scaled, 0, _SPLIT), _before(scores, 1, _SPLIT_KEYS), _before(node, 1, _SPLIT)
    scale, bias = _number(scaled.inputs[1]), added.inputs[1] if added is not None else None
    if query is None or key is None or value is None or scale is None or not _is(merged, _SPLIT):
        return None
    sizes = _heads_and_width(query)
    if sizes is None or {_heads_and_width(key), _heads_and_width(value)} != {sizes} or not _fits(bias):
        return None
    return _Attention(
        query=query, key=key, value=value, bias=bias, scale=scale, heads=sizes[0], width=sizes[1], merged=merged
    )


def _replace(model: ir.Model, one: _Attention) -> None:
    import onnx_ir as ir

    graph, name = model.graph, one.merged.outputs[0].name
    flat, split = _constant(graph, f"{name}_flat", [0, 0, -1]), _constant(graph, f"{name}_split", [0, 0, one.heads, -1])
    inputs = [ir.node("Reshape", [value, flat]) for value in (one.query, one.key, one.value)]
    fused = ir.node(
        "MultiHeadAttention",
        [*(made.outputs[0] for made in inputs), None, None, one.bias],
        domain=DOMAIN,
        attributes={"num_heads": one.heads, "scale": one.scale},
    )
    last = ir.node("Reshape", [fused.outputs[0], split])
    for index, made in enumerate((*inputs, fused)):
        made.outputs[0].name = f"{name}_{index}"
    old, new = one.merged.outputs[0], last.outputs[0]
    new.name, new.type, new.shape = old.name, old.type, old.shape
    ir.convenience.replace_nodes_and_values(graph, one.merged, [one.merged], [*inputs, fused, last], [old], [new])


def _constant(graph: ir.Graph, name: str, values: list[int]) -> ir.Value:
    import onnx_ir as ir

    tensor = ir.tensor(np.array(values, dtype=np.int64), name=name)
    value = ir.Value(name=name, const_value=tensor, type=ir.TensorType(tensor.dtype), shape=ir.Shape([len(values)]))
    graph.register_initializer(value)
    return value


def _made_by(node: ir.Node, index: int, op_type: str) -> ir.Node | None:
    """The node of that type which makes an input of this one."""
    value = node.inputs[index] if index < len(node.inputs) else None
    made = value.producer() if value is not None else None
    return made if made is not None and made.op_type == op_type and not made.domain else None


def _only_user(node: ir.Node) -> ir.Node | None:
    users = [use.node for use in node.outputs[0].uses()]
    return users[0] if len(users) == 1 and not node.outputs[0].is_graph_output() else None


def _alone(*nodes: ir.Node | None) -> bool:
    """Whether nobody else reads what these make."""
    return all(_only_user(node) is not None for node in nodes if node is not None)


def _is(node: ir.Node, order: tuple[int, ...]) -> bool:
    permutation = node.attributes.get_ints("perm", ()) if node.op_type == "Transpose" and not node.domain else ()
    return tuple(permutation) == order


def _before(node: ir.Node, index: int, order: tuple[int, ...]) -> ir.Value | None:
    """What becomes an input of the node by that transposition."""
    made = _made_by(node, index, "Transpose")
    return made.inputs[0] if made is not None and _is(made, order) else None


def _number(value: ir.Value | None) -> float | None:
    tensor = value.const_value if value is not None else None
    return float(tensor.numpy().reshape(-1)[0]) if tensor is not None and tensor.size == 1 else None


def _heads_and_width(value: ir.Value) -> tuple[int, int] | None:
    """The last two sizes of four, where they are fixed."""
    sizes = list(value.shape) if value.shape is not None else []
    if len(sizes) != _HEADS or not isinstance(sizes[2], int) or not isinstance(sizes[3], int):
        return None
    return sizes[2], sizes[3]


def _fits(bias: ir.Value | None) -> bool:
    """Whether the operator takes this beside the scores: nothing, or four dimensions."""
    return bias is None or (bias.shape is not None and len(bias.shape) == _HEADS)
