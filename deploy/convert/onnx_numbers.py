"""Arithmetic of tensors and numbers that the exporter writes with another answer, or not at all.

Owns how each is written, above all where integers meet a number with a fraction: torch answers with floats then, and
the exporter keeps the integers. Called through onnx_rewrites, in a child process.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch.export import ExportedProgram


def arithmetic() -> dict[Callable[..., Any], Callable[..., Any]]:
    """How to write `1.0 - mask`, `//`, `%`, rounded divisions and signs, by torch's operators."""
    import torch

    aten = torch.ops.aten
    return {
        aten.rsub.Scalar: _from_number,
        aten.remainder.Scalar: _remainder,
        aten.remainder.Tensor: _remainder,
        aten.remainder.Scalar_Tensor: _remainder,
        aten.fmod.Scalar: _left_over,
        aten.fmod.Tensor: _left_over,
        aten.floor_divide.default: _floor_divide,
        aten.floor_divide.Scalar: _floor_divide,
        aten.div.Tensor_mode: divide,
        aten.div.Scalar_mode: divide,
        aten.copysign.Scalar: _with_sign,
        aten.copysign.Tensor: _with_sign,
        aten.floor.default: _floor,
        aten.ceil.default: _ceil,
        aten.round.default: _round,
        aten.trunc.default: _trunc,
        aten.isin.Tensor_Tensor: _is_in,
        aten.pow.Tensor_Tensor: _power,
        aten.pow.Scalar: _power,
        aten.pow.Tensor_Scalar: _power,
    }


def numbers_as_tensors(exported: ExportedProgram) -> None:
    """Write, in place, the number of `7.5 // counts` as a tensor: the exporter knows the operator for tensors alone."""
    import torch

    graph = exported.graph_module.graph
    divisions = [node for node in graph.nodes if node.target is torch.ops.aten.floor_divide.default]
    of_numbers = [node for node in divisions if isinstance(node.args[0], int | float)]
    for node in of_numbers:
        value = node.meta["val"]
        with graph.inserting_before(node):
            number = graph.call_function(torch.ops.aten.scalar_tensor.default, (node.args[0],), {"dtype": value.dtype})
        with value.fake_mode:
            number.meta["val"] = torch.scalar_tensor(node.args[0], dtype=value.dtype)
        node.args = (number, *node.args[1:])
    if of_numbers:
        exported.graph_module.recompile()


# The signature is the operator's own, here and below: the exporter reads it.
def _from_number(self: Any, other: float, alpha: float = 1) -> Any:
    """A number less a tensor, `1.0 - mask`: of integers the exporter makes a subtraction that torch does not have."""
    number, tensor, dtype = alike(other, self, extra=alpha)
    subtracted = tensor if alpha == 1 else opset().Mul(tensor, constant(alpha, dtype))
    return opset().Sub(number, subtracted)


def _remainder(self: Any, other: Any) -> Any:
    """What is left of a division, with the sign of the divisor; exact, as `a - floor(a / b) * b` is not."""
    op, (dividend, divisor, dtype) = opset(), alike(self, other)
    if not dtype.is_floating_point():
        return op.Mod(dividend, divisor)
    left = op.Mod(dividend, divisor, fmod=1)
    return op.Where(_off(left, divisor, dtype), op.Add(left, divisor), left)


def _left_over(self: Any, other: Any) -> Any:
    """What is left of a division, with the sign of what is divided."""
    dividend, divisor, _ = alike(self, other)
    return opset().Mod(dividend, divisor, fmod=1)


def _floor_divide(self: Any, other: Any) -> Any:
    """The quotient's floor as torch has it, by the remainder: that of 1.0 and 0.1 is 9, as in Python, not 10."""
    op, (dividend, divisor, dtype) = opset(), alike(self, other)
    if not dtype.is_signed():
        return op.Div(dividend, divisor)
    left = op.Mod(dividend, divisor, fmod=1)
    less = op.Cast(_off(left, divisor, dtype), to=dtype)
    if not dtype.is_floating_point():
        return op.Sub(op.Div(dividend, divisor), less)
    whole = op.Round(op.Sub(op.Div(op.Sub(dividend, left), divisor), less))  # a whole number but for rounding
    return op.Where(op.Equal(divisor, constant(0, dtype)), op.Div(dividend, divisor), whole)


def divide(self: Any, other: Any, rounding_mode: str | None = None) -> Any:
    """A division that is rounded down, towards zero, or not; of integers the exporter makes one of float32."""
    if rounding_mode == "floor":
        return _floor_divide(self, other)
    op, (dividend, divisor, dtype) = opset(), alike(self, other, fraction=rounding_mode is None)
    quotient = op.Div(dividend, divisor)
    return quotient if rounding_mode is None else _truncate(quotient, dtype)


def _truncate(value: Any, dtype: Any) -> Any:
    op = opset()
    if not dtype.is_floating_point():
        return value
    return op.Where(op.Less(value, constant(0, dtype)), op.Ceil(value), op.Floor(value))


def _power(self: Any, exponent: Any) -> Any:
    """Of integers to a power of fractions the exporter makes integers; ONNX Runtime rounds integers beyond 2^53."""
    base, power, dtype = alike(self, exponent)
    return opset().Pow(base, power) if dtype.is_floating_point() else _whole_power(base, power, dtype)


