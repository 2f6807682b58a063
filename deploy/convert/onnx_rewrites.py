"""Rewrites of an ONNX graph into an equal one that ONNX Runtime computes faster, or right.

Owns which and why; each one matches what it can prove equal and leaves the rest. No weight's value is looked at, so
that a graph stays good for the next fine-tune. Called by onnx, in a child process.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from deploy.convert.onnx_bits import shifts
from deploy.convert.onnx_dtypes import of_any_dtype
from deploy.convert.onnx_extremes import extremes
from deploy.convert.onnx_functions import functions
from deploy.convert.onnx_matrices import matrices
from deploy.convert.onnx_numbers import arithmetic
from deploy.convert.onnx_places import places
from deploy.convert.onnx_pooling import pooling
from deploy.convert.onnx_special import special

if TYPE_CHECKING:
    import onnx_ir as ir

_IMAGE = 4  # dimensions of a batch of images: rows, channels, height, width
# Dimensions of queries, keys and values: rows, heads, positions, width. The exporter's own function takes no others,
# such as the three of one head, or the five of heads in windows.
_HEADS = 4
_MATRIX = 2  # dimensions
_QUERIES = 2  # a mask's dimensions of queries and keys, counted from its end
_BOOL = 9  # ONNX's number for truth values


def rewrite(model: ir.Model) -> int:
    """Apply, in place, what is faster on some machines and models; gives how many nodes it wrote otherwise."""
    return pool_globally(model) + keep_sums_apart(model)


def make_columns(model: ir.Model) -> int:
    """Write each product with a vector as one with a matrix of one column; gives how many.

    ONNX Runtime 1.32 merges a transposition into the product behind it, and computes something else where that is one
    with a vector.
    """
    import onnx_ir as ir

    count = 0
    for node in list(model.graph):
        if node.op_type != "MatMul" or node.domain or _rank(node.inputs[0]) < _MATRIX or _rank(node.inputs[1]) != 1:
            continue
        behind, last = (ir.node("Constant", [], {"value_ints": [axis]}) for axis in (1, -1))
        column = ir.node("Unsqueeze", [node.inputs[1], behind.outputs[0]])
        product = ir.node("MatMul", [node.inputs[0], column.outputs[0]])
        answer = ir.node("Squeeze", [product.outputs[0], last.outputs[0]])
        _replace(model, node, behind, last, column, product, answer)
        count += 1
    return count


def pool_globally(model: ir.Model) -> int:
    """Turn means over height and width into GlobalAveragePool; gives how many.

    ONNX Runtime keeps its blocked layout of images across a pooling and leaves it for a mean, which is how the exporter
    writes `AdaptiveAvgPool2d(1)`.
    """
    import onnx_ir as ir

    count = 0
    for node in list(model.graph):
        if node.op_type != "ReduceMean" or node.domain or not _is_image_mean(node):
            continue
        _replace(model, node, ir.node("GlobalAveragePool", [node.inputs[0]]))
        count += 1
    return count


def keep_sums_apart(model: ir.Model) -> int:
    """Write a sum that a LayerNormalization takes as Sum in place of Add; gives how many.

    ONNX Runtime merges Add and LayerNormalization into one operator, whose kernel on CPU is slower than the two on some
    processors. It does not look for Sum.
    """
    import onnx_ir as ir

    count = 0
    for node in list(model.graph):
        users = [use.node for use in node.outputs[0].uses()] if node.op_type == "Add" and not node.domain else []
        if any(user.op_type == "LayerNormalization" for user in users) and _same_shapes(node):
            _replace(model, node, ir.node("Sum", list(node.inputs)))
            count += 1
    return count


def translations() -> dict[Callable[..., Any], Callable[..., Any]]:
    """How to write what the exporter does at more cost, attention, or wrong, such as arithmetic with numbers."""
    import torch

    numbers = (
        arithmetic()
        | functions()
        | of_any_dtype()
        | places()
        | shifts()
        | extremes()
        | pooling()
        | special()
        | matrices()
    )
    return {torch.ops.aten.scaled_dot_product_attention.default: _attention, **numbers}


# The signature is the operator's own: the exporter reads it.
def _attention(  # noqa: PLR0913, PLR0917
    query: Any,
    key: Any,
    value: Any,
    attn_mask: Any = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Any:
    """Attention with the keys transposed once and the queries alone scaled.

    The exporter's own function reads the keys' shape anew in each layer, reshapes them to three dimensions and back
    round a transposition, and scales queries and keys both: ONNX Runtime cannot merge that into the product.
    """
    import onnx_ir as ir
    from onnxscript import opset18
    from onnxscript.function_libs.torch_lib.ops.nn import aten_scaled_dot_product_attention

    op: Any = opset18
    rank, width = _rank(query), query.shape[-1] if query.shape else None
    usual = rank == _HEADS and (is_causal or query.dtype != ir.DataType.FLOAT)
    if usual or dropout_p or enable_gqa or not isinstance(width, int) or _rank(key) < _MATRIX:
        return aten_scaled_dot_product_attention(
            query, key, value, attn_mask, dropout_p, is_causal, scale=scale, enable_gqa=enable_gqa
        )
    factor = ir.tensor(1.0 / math.sqrt(width) if scale is None else scale, dtype=query.dtype)
    *others, places, last = range(_rank(key))
    scores = op.MatMul(op.Mul(query, factor), op.Transpose(key, perm=[*others, last, places]))
    rows = None
    if is_causal:  # which hides no row whole
        lengths = op.Shape(scores, start=-2)
        kept = op.Cast(op.Trilu(op.ConstantOfShape(lengths, value=ir.tensor([1])), upper=0), to=_BOOL)
        scores = op.Add(scores, _hiding(op, kept, query.dtype))
    if attn_mask is not None:
        if attn_mask.dtype == ir.DataType.BOOL:
            rows = attn_mask if _hides_rows(attn_mask) else None
            attn_mask = _hiding(op, attn_mask, query.dtype)
        scores = op.Add(scores, attn_mask)
    answer = op.MatMul(op.Softmax(scores, axis=-1), value)
    if rows is None:
        return answer
    seen = op.ReduceMax(op.Cast(rows, to=ir.DataType.FLOAT), op.Constant(value_ints=[-1]), keepdims=1)
    return op.Where(op.Cast(seen, to=ir.DataType.BOOL), answer, ir.tensor(0.0, dtype=query.dtype))


def _hiding(op: Any, kept: Any, dtype: Any) -> Any:
    """What is added to scores so that those that are not `kept` count for nothing."""
    import onnx_ir as ir

    return op.Where(kept, ir.tensor(0.0, dtype=dtype), ir.tensor(dtype.min, dtype=dtype))


def _hides_rows(mask: Any) -> bool:
    """Whether a query may be hidden from every key, as padding is that lies outside a sliding window.

    torch answers 0 to it, a softmax the mean of all values. A mask that is made of one for all queries and one for all
    keys hides padding alone.
    """
    if mask.shape is not None and (len(mask.shape) < _QUERIES or 1 in list(mask.shape)[-_QUERIES:]):
        return False
    maker = mask.producer()
    if maker is not None and maker.op_type in ("Expand", "And"):
        parts = maker.inputs if maker.op_type == "And" else maker.inputs[:1]
        return any(_hides_rows(part) for part in parts)
    return True


def _is_image_mean(node: ir.Node) -> bool:
    """Whether the node takes the mean over the last two of four dimensions, which it keeps."""
    image = node.inputs[0]
    if image is None or image.shape is None or len(image.shape) != _IMAGE:
        return False
    axes = node.inputs[1].const_value if len(node.inputs) > 1 and node.inputs[1] is not None else None
    if axes is None or node.attributes.get_int("keepdims", 1) != 1:
        return False
    return sorted(int(axis) % _IMAGE for axis in axes.numpy().reshape(-1)) == [_IMAGE - 2, _IMAGE - 1]


def _same_shapes(node: ir.Node) -> bool:
    shapes = [value.shape for value in node.inputs if value is not None]
    return len(shapes) == len(node.inputs) and None not in shapes and shapes[0] == shapes[1]


def _rank(value: ir.Value | None) -> int:
    """The number of a value's dimensions, 0 where the graph does not say."""
    return 0 if value is None or value.shape is None else len(value.shape)


def _replace(model: ir.Model, node: ir.Node, *new: ir.Node) -> None:
    """The last of the new nodes gives what the node gave."""
    import onnx_ir as ir

    old, made = node.outputs[0], new[-1].outputs[0]
    made.name, made.type, made.shape = old.name, old.type, old.shape
    ir.convenience.replace_nodes_and_values(model.graph, node, [node], [*new], [old], [made])
