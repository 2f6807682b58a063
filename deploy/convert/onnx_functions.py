"""Functions that the exporter writes with another answer, or not at all: up to each place, by order, angles, halves.

Owns how each is written so that it is torch's answer for any value. Called through onnx_rewrites, in a child process.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any

from deploy.convert.onnx_numbers import alike, below_zero, cast, constant, opset


def functions() -> dict[Callable[..., Any], Callable[..., Any]]:
    """How to write them, by torch's operators."""
    import torch

    aten = torch.ops.aten
    return {
        aten.logaddexp.default: _log_of_sum,
        aten.logaddexp2.default: _binary_log_of_sum,
        aten.log1p.default: _log_of_more_than_one,
        aten.expm1.default: _power_less_one,
        aten.logcumsumexp.default: _log_of_sums,
        aten.cumprod.default: _products,
        aten.cummax.default: _maxima,
        aten.cummin.default: _minima,
        aten.atan2.default: _angle,
        aten.hypot.default: _length,
        aten.mean.dim: _mean,
        aten.softmax.int: _softmax,
        aten.log_softmax.int: _log_softmax,
        aten.searchsorted.Tensor: _places_among,
        aten.sort.default: _sorted,
        aten.sort.stable: _sorted_in_order,
        aten.kthvalue.default: _kth,
        aten.median.dim: _median,
        aten.log_sigmoid.default: _log_sigmoid,
        aten._cdist_forward.default: _distances,
        aten.signbit.default: _has_sign,
        aten.clamp.default: _clamped,
        aten.clamp_min.default: _clamped,
        aten.clamp_max.default: _clamped_above,
        aten.fmax.default: _larger_number,
        aten.fmin.default: _smaller_number,
    }


# The signature is the operator's own, here and below: the exporter reads it.
def _log_of_sum(self: Any, other: Any) -> Any:
    """`log(exp(a) + exp(b))` by the larger of the two: the exporter's own is infinite from 89 on."""
    return _joined(*alike(self, other, fraction=True))


def _binary_log_of_sum(self: Any, other: Any) -> Any:
    """That of powers of two."""
    first, second, dtype = alike(self, other, fraction=True)
    op, unit = opset(), constant(math.log(2), dtype)
    return op.Div(_joined(op.Mul(first, unit), op.Mul(second, unit), dtype), unit)


def _log_of_more_than_one(self: Any) -> Any:
    """`log(1 + x)` of a small x too, which is lost beside the one: what of it was counted is put right by a factor."""
    op, (value, _, dtype) = opset(), alike(self, 1.0)
    one = constant(1, dtype)
    more = op.Add(value, one)
    log = op.Log(more)
    right = op.Mul(log, op.Div(value, op.Sub(more, one)))
    return op.Where(op.Equal(more, one), value, op.Where(_is_small(value, dtype), right, log))


def _power_less_one(self: Any) -> Any:
    """`exp(x) - 1` of a small x too, as above."""
    op, (value, _, dtype) = opset(), alike(self, 1.0)
    one = constant(1, dtype)
    power = op.Exp(value)
    less = op.Sub(power, one)
    right = op.Mul(less, op.Div(value, op.Log(power)))
    return op.Where(op.Equal(power, one), value, op.Where(_is_small(value, dtype), right, less))


def _is_small(value: Any, dtype: Any) -> Any:
    return opset().Less(opset().Abs(value), constant(0.5, dtype))


def _joined(first: Any, second: Any, dtype: Any) -> Any:
    op = opset()
    # Infinities have no difference.
    apart = op.Where(op.Equal(first, second), constant(0, dtype), op.Abs(op.Sub(first, second)))
    return op.Add(op.Max(first, second), op.Softplus(op.Neg(apart)))


def _log_of_sums(self: Any, dim: int) -> Any:
    """That of all up to each place. By one maximum for all, as the exporter has it, small ones before it are lost."""
    join = partial(_joined, dtype=self.dtype)
    return _up_to_each(self, dim, join=join, reduce=opset().ReduceLogSumExp, of_none=-math.inf)


def _products(self: Any, dim: int, dtype: int = -1) -> Any:
    """The product of all up to each place; of integers it has 64 bits."""
    import onnx_ir as ir

    told = None if dtype in (-1, None) else ir.DataType(dtype)
    wanted = told or (self.dtype if self.dtype.is_floating_point() else ir.DataType.INT64)
    value, op = cast(self, wanted), opset()
    return _up_to_each(value, dim, join=op.Mul, reduce=op.ReduceProd, of_none=1)


def _maxima(self: Any, dim: int) -> tuple[Any, Any]:
    """The largest up to each place, and where it last was."""
    op, (shown, last) = opset(), _square(self, dim, of_none=self.dtype.min)
    return op.ReduceMax(shown, _axes(last), keepdims=0), op.ArgMax(shown, axis=last, keepdims=0, select_last_index=1)


