"""Functions of statistics that the exporter writes with another answer, or not at all: error functions, gamma.

Owns how each is written; those of gamma in float64, whose kernels ONNX Runtime has and whose rounding is far below
eager's. Called through onnx_rewrites, in a child process.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from deploy.convert.onnx_numbers import constant, opset

# erfc(x) = t * exp(-x * x + P(t)) with t = 2 / (2 + x), x >= 0: Numerical Recipes' erfcc, within 1.2e-7 everywhere.
_ERFC = (
    -1.26551223, 1.00002368, 0.37409196, 0.09678418, -0.18628806, 0.27886807, -1.13520398, 1.48851587, -0.82215223,
    0.17087277,
)  # fmt: skip
# erfinv(x) = x * P(w), w = -log(1 - x * x): M. Giles, "Approximating the erfinv function"; below w = 5, and from there.
_ERFINV = (
    1.50140941, 0.246640727, -0.00417768164, -0.00125372503, 0.000218580870, -4.39150654e-06, -3.5233877e-06,
    3.43273939e-07, 2.81022636e-08,
)  # fmt: skip
_ERFINV_TAIL = (
    2.83297682, 1.00167406, 0.00943887047, -0.0076224613, 0.00573950773, -0.00367342844, 0.00134934322,
    0.000100950558, -0.000200214257,
)  # fmt: skip
_TAIL = 5
# log(gamma(x)) by Lanczos with g = 7, nine terms: within 1e-14 in float64.
_LANCZOS = (
    676.5203681218851, -1259.1392167224028, 771.32342877765313, -176.61502916214059, 12.507343278686905,
    -0.13857109526572012, 9.9843695780195716e-6, 1.5056327351493116e-7,
)  # fmt: skip
_SHIFTED = 7.5  # g + 1/2
# digamma(x) = log(x) - 1 / 2x - the sum of these over powers of x * x, from `_FAR` on.
_DIGAMMA = (1 / 12, -1 / 120, 1 / 252, -1 / 240, 1 / 132, -691 / 32760, 1 / 12)
_FAR = 10


def special() -> dict[Callable[..., Any], Callable[..., Any]]:
    """How to write them, by torch's operators."""
    import torch

    aten = torch.ops.aten
    return {
        aten.special_erfcx.default: _scaled_complement,
        aten.erfinv.default: _inverse_of_error,
        aten.lgamma.default: _log_of_gamma,
        aten.digamma.default: _slope_of_log_of_gamma,
        aten.log.default: _log,
    }


# The signature is the operator's own, here and below: the exporter reads it.
def _scaled_complement(self: Any) -> Any:
    """`exp(x * x) * erfc(x)`, whose factors leave float32 from 9 on."""
    op, dtype = opset(), self.dtype
    size, two = op.Abs(self), constant(2, dtype)
    part = op.Div(two, op.Add(two, size))
    right = op.Mul(part, op.Exp(_polynomial(part, _ERFC, dtype)))
    left = op.Sub(op.Mul(two, op.Exp(op.Mul(size, size))), right)
    return op.Where(op.Less(self, constant(0, dtype)), left, right)


def _inverse_of_error(self: Any) -> Any:
    """The x of which this is the error function."""

    def written(value: Any, dtype: Any) -> Any:
        op, one = opset(), constant(1, dtype)
        width = op.Neg(op.Log(op.Mul(op.Sub(one, value), op.Add(one, value))))
        near = _polynomial(op.Sub(width, constant(2.5, dtype)), _ERFINV, dtype)
        far = _polynomial(op.Sub(op.Sqrt(width), constant(3, dtype)), _ERFINV_TAIL, dtype)
        factor = op.Where(op.Less(width, constant(_TAIL, dtype)), near, far)
        ends = op.Equal(op.Abs(value), one)
        return op.Where(ends, op.Div(value, op.Sub(one, op.Abs(value))), op.Mul(value, factor))

    return _in_float64(written, self)


