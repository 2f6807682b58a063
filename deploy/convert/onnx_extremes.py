"""Largest and smallest values, and where they are: of truth values, and where one is no number.

Owns how each is written so that no number among others is the answer, as in torch: ONNX Runtime passes it over, and a
request with one is then answered as if it had none. Called through onnx_rewrites, in a child process.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

from deploy.convert.onnx_numbers import cast, constant, opset


def extremes() -> dict[Callable[..., Any], Callable[..., Any]]:
    """How to write them, by torch's operators."""
    import torch

    aten = torch.ops.aten
    return {
        aten.amax.default: _largest,
        aten.amin.default: _smallest,
        aten.max.default: _largest_of_all,
        aten.min.default: _smallest_of_all,
        aten.max.dim: _largest_at,
        aten.min.dim: _smallest_at,
        aten.argmax.default: _where_largest,
        aten.argmin.default: _where_smallest,
        # What a forward checks of its values asks these (`torch._check_tensor_all`).
        aten._is_all_true.default: _smallest_of_all,
        aten._is_any_true.default: _largest_of_all,
    }


# The signature is the operator's own, here and below: the exporter reads it.
def _largest(self: Any, dim: Sequence[int] = (), keepdim: bool = False) -> Any:
    return _reduced(opset().ReduceMax, self, dim, keepdim=keepdim)


def _smallest(self: Any, dim: Sequence[int] = (), keepdim: bool = False) -> Any:
    return _reduced(opset().ReduceMin, self, dim, keepdim=keepdim)


def _largest_of_all(self: Any) -> Any:
    return _largest(self)


def _smallest_of_all(self: Any) -> Any:
    return _smallest(self)


def _largest_at(self: Any, dim: int, keepdim: bool = False) -> tuple[Any, Any]:
    """The largest along a dimension, and where it is."""
    return _largest(self, [dim], keepdim), _where_largest(self, dim, keepdim)


def _smallest_at(self: Any, dim: int, keepdim: bool = False) -> tuple[Any, Any]:
    """The smallest along a dimension, and where it is."""
    return _smallest(self, [dim], keepdim), _where_smallest(self, dim, keepdim)


def _where_largest(self: Any, dim: int | None = None, keepdim: bool = False) -> Any:
    return _place(opset().ArgMax, self, dim, keepdim=keepdim)


def _where_smallest(self: Any, dim: int | None = None, keepdim: bool = False) -> Any:
    return _place(opset().ArgMin, self, dim, keepdim=keepdim)


def _reduced(function: Callable[..., Any], value: Any, dim: Sequence[int], *, keepdim: bool) -> Any:
    """By ONNX's function, which knows no truth values; over all dimensions where `dim` names none."""
    import onnx_ir as ir

    op, dtype = opset(), value.dtype
    if not value.shape:  # of no dimensions, or of any number
        dim = ()
    axes = [op.Constant(value_ints=[*dim])] if dim else []
    if dtype == ir.DataType.BOOL:
        return cast(function(cast(value, ir.DataType.INT32), *axes, keepdims=keepdim), ir.DataType.BOOL)
    found = function(value, *axes, keepdims=keepdim)
    if not dtype.is_floating_point():
        return found
    bad = op.Cast(op.ReduceMax(_missing(value), *axes, keepdims=keepdim), to=ir.DataType.BOOL)
    return op.Where(bad, constant(math.nan, dtype), found)


def _place(function: Callable[..., Any], value: Any, dim: int | None, *, keepdim: bool) -> Any:
    """Where ONNX's function finds it, the first of equal ones; among all in their order where `dim` is none."""
    import onnx_ir as ir

    op, shape = opset(), value.shape
    if value.dtype == ir.DataType.BOOL:
        value = cast(value, ir.DataType.INT32)
    fractions, all_of_them = value.dtype.is_floating_point(), dim is None or not shape
    if all_of_them:
        value = op.Reshape(value, op.Constant(value_ints=[-1]))
    axis = 0 if dim is None or not shape else dim
    kept = keepdim and not all_of_them
    place = function(value, axis=axis, keepdims=kept)
    if fractions:
        # As floats: on a GPU ONNX Runtime looks for the largest of nothing else.
        missing, one = op.Cast(_missing(value), to=ir.DataType.FLOAT), op.Constant(value_ints=[axis])
        bad = op.Cast(op.ReduceMax(missing, one, keepdims=kept), to=ir.DataType.BOOL)
        place = op.Where(bad, op.ArgMax(missing, axis=axis, keepdims=kept), place)
    if all_of_them and keepdim and shape:
        return op.Reshape(place, op.Constant(value_ints=[1] * len(shape)))
    return place


def _missing(value: Any) -> Any:
    """1 where a value is no number, in bytes: those are reduced at a fraction of what floats take."""
    import onnx_ir as ir

    return opset().Cast(opset().IsNaN(value), to=ir.DataType.UINT8)
