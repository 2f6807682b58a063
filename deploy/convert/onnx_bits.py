"""Shifts of bits, by numbers and by tensors, as in unpacking weights or flags of bytes.

Owns how they are written: ONNX shifts integers without a sign only, and the exporter writes no shift by a tensor.
Called through onnx_rewrites, in a child process.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from deploy.convert.onnx_numbers import alike, constant, opset

_MOST = 62  # the greatest power of two among integers of 64 bits


def shifts() -> dict[Callable[..., Any], Callable[..., Any]]:
    """How to write `<<` and `>>`, by torch's operators."""
    import torch

    aten = torch.ops.aten
    left = (aten.bitwise_left_shift, aten.__lshift__)
    right = (aten.bitwise_right_shift, aten.__rshift__)
    named = dict.fromkeys(left, _left) | dict.fromkeys(right, _right)
    return {
        getattr(packet, name): function
        for packet, function in named.items()
        for name in packet.overloads()
        if name in ("Tensor", "Scalar", "Tensor_Scalar", "Scalar_Tensor")
    }


# The signature is the operator's own, here and below: the exporter reads it.
def _left(self: Any, other: Any) -> Any:
    """Each times a power of two; what is shifted out is lost."""
    import onnx_ir as ir

    op, (value, places, dtype) = opset(), _wide(self, other)
    # Two factors: 2 ** 63 is negative.
    shifted = op.Mul(op.Mul(value, _power(places)), _power(op.Sub(places, _number(_MOST))))
    return op.Cast(op.Where(_within(places, ir.DataType.INT64), shifted, _number(0)), to=dtype)


def _right(self: Any, other: Any) -> Any:
    """The floor of each by a power of two, so that the sign stays."""
    op, (value, places, dtype) = opset(), _wide(self, other)
    power = _power(places)
    floor = op.Div(op.Sub(value, op.Mod(value, power)), power)
    sign = op.Where(op.Less(value, _number(0)), _number(-1), _number(0))
    kept = op.And(_within(places, dtype), op.LessOrEqual(places, _number(_MOST)))
    return op.Cast(op.Where(kept, floor, sign), to=dtype)


def _wide(value: Any, places: Any) -> tuple[Any, Any, Any]:
    """Both in 64 bits, and the dtype of the answer."""
    import onnx_ir as ir

    def wide(one: Any) -> Any:
        return _number(one) if isinstance(one, int) else opset().Cast(one, to=ir.DataType.INT64)

    return wide(value), wide(places), alike(value, places)[2]


def _within(places: Any, dtype: Any) -> Any:
    """Whether an integer of this dtype has so many bits: torch leaves nothing else, or the sign."""
    op = opset()
    return op.And(op.GreaterOrEqual(places, _number(0)), op.Less(places, _number(8 * dtype.itemsize)))


def _power(places: Any) -> Any:
    """Two to the power of so many places, from none to 62."""
    import onnx_ir as ir

    op = opset()
    table = ir.tensor([2**place for place in range(_MOST + 1)], dtype=ir.DataType.INT64)
    return op.Gather(op.Identity(table), op.Clip(places, _number(0), _number(_MOST)), axis=0)


def _number(value: int) -> Any:
    import onnx_ir as ir

    return constant(value, ir.DataType.INT64)
