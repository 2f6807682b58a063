"""Divisions of fractions with a remainder, as torch computes them and AOTInductor's code does not.

Owns how they are written: by `fmod`, which is exact, where the compiler takes `floor(a / b)`, whose rounding may reach
the next whole number. Called by aoti, in a child process.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor, dtype, fx


def divide_exactly(module: fx.GraphModule) -> int:
    """Write, in place, each remainder and each floor of a quotient of fractions by `fmod`; gives how many."""
    import torch

    aten, count = torch.ops.aten, 0
    remainders = (aten.remainder.Scalar, aten.remainder.Tensor, aten.remainder.Scalar_Tensor)
    floors = (aten.floor_divide.default, aten.floor_divide.Scalar)
    rounded = (aten.div.Tensor_mode, aten.div.Scalar_mode)
    for node in module.graph.nodes:
        value = node.meta.get("val")
        if not isinstance(value, torch.Tensor) or not value.is_floating_point():
            continue
        if node.target in rounded and node.kwargs.get("rounding_mode") == "floor":
            node.kwargs = {}
        elif node.target not in (*floors, *remainders):
            continue
        node.target, node.args = _remainder if node.target in remainders else _floor, (value.dtype, *node.args)
        count += 1
    if count:
        module.recompile()
    return count


def _remainder(kind: dtype, dividend: Any, divisor: Any) -> Tensor:
    """What is left of a division, with the sign of the divisor."""
    import torch

    _, below, left = _left(kind, dividend, divisor)
    return torch.where(_off(left, below), left + below, left)


def _floor(kind: dtype, dividend: Any, divisor: Any) -> Tensor:
    """The whole number below a quotient: that of 1.0 and 0.1 is 9."""
    import torch

    above, below, left = _left(kind, dividend, divisor)
    whole = ((above - left) / below - _off(left, below).to(kind)).round()  # a whole number but for rounding
    return torch.where(below == 0, above / below, whole)


def _left(kind: dtype, dividend: Any, divisor: Any) -> tuple[Tensor, Tensor, Tensor]:
    """Both as tensors of the dtype, and what is left with the sign of the first."""
    import torch

    device = dividend.device if isinstance(dividend, torch.Tensor) else divisor.device
    above, below = (
        value.to(kind) if isinstance(value, torch.Tensor) else torch.full((), value, dtype=kind, device=device)
        for value in (dividend, divisor)
    )
    return above, below, torch.fmod(above, below)


def _off(left: Tensor, divisor: Tensor) -> Tensor:
    """Whether what is left has another sign than the divisor."""
    # Not by comparing truth values, whose bounds the compiler cannot compare where it knows them, as of an arange.
    return ((divisor < 0) & (left > 0)) | ((divisor > 0) & (left < 0))
