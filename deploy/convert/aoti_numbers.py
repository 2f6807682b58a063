"""Arithmetic as torch computes it and AOTInductor's code does not: divisions with a remainder, powers of whole numbers.

Owns how they are written: by `fmod`, which is exact, where the compiler takes `floor(a / b)`, whose rounding may reach
the next whole number; by a tensor of integers where it takes a float. Called by aoti, in a child process.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor, dtype, fx


def compute_exactly(module: fx.GraphModule) -> int:
    """Write, in place, remainders and floors of fractions by `fmod`, and powers such as `2 ** ids`; gives how many."""
    import torch

    aten, count = torch.ops.aten, 0
    write: Callable[..., Tensor]
    remainders = (aten.remainder.Scalar, aten.remainder.Tensor, aten.remainder.Scalar_Tensor)
    floors = (aten.floor_divide.default, aten.floor_divide.Scalar)
    rounded = (aten.div.Tensor_mode, aten.div.Scalar_mode)
    for node in module.graph.nodes:
        value = node.meta.get("val")
        if not isinstance(value, torch.Tensor):
            continue
        fractions = value.is_floating_point()
        if fractions and node.target in rounded and node.kwargs.get("rounding_mode") == "floor":
            write, node.kwargs = _floor, {}
        elif fractions and node.target in floors:
            write = _floor
        elif fractions and node.target in remainders:
            write = _remainder
        elif not fractions and node.target is aten.pow.Scalar:
            write = _power
        else:
            continue
        node.target, node.args = write, (value.dtype, *node.args)
        count += 1
    if count:
        module.recompile()
    return count


def _power(kind: dtype, base: Any, exponent: Tensor) -> Tensor:
    """A whole number to the power of integers, which the compiler makes a float32 of."""
    import torch

    return torch.pow(torch.full((), base, dtype=kind, device=exponent.device), exponent)


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