def _minima(self: Any, dim: int) -> tuple[Any, Any]:
    """The smallest up to each place, and where it last was."""
    op, (shown, last) = opset(), _square(self, dim, of_none=self.dtype.max)
    return op.ReduceMin(shown, _axes(last), keepdims=0), op.ArgMin(shown, axis=last, keepdims=0, select_last_index=1)


def _up_to_each(value: Any, dim: int, *, join: Callable[..., Any], reduce: Callable[..., Any], of_none: float) -> Any:
    """All up to each place as one: each joined with the one before it, then with that two before, then four.

    Where requests say how many there are, all are reduced at once.
    """
    op, rank = opset(), len(value.shape)
    if not rank:
        return op.Identity(value)
    size, axis, step = value.shape[dim], dim % rank, 1
    if not isinstance(size, int):
        shown, last = _square(value, dim, of_none=of_none)
        return reduce(shown, _axes(last), keepdims=0)
    nothing = constant(of_none, value.dtype)
    while step < size:
        kept = op.Slice(value, *(_axes(place) for place in (0, size - step, axis)))
        pads = [step if place == axis else 0 for place in range(2 * rank)]
        value, step = join(value, op.Pad(kept, op.Constant(value_ints=pads), nothing)), 2 * step
    return value


def _square(value: Any, dim: int, *, of_none: float) -> tuple[Any, int]:
    """A last axis of all values for each place, `of_none` in place of those behind it; and that axis."""
    import onnx_ir as ir

    op, rank = opset(), len(value.shape)
    axis = dim % rank
    others = [place for place in range(rank) if place != axis]
    rows = op.Unsqueeze(op.Transpose(value, perm=[*others, axis]), _axes(rank - 1))
    count = op.Shape(value, start=axis, end=axis + 1)
    ones = op.ConstantOfShape(op.Concat(count, count, axis=0), value=ir.tensor([1]))
    seen = op.Cast(op.Trilu(ones, upper=0), to=ir.DataType.BOOL)
    shown = op.Where(seen, rows, constant(of_none, value.dtype))
    back = [rank - 1 if place == axis else others.index(place) for place in range(rank)]
    return op.Transpose(shown, perm=[*back, rank]), rank


def _angle(self: Any, other: Any) -> Any:
    """The angle of a point; the exporter has that of (-1, 0) below the axis, as if its height were -0.0."""
    op, (height, width, dtype) = opset(), alike(self, other, fraction=True)
    zero = constant(0, dtype)
    ratio = op.Div(op.Abs(height), op.Abs(width))
    steep = op.Where(op.Equal(height, zero), zero, op.Atan(ratio))  # 0 / 0 is none
    size = op.Where(below_zero(width, dtype), op.Sub(constant(math.pi, dtype), steep), steep)
    return op.Where(below_zero(height, dtype), op.Neg(size), size)


def _length(self: Any, other: Any) -> Any:
    """`sqrt(a * a + b * b)` by the larger of the two, whose square may be infinite."""
    op, (first, second, dtype) = opset(), alike(self, other, fraction=True)
    first, second = op.Abs(first), op.Abs(second)
    larger = op.Max(first, second)
    share = op.Where(op.Equal(larger, constant(0, dtype)), larger, op.Div(op.Min(first, second), larger))
    return op.Mul(larger, op.Sqrt(op.Add(op.Mul(share, share), constant(1, dtype))))


def _mean(self: Any, dim: Any, keepdim: bool = False, dtype: int = -1) -> Any:
    """The exporter averages before it takes the dtype that was asked for: of integers that leaves integers."""
    from onnxscript.function_libs.torch_lib.ops.core import aten_mean_dim

    return aten_mean_dim(_told(self, dtype), dim, keepdim)


def _softmax(self: Any, dim: int, dtype: int = -1) -> Any:
    """Computed in the dtype that was asked for, as attention in half precision asks for float32."""
    from onnxscript.function_libs.torch_lib.ops.core import aten_softmax

    return aten_softmax(_told(self, dtype), dim)


def _log_softmax(self: Any, dim: int, dtype: int = -1) -> Any:
    """As softmax."""
    from onnxscript.function_libs.torch_lib.ops.special import aten_special_log_softmax

    return aten_special_log_softmax(_told(self, dtype), dim)


def _places_among(
    sorted_sequence: Any, self: Any, out_int32: bool = False, right: bool = False, side: str | None = None,
    sorter: Any = None,
) -> Any:  # fmt: skip
    """Before how many of the sorted each belongs: how many are less, or no more."""
    import onnx_ir as ir

    op = opset()
    if sorter is not None:
        found = op.GatherElements(sorted_sequence, sorter, axis=-1)
        found.dtype, found.shape = sorted_sequence.dtype, sorted_sequence.shape
        sorted_sequence = found
    borders, values, _ = alike(sorted_sequence, self)
    borders, values = op.Unsqueeze(borders, _axes(-2)), op.Unsqueeze(values, _axes(-1))
    before = op.LessOrEqual(borders, values) if right or side == "right" else op.Less(borders, values)
    if len(sorted_sequence.shape) == 1:  # one for all values, of any number of dimensions
        before = op.Reshape(before, op.Concat(op.Shape(self), _axes(-1), axis=0))
    counts = op.ReduceSum(op.Cast(before, to=ir.DataType.INT64), _axes(-1), keepdims=0)
    return op.Cast(counts, to=ir.DataType.INT32) if out_int32 else counts


