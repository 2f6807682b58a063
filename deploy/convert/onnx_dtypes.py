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
