"""Pooling that the exporter writes with another answer, or not at all: sums over a divisor, maxima of uneven windows.

Owns how each is written. Called through onnx_rewrites, in a child process.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

from deploy.convert.onnx_numbers import constant, opset
from deploy.errors import UnfinishedError

_PLANE = 2  # dimensions of an image


def pooling() -> dict[Callable[..., Any], Callable[..., Any]]:
    """How to write them, by torch's operators."""
    import torch

    aten = torch.ops.aten
    return {
        aten.avg_pool2d.default: _means,
        aten.avg_pool3d.default: _means_of_volumes,
        aten.adaptive_max_pool2d.default: _largest_of_windows,
        aten.adaptive_max_pool3d.default: _largest_of_windows,
    }


# The signature is the operator's own, here and below: the exporter reads it.
def _means(  # noqa: PLR0913, PLR0917
    self: Any,
    kernel_size: Sequence[int],
    stride: Sequence[int] = (),
    padding: Sequence[int] = (0, 0),
    ceil_mode: bool = False,
    count_include_pad: bool = True,
    divisor_override: int | None = None,
) -> Any:
    """The exporter forgets a divisor of one's own."""
    from onnxscript.function_libs.torch_lib.ops.nn import aten_avg_pool2d

    if divisor_override is None:
        return aten_avg_pool2d(self, kernel_size, stride, padding, ceil_mode, count_include_pad)
    return _sums(self, kernel_size, stride, padding, ceil_mode=ceil_mode, divisor=divisor_override)


def _means_of_volumes(  # noqa: PLR0913, PLR0917
    self: Any,
    kernel_size: Sequence[int],
    stride: Sequence[int] = (),
    padding: Sequence[int] = (0, 0, 0),
    ceil_mode: bool = False,
    count_include_pad: bool = True,
    divisor_override: int | None = None,
) -> Any:
    """As of images."""
    from onnxscript.function_libs.torch_lib.ops.nn import aten_avg_pool3d

    if divisor_override is None:
        return aten_avg_pool3d(self, kernel_size, stride, padding, ceil_mode, count_include_pad)
    return _sums(self, kernel_size, stride, padding, ceil_mode=ceil_mode, divisor=divisor_override)


def _sums(
    value: Any, kernel_size: Sequence[int], stride: Sequence[int], padding: Sequence[int], *, ceil_mode: bool,
    divisor: int,
) -> Any:  # fmt: skip
    """The sum of each window over the divisor: zeros are laid round, so that each window has all its places."""
    op, rank = opset(), len(kernel_size)
    strides = list(stride) or list(kernel_size)
    around = [*padding] * (rank if len(padding) == 1 else 1)
    behind = list(around)
    if ceil_mode:
        sizes = list(value.shape)[-rank:]
        for axis, (size, kernel, step, pad) in enumerate(zip(sizes, kernel_size, strides, around, strict=True)):
            if not isinstance(size, int):
                raise UnfinishedError("ONNX has no avg_pool with ceil_mode and divisor_override of any size")
            count = math.ceil((size + 2 * pad - kernel) / step) + 1
            if (count - 1) * step >= size + pad:  # a window has to begin within the image or before it
                count -= 1
            behind[axis] = max((count - 1) * step + kernel - size - pad, 0)
    others = [0] * (len(value.shape) - rank)
    pads = op.Constant(value_ints=[*others, *around, *others, *behind])
    whole = op.Pad(value, pads, constant(0, value.dtype)) if any((*around, *behind)) else value
    single = len(value.shape) == rank + 1
    if single:  # without a batch
        whole = op.Unsqueeze(whole, op.Constant(value_ints=[0]))
    mean = op.AveragePool(whole, kernel_shape=list(kernel_size), strides=strides)
    mean = op.Squeeze(mean, op.Constant(value_ints=[0])) if single else mean
    return op.Mul(mean, constant(math.prod(kernel_size) / divisor, value.dtype))


def _largest_of_windows(self: Any, output_size: Sequence[int]) -> tuple[Any, Any]:
    """Of windows that part each dimension as evenly as whole numbers can, and where it is among all, row by row."""
    from onnxscript.function_libs.torch_lib.ops import nn

    rank, count = len(self.shape), len(output_size)
    sizes = list(self.shape)[-count:]
    if all(isinstance(size, int) and size % parts == 0 for size, parts in zip(sizes, output_size, strict=True)):
        kernel = [size // parts for size, parts in zip(sizes, output_size, strict=True)]
        pool = nn.aten_max_pool2d_with_indices if count == _PLANE else nn.aten_max_pool3d_with_indices
        found: tuple[Any, Any] = pool(self, kernel, kernel, [0] * count, [1] * count)
        return found
    op, place, step = opset(), None, _whole(1)
    for axis, size, parts in reversed([*zip(range(rank - count, rank), sizes, output_size, strict=True)]):
        values, places = [], []
        for start, end in _windows(size, parts):
            window = _cut(self, axis, start, end)
            values.append(op.ReduceMax(window, op.Constant(value_ints=[axis])))
            local = op.ArgMax(window, axis=axis)
            at = op.Mul(op.Add(local, _whole(start)), step)
            if place is not None:
                at = op.Add(at, op.GatherElements(_cut(place, axis, start, end), local, axis=axis))
            places.append(at)
        step = op.Mul(step, op.Squeeze(op.Shape(self, start=axis, end=axis + 1)))
        self, place = op.Concat(*values, axis=axis), op.Concat(*places, axis=axis)
    return self, place


def _windows(size: Any, parts: int) -> list[tuple[int, int | None]]:
    """Where each begins and ends. Raises UnfinishedError where that is the requests' choice."""
    if parts == 1:
        return [(0, None)]
    if not isinstance(size, int):
        raise UnfinishedError(f"ONNX has no adaptive max-pool to {parts} parts of a size that requests choose")
    return [(part * size // parts, -(-(part + 1) * size // parts)) for part in range(parts)]


def _cut(value: Any, axis: int, start: int, end: int | None) -> Any:
    """Along an axis; all of it where it ends at none."""
    if end is None:
        return value
    op = opset()
    return op.Slice(value, *(op.Constant(value_ints=[place]) for place in (start, end, axis)))


def _whole(value: int) -> Any:
    import onnx_ir as ir

    return constant(value, ir.DataType.INT64)