def _sorted(self: Any, dim: int = -1, descending: bool = False) -> tuple[Any, Any]:
    """In order of size, and where each was; of equal ones the first comes first, as torch has it."""
    import onnx_ir as ir
    from onnxscript.function_libs.torch_lib.ops.core import aten_sort

    usual = self.dtype.is_floating_point() or self.dtype in (ir.DataType.INT64, ir.DataType.INT32)
    values, at = aten_sort(self if usual else cast(self, ir.DataType.INT32), dim, descending)
    return (values if usual else opset().Cast(values, to=self.dtype)), at


def _sorted_in_order(
    self: Any, stable: bool | None = None, dim: int = -1, descending: bool = False
) -> tuple[Any, Any]:  # fmt: skip
    """The same: ONNX knows no other order. `stable` changes nothing."""
    return _sorted(self, dim, descending)


def _kth(self: Any, k: int, dim: int = -1, keepdim: bool = False) -> tuple[Any, Any]:
    """The k-th smallest, and where it is."""
    return _at(self, _axes(k), dim, keepdim=keepdim)


def _median(self: Any, dim: int, keepdim: bool = False) -> tuple[Any, Any]:
    """The middle one by size, the lower of two."""
    op, axis = opset(), dim % len(self.shape)
    one, two = (_axes(number) for number in (1, 2))
    return _at(self, op.Div(op.Add(op.Shape(self, start=axis, end=axis + 1), one), two), dim, keepdim=keepdim)


def _at(value: Any, count: Any, dim: int, *, keepdim: bool) -> tuple[Any, Any]:
    """The last of the `count` smallest along a dimension, and where it is."""
    op, axis = opset(), dim % len(value.shape)
    last = op.Sub(count, _axes(1))
    values, places = (op.Gather(held, last, axis=axis) for held in op.TopK(value, count, axis=axis, largest=0))
    return (values, places) if keepdim else (op.Squeeze(values, _axes(axis)), op.Squeeze(places, _axes(axis)))


def _distances(x1: Any, x2: Any, p: float, compute_mode: int | None = None) -> Any:
    """Between each row of one and each of the other."""
    op = opset()
    apart, last = op.Sub(op.Unsqueeze(x1, _axes(-2)), op.Unsqueeze(x2, _axes(-3))), _axes(-1)
    if p == 2:
        return op.ReduceL2(apart, last, keepdims=0)
    size = op.Abs(apart)
    if p == 1:
        return op.ReduceSum(size, last, keepdims=0)
    if p == math.inf:
        return op.ReduceMax(size, last, keepdims=0)
    if p == 0:
        return op.ReduceSum(op.Cast(op.Not(op.Equal(size, constant(0, x1.dtype))), to=x1.dtype), last, keepdims=0)
    return op.Pow(op.ReduceSum(op.Pow(size, constant(p, x1.dtype)), last, keepdims=0), constant(1 / p, x1.dtype))


def _log_sigmoid(self: Any) -> Any:
    """By a softplus: the logarithm of a sigmoid is infinite below -104."""
    op = opset()
    return op.Neg(op.Softplus(op.Neg(self)))


def _has_sign(self: Any) -> Any:
    """-0.0 has one too."""
    op = opset()
    return below_zero(self, self.dtype) if self.dtype.is_floating_point() else op.Less(self, constant(0, self.dtype))


def _clamped(self: Any, min: float | None = None, max: float | None = None) -> Any:
    """Infinity is within bounds that are not given; ONNX Runtime has the largest finite number in place of those."""
    from onnxscript.function_libs.torch_lib.ops.core import aten_clamp

    if self.dtype.is_floating_point():
        min, max = (-math.inf if min is None else min), (math.inf if max is None else max)
    return aten_clamp(self, min, max)


def _clamped_above(self: Any, max: float) -> Any:
    return _clamped(self, None, max)


def _larger_number(self: Any, other: Any) -> Any:
    """The larger of two of which one may be no number."""
    return _number(opset().Max, self, other)


def _smaller_number(self: Any, other: Any) -> Any:
    """The smaller of two of which one may be no number."""
    return _number(opset().Min, self, other)


def _number(choose: Callable[..., Any], one: Any, another: Any) -> Any:
    op, (first, second, dtype) = opset(), alike(one, another)
    if not dtype.is_floating_point():
        return choose(first, second)
    return op.Where(op.IsNaN(first), second, op.Where(op.IsNaN(second), first, choose(first, second)))


def _told(value: Any, dtype: int | None) -> Any:
    """In the dtype that was asked for, if any was."""
    import onnx_ir as ir

    return value if dtype in (-1, None) else cast(value, ir.DataType(dtype))


def _axes(*axes: int) -> Any:
    return opset().Constant(value_ints=[*axes])