def _log_of_gamma(self: Any) -> Any:
    """Below 1/2 by reflection: `log(pi / abs(sin(pi * x))) - lgamma(1 - x)`."""

    def written(value: Any, dtype: Any) -> Any:
        op, one, half = opset(), constant(1, dtype), constant(0.5, dtype)
        low = op.Less(value, half)
        base = op.Sub(op.Where(low, op.Sub(one, value), value), one)
        series = constant(0.99999999999980993, dtype)
        for place, factor in enumerate(_LANCZOS, start=1):
            series = op.Add(series, op.Div(constant(factor, dtype), op.Add(base, constant(place, dtype))))
        moved = op.Add(base, constant(_SHIFTED, dtype))
        power = op.Sub(op.Mul(op.Add(base, half), op.Log(moved)), moved)
        high = op.Add(op.Add(constant(0.5 * math.log(2 * math.pi), dtype), power), op.Log(series))
        turned = op.Abs(op.Sin(op.Mul(constant(math.pi, dtype), op.Sub(value, op.Round(value)))))
        reflected = op.Sub(op.Log(op.Div(constant(math.pi, dtype), turned)), high)
        infinite = op.IsInf(value)
        return op.Where(infinite, op.Abs(value), op.Where(low, reflected, high))

    return _in_float64(written, self)


def _slope_of_log_of_gamma(self: Any) -> Any:
    """By steps to where its series is exact; below 1/2 by reflection: `digamma(1 - x) - pi / tan(pi * x)`."""

    def written(value: Any, dtype: Any) -> Any:
        op, one, zero = opset(), constant(1, dtype), constant(0, dtype)
        low = op.Less(value, constant(0.5, dtype))
        base, steps = op.Where(low, op.Sub(one, value), value), zero
        for place in range(_FAR):
            steps = op.Add(steps, op.Div(one, op.Add(base, constant(place, dtype))))
        far = op.Add(base, constant(_FAR, dtype))
        small = op.Div(one, op.Mul(far, far))
        series = op.Mul(small, _polynomial(small, _DIGAMMA, dtype))
        high = op.Sub(op.Log(far), op.Add(op.Add(op.Div(constant(0.5, dtype), far), series), steps))
        angle = op.Mul(constant(math.pi, dtype), op.Sub(value, op.Round(value)))
        turned = op.Div(op.Mul(constant(math.pi, dtype), op.Cos(angle)), op.Sin(angle))
        none = op.And(op.Equal(angle, zero), op.Less(value, zero))  # at whole numbers below zero
        return op.Where(none, constant(math.nan, dtype), op.Where(low, op.Sub(high, turned), high))

    return _in_float64(written, self)


def _log(self: Any) -> Any:
    """That of a sigmoid by a softplus: below -18 ONNX Runtime's sigmoid is zero, where torch's is not."""
    op, maker = opset(), self.producer()
    if maker is not None and maker.op_type == "Sigmoid" and self.dtype.is_floating_point():
        return op.Neg(op.Softplus(op.Neg(maker.inputs[0])))
    return op.Log(self)


def _in_float64(written: Callable[[Any, Any], Any], value: Any) -> Any:
    """Of integers torch makes floats, and of those their own dtype."""
    import onnx_ir as ir

    op, wide = opset(), ir.DataType.DOUBLE
    dtype = value.dtype if value.dtype.is_floating_point() else ir.DataType.FLOAT
    return op.Cast(written(op.Cast(value, to=wide), wide), to=dtype)


def _polynomial(value: Any, factors: tuple[float, ...], dtype: Any) -> Any:
    """The first factor, the second times the value, the third times its square and so on, by Horner's rule."""
    op, answer = opset(), constant(factors[-1], dtype)
    for factor in reversed(factors[:-1]):
        answer = op.Add(op.Mul(answer, value), constant(factor, dtype))
    return answer
