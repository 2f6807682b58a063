"""Inverses of small matrices and what solves small systems, which ONNX has no operator of: camera and pose geometry.

Owns how they are written: by Gauss and Jordan with the largest pivot, step by step, in float64. Called through
onnx_rewrites, in a child process.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from deploy.convert.onnx_numbers import constant, opset
from deploy.errors import UnfinishedError

_LARGEST = 8  # rows: each is a dozen operators of its own


def matrices() -> dict[Callable[..., Any], Callable[..., Any]]:
    """How to write them, by torch's operators."""
    import torch

    aten = torch.ops.aten
    return {
        aten.linalg_inv.default: _inverse,
        aten.inverse.default: _inverse,
        aten.linalg_solve.default: _solution,
    }


# The signature is the operator's own, here and below: the exporter reads it.
def _inverse(A: Any) -> Any:  # noqa: N803
    """Torch raises an error for a matrix that has none; here it gives infinities or no numbers."""
    import numpy as np
    import onnx_ir as ir

    rows = _rows(A)
    op, wide = opset(), ir.DataType.DOUBLE
    unit = op.Expand(ir.tensor(np.eye(rows)), op.Shape(A))
    return _eliminated(op.Cast(A, to=wide), unit, rows, A.dtype)


def _solution(A: Any, B: Any, left: bool = True) -> Any:  # noqa: N803
    """Of `A @ X = B`, or of `X @ A = B` if not `left`."""
    import onnx_ir as ir

    rows = _rows(A)
    op, wide, last = opset(), ir.DataType.DOUBLE, opset().Constant(value_ints=[-1])
    square, right = op.Cast(A, to=wide), op.Cast(B, to=wide)
    single = len(B.shape) == 1 or (len(B.shape) == len(A.shape) - 1 and list(B.shape) == list(A.shape)[:-1])
    if single:
        right = op.Unsqueeze(right, last)
    turned = [*range(len(A.shape) - 2), len(A.shape) - 1, len(A.shape) - 2]
    if not left:
        if single or len(B.shape) != len(A.shape):
            raise UnfinishedError("ONNX has no linalg.solve from the right of tensors of different ranks")
        square, right = op.Transpose(square, perm=turned), op.Transpose(right, perm=turned)
    found = _eliminated(square, right, rows, A.dtype)
    if not left:
        found = op.Transpose(found, perm=turned)
    return op.Squeeze(found, last) if single else found


def _eliminated(square: Any, right: Any, rows: int, dtype: Any) -> Any:
    """What is left of the right side, in `dtype`, once the square one is made that of ones on the diagonal."""
    import numpy as np
    import onnx_ir as ir

    op, nothing = opset(), constant(0, ir.DataType.DOUBLE)
    down = op.Constant(value_ints=[-2])
    places = ir.tensor(np.arange(rows, dtype=np.int64).reshape(rows, 1))

    def column(value: Any, step: int) -> Any:
        return op.Slice(value, *(op.Constant(value_ints=[place]) for place in (step, step + 1, -1)))

    for step in range(rows):
        here = ir.tensor(np.arange(rows).reshape(rows, 1) == step)
        open_rows = ir.tensor(np.arange(rows).reshape(rows, 1) >= step)
        size = op.Where(open_rows, op.Abs(column(square, step)), constant(-1, ir.DataType.DOUBLE))
        pivot = op.Equal(op.ArgMax(size, axis=-2, keepdims=1), places)

        def exchanged(value: Any, pivot: Any = pivot, here: Any = here) -> tuple[Any, Any]:
            """With the pivot's row in this step's place, and that row."""
            chosen, current = (
                op.ReduceSum(op.Where(mask, value, nothing), down, keepdims=1) for mask in (pivot, here)
            )  # fmt: skip
            return op.Where(here, chosen, op.Where(pivot, current, value)), chosen

        (square, first), (right, second) = exchanged(square), exchanged(right)
        divisor, factor = column(first, step), column(square, step)
        square, right = (
            op.Where(here, op.Div(row, divisor), op.Sub(value, op.Mul(factor, op.Div(row, divisor))))
            for value, row in ((square, first), (right, second))
        )
    return op.Cast(right, to=dtype)


def _rows(matrix: Any) -> int:
    """How many rows it has. Raises UnfinishedError if those are too many to be written one by one."""
    rows = matrix.shape[-1]
    if not isinstance(rows, int) or rows > _LARGEST:
        raise UnfinishedError(f"ONNX has no inverse of a matrix of {rows} rows; up to {_LARGEST} it is written out")
    return rows