def _whole_power(base: Any, power: Any, dtype: Any) -> Any:
    """By squares, as torch has it: of two and more, powers from 64 on have no bit left that counts."""
    import onnx_ir as ir

    op, wide = opset(), ir.DataType.INT64
    square, left = (op.Cast(value, to=wide) for value in (base, power))
    one, two, most = (constant(number, wide) for number in (1, 2, 64))
    usual = op.And(op.GreaterOrEqual(left, constant(0, wide)), op.Less(left, most))
    otherwise, answer = op.Pow(square, left), one
    for _ in range(6):  # bits of a power below 64
        answer = op.Where(op.Equal(op.Mod(left, two), one), op.Mul(answer, square), answer)
        square, left = op.Mul(square, square), op.Div(left, two)
    return op.Cast(op.Where(usual, answer, otherwise), to=dtype)


# Integers are whole, and ONNX does not round them.
def _floor(self: Any) -> Any:
    return opset().Floor(self) if self.dtype.is_floating_point() else opset().Identity(self)


def _ceil(self: Any) -> Any:
    return opset().Ceil(self) if self.dtype.is_floating_point() else opset().Identity(self)


def _round(self: Any) -> Any:
    return opset().Round(self) if self.dtype.is_floating_point() else opset().Identity(self)


def _trunc(self: Any) -> Any:
    return _truncate(self, self.dtype) if self.dtype.is_floating_point() else opset().Identity(self)


def _is_in(elements: Any, test_elements: Any, assume_unique: bool = False, invert: bool = False) -> Any:
    """Whether each element is one of the others, such as the ids of special tokens. `assume_unique` changes nothing."""
    import onnx_ir as ir

    op = opset()
    first, second, _ = alike(elements, test_elements)
    last, flat = op.Constant(value_ints=[-1]), op.Reshape(second, op.Constant(value_ints=[-1]))
    equal = op.Cast(op.Equal(op.Unsqueeze(first, last), flat), to=ir.DataType.FLOAT)
    found = op.Greater(op.ReduceMax(equal, last, keepdims=0), constant(0, ir.DataType.FLOAT))  # -inf of none
    return op.Not(found) if invert else found


def _with_sign(self: Any, other: Any) -> Any:
    """The tensor's size with the other's sign; zeros have one too."""
    op, (value, sign, dtype) = opset(), alike(self, other, fraction=True)
    size = op.Abs(value)
    if isinstance(other, int | float):
        return op.Neg(size) if math.copysign(1, other) < 0 else size
    return op.Where(below_zero(sign, dtype), op.Neg(size), size)


def _off(left: Any, divisor: Any, dtype: Any) -> Any:
    """Whether what is left of a division has another sign than the divisor: the quotient's floor is one less then."""
    op, zero = opset(), constant(0, dtype)
    return op.And(op.Not(op.Equal(left, zero)), op.Xor(op.Less(left, zero), op.Less(divisor, zero)))


def below_zero(value: Any, dtype: Any) -> Any:
    """Whether each is below zero, the zero that has a sign too."""
    op, zero = opset(), constant(0, dtype)
    return op.Or(op.Less(value, zero), op.Less(op.Reciprocal(value), zero))


def alike(first: Any, second: Any, *, extra: float = 0, fraction: bool = False) -> tuple[Any, Any, Any]:
    """Both as tensors of the dtype that torch computes with, and that; `fraction`: one that holds fractions.

    One of them is a tensor; of a number it matters whether it is written with a point, as of an `extra` factor.
    """
    import onnx_ir as ir

    tensors = [value for value in (first, second) if not isinstance(value, int | float)]
    sized = [value.dtype for value in tensors if value.shape is None or len(value.shape)]
    dtypes = sized or [value.dtype for value in tensors]
    # A tensor without dimensions counts as a number does: it makes floats of integers, and nothing else.
    floats = [dtype for dtype in dtypes if dtype.is_floating_point()] or [
        value.dtype for value in tensors if value.dtype.is_floating_point()
    ]
    if not floats and (fraction or any(isinstance(value, float) for value in (first, second, extra))):
        floats = [ir.DataType.FLOAT]
    wanted = max(floats or dtypes, key=lambda dtype: dtype.itemsize)
    if wanted == ir.DataType.BOOL:
        wanted = ir.DataType.INT64
    if {ir.DataType.UINT8, ir.DataType.INT8} <= {*dtypes} and not floats:
        wanted = ir.DataType.INT16 if wanted.itemsize == 1 else wanted

    def same(value: Any) -> Any:
        if isinstance(value, int | float):
            return constant(value, wanted)
        return cast(value, wanted)

    return same(first), same(second), wanted


def cast(value: Any, dtype: Any) -> Any:
    """The same in a dtype, which it and its shape then tell: the exporter's own functions ask both of their inputs."""
    if value.dtype == dtype:
        return value
    made = opset().Cast(value, to=dtype)
    made.dtype, made.shape = dtype, value.shape
    return made


def constant(value: float, dtype: Any) -> Any:
    """A number of a dtype, without dimensions."""
    import onnx_ir as ir

    return ir.tensor(value, dtype=dtype)


def opset() -> Any:
    """The operators that graphs are written with."""
    from onnxscript import opset18

    return opset18
