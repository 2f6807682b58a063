"""Operators that read and write by place, which the exporter writes with another answer: means by index, diagonals.

Owns how each is written so that it is torch's answer for any value. Called through onnx_rewrites, in a child process.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from deploy.convert.onnx_numbers import cast, constant, divide, opset

_MATRIX = 2  # dimensions


def places() -> dict[Callable[..., Any], Callable[..., Any]]:
    """How to write them, by torch's operators."""
    import torch

    aten = torch.ops.aten
    return {
        aten.scatter_reduce.two: _reduced_by_index,
        aten.diagonal.default: _diagonal,
        aten.index_put.default: _put_at,
        aten._unsafe_index_put.default: _put_at,
    }


# The signature is the operator's own, here and below: the exporter reads it.
def _reduced_by_index(self: Any, dim: int, index: Any, src: Any, reduce: str, include_self: bool = True) -> Any:
    """Of a mean, the sum and the count of those that an index names; the exporter leaves the last of them."""
    from onnxscript.function_libs.torch_lib.ops.core import aten_scatter_reduce

    if reduce != "mean" or not self.shape:
        return aten_scatter_reduce(self, dim, index, src, reduce, include_self)
    op, dtype = opset(), self.dtype
    one, none = constant(1, dtype), constant(0, dtype)
    ones, sums = op.Expand(one, op.Shape(index)), self
    counts = op.Expand(one, op.Shape(self))
    if not include_self:
        emptied = op.Expand(none, op.Shape(index))
        sums, counts = (op.ScatterElements(value, index, emptied, axis=dim) for value in (sums, counts))
    # A source may be larger than the index, which names the first of each dimension.
    taken = op.Slice(src, op.Expand(constant(0, index.dtype), op.Shape(op.Shape(index))), op.Shape(index))
    sums = op.ScatterElements(sums, index, taken, axis=dim, reduction="add")
    counts = op.ScatterElements(counts, index, ones, axis=dim, reduction="add")
    for value in (sums, counts):
        value.dtype, value.shape = dtype, self.shape
    return divide(sums, counts, None if dtype.is_floating_point() else "floor")


def _put_at(self: Any, indices: Any, values: Any, accumulate: bool = False) -> Any:
    """ONNX writes at places of 64 bits alone, and `torch.istft` has places of 32, as ids often are."""
    import onnx_ir as ir
    from onnxscript.function_libs.torch_lib.ops.core import aten_index_put

    wide = [one if one is None or one.dtype == ir.DataType.BOOL else cast(one, ir.DataType.INT64) for one in indices]
    return aten_index_put(self, wide, values, accumulate)


def _diagonal(self: Any, offset: int = 0, dim1: int = 0, dim2: int = 1) -> Any:
    """Read where it lies. The exporter sums it with zeros times what is beside it, which infinities make no number."""
    import onnx_ir as ir

    op, rank = opset(), len(self.shape)
    axes = [dim1 % rank, dim2 % rank]
    others = [axis for axis in range(rank) if axis not in axes]
    square = op.Transpose(self, perm=[*others, *axes])
    rows, columns = (op.Shape(self, start=axis, end=axis + 1) for axis in axes)
    zero, below, beside = (op.Constant(value_ints=[number]) for number in (0, max(-offset, 0), max(offset, 0)))
    length = op.Max(op.Min(op.Sub(rows, below), op.Sub(columns, beside)), zero)
    steps = op.Range(
        constant(0, ir.DataType.INT64), op.Squeeze(length, zero), constant(1, ir.DataType.INT64)
    )  # fmt: skip
    at = op.Add(op.Mul(op.Add(steps, below), columns), op.Add(steps, beside))
    flat = op.Reshape(square, op.Constant(value_ints=[*[0] * len(others), -1]))
    return op.Gather(flat, at, axis=rank - _MATRIX)
