"""Operators of tensors of dtypes for which ONNX has none: truth values, bytes, several dtypes at once.

Owns how they are written; of other dtypes they are as the exporter has them. Called through onnx_rewrites, in a child.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from deploy.convert.onnx_numbers import alike, cast, opset


def of_any_dtype() -> dict[Callable[..., Any], Callable[..., Any]]:
    """How to write them, by torch's operators."""
    import torch

    aten = torch.ops.aten
    return {
        aten.add.Tensor: _sum,
        aten.amax.default: _largest,
        aten.amin.default: _smallest,
        aten.max.dim: _largest_at,
        aten.min.dim: _smallest_at,
        aten.isnan.default: _is_nan,
        aten.isinf.default: _is_infinite,
        aten.isfinite.default: _is_finite,
        aten.neg.default: _negative,
        aten.stack.default: _stack,
    }


# The signature is the operator's own, here and below: the exporter reads it.
def _sum(self: Any, other: Any, alpha: float = 1) -> Any:
    """Of truth values whether either is one."""
    import onnx_ir as ir

    op = opset()
    if self.dtype == ir.DataType.BOOL and other.dtype == ir.DataType.BOOL:
        return op.Or(self, other) if alpha else op.Identity(self)
    return op.Add(self, other if alpha == 1 else op.Mul(other, op.CastLike(alpha, other)))


def _largest(self: Any, dim: Any = (), keepdim: bool = False) -> Any:
    """Of truth values ONNX knows no maximum."""
    from onnxscript.function_libs.torch_lib.ops.core import aten_amax

    return _of_truths(aten_amax, self, dim, keepdim)


def _smallest(self: Any, dim: Any = (), keepdim: bool = False) -> Any:
    """As the largest."""
    from onnxscript.function_libs.torch_lib.ops.core import aten_amin

    return _of_truths(aten_amin, self, dim, keepdim)


def _of_truths(function: Callable[..., Any], value: Any, dim: Any, keepdim: bool) -> Any:
    import onnx_ir as ir

    if value.dtype != ir.DataType.BOOL:
        return function(value, dim, keepdim)
    return cast(function(cast(value, ir.DataType.INT32), dim, keepdim), ir.DataType.BOOL)


def _largest_at(self: Any, dim: int, keepdim: bool = False) -> tuple[Any, Any]:
    """The largest along a dimension, and where it is."""
    from onnxscript.function_libs.torch_lib.ops.core import aten_max_dim

    return _of_truths_at(aten_max_dim, self, dim, keepdim)


def _smallest_at(self: Any, dim: int, keepdim: bool = False) -> tuple[Any, Any]:
    """As the largest."""
    from onnxscript.function_libs.torch_lib.ops.core import aten_min_dim

    return _of_truths_at(aten_min_dim, self, dim, keepdim)


def _of_truths_at(function: Callable[..., Any], value: Any, dim: int, keepdim: bool) -> tuple[Any, Any]:
    import onnx_ir as ir

    if value.dtype != ir.DataType.BOOL:
        found: tuple[Any, Any] = function(value, dim, keepdim)
        return found
    values, places = function(cast(value, ir.DataType.INT32), dim, keepdim)
    return cast(values, ir.DataType.BOOL), places


def _is_nan(self: Any) -> Any:
    """No integer is."""
    op = opset()
    return op.IsNaN(self) if self.dtype.is_floating_point() else op.Not(_each(self))


def _is_infinite(self: Any) -> Any:
    """No integer is."""
    op = opset()
    return op.IsInf(self) if self.dtype.is_floating_point() else op.Not(_each(self))


def _is_finite(self: Any) -> Any:
    """Every integer is."""
    op = opset()
    return op.Not(op.Or(op.IsNaN(self), op.IsInf(self))) if self.dtype.is_floating_point() else _each(self)


def _each(value: Any) -> Any:
    return opset().Equal(value, value)


def _negative(self: Any) -> Any:
    """Of bytes without a sign ONNX has none."""
    import onnx_ir as ir

    op = opset()
    return op.Neg(self) if self.dtype.is_signed() else cast(op.Neg(cast(self, ir.DataType.INT64)), self.dtype)


def _stack(tensors: Any, dim: int = 0) -> Any:
    """Tensors of several dtypes become one of the widest."""
    op, first = opset(), tensors[0]
    for tensor in tensors[1:]:
        first = first if first.dtype == tensor.dtype else alike(first, tensor)[0]
    return op.Concat(
        *(op.Unsqueeze(cast(tensor, first.dtype), op.Constant(value_ints=[dim])) for tensor in tensors), axis=dim
    )
