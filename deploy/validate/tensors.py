"""In which way one array differs from what it should be, in words.

Owns the list of slips that happen to weights in life, and the way of arrays to where a module is. Called by constants,
trace and prefixes.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

import numpy as np

_SAME = 2e-6


def relative_error(wanted: np.ndarray, found: np.ndarray) -> float:
    """The L2 norm of the difference over that of `wanted`; infinite where shapes or finite positions differ."""
    if wanted.shape != found.shape:
        return float("inf")
    gap = float(np.linalg.norm((found.astype(np.float64) - wanted.astype(np.float64)).reshape(-1)))
    if gap == 0.0:
        return 0.0
    norm = float(np.linalg.norm(wanted.astype(np.float64).reshape(-1)))
    return gap / norm if norm > 0.0 and np.isfinite(gap) else float("inf")


def tensors_for(module: Any, inputs: Sequence[np.ndarray]) -> list[Any]:
    """The arrays as tensors on the device of the module's weights; on the CPU where it has none."""
    import torch

    weights = chain(module.parameters(), module.buffers())
    device = next((tensor.device for tensor in weights), torch.device("cpu"))
    return [torch.from_numpy(np.ascontiguousarray(array)).to(device) for array in inputs]


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """How an array differs: a verb phrase, the relative error, and whether the slip has a name."""

    words: str
    error: float
    named: bool


def difference(wanted: np.ndarray, found: np.ndarray) -> Difference | None:
    """What is wrong with `found`; None if nothing is, up to a rounding. A matrix may lie either way round."""
    if wanted.shape != found.shape:
        if wanted.ndim == 2 and found.shape == wanted.shape[::-1]:
            return difference(wanted, found.T)
        words = f"has the shape {list(found.shape)} instead of {list(wanted.shape)}"
        return Difference(words=words, error=float("inf"), named=True)
    error = relative_error(wanted, found)
    if error <= _SAME:
        return None
    name = next((words for slip in _SLIPS if (words := slip(wanted, found))), "")
    return Difference(words=name or f"differs by {error:.2g} relative to its norm", error=error, named=bool(name))


def _not_a_number(wanted: np.ndarray, found: np.ndarray) -> str:
    added = np.argwhere(np.isnan(found) & ~np.isnan(wanted))
    return f"holds {len(added)} NaN, the first at {added[0].tolist()}" if len(added) else ""


def _zeroed(wanted: np.ndarray, found: np.ndarray) -> str:
    return "" if np.any(found) else "is all zeros"


def _rounded(wanted: np.ndarray, found: np.ndarray) -> str:
    if wanted.dtype != np.float32 or found.dtype != np.float32:
        return ""
    bits = np.ascontiguousarray(found).view(np.uint32)
    if not np.any(bits & 0xFFFF) and np.any(np.ascontiguousarray(wanted).view(np.uint32) & 0xFFFF):
        return "is rounded to bfloat16"
    with np.errstate(over="ignore"):
        return "is rounded to float16" if np.array_equal(found.astype(np.float16).astype(np.float32), found) else ""


def _transposed(wanted: np.ndarray, found: np.ndarray) -> str:
    if wanted.ndim < 2 or wanted.shape[-1] != wanted.shape[-2]:
        return ""
    return "is transposed" if relative_error(wanted, np.swapaxes(found, -1, -2)) <= _SAME else ""


def _scaled(wanted: np.ndarray, found: np.ndarray) -> str:
    factor = float(np.vdot(wanted, found)) / max(float(np.vdot(wanted, wanted)), 1e-300)
    return f"is scaled by {factor:.6g}" if relative_error(wanted * factor, found) <= _SAME else ""


def _reordered(wanted: np.ndarray, found: np.ndarray) -> str:
    """Whether the slices along an axis are the same ones in another order, told by their norms."""
    for axis, size in enumerate(wanted.shape):
        left = np.moveaxis(wanted, axis, 0).reshape(size, -1).astype(np.float64)
        right = np.moveaxis(found, axis, 0).reshape(size, -1).astype(np.float64)
        orders = [np.argsort(np.linalg.norm(slices, axis=1)) for slices in (left, right)]
        if relative_error(left[orders[0]], right[orders[1]]) <= _SAME:
            return f"has its entries along axis {axis} in another order"
    return ""


_SLIPS = (_not_a_number, _zeroed, _rounded, _transposed, _reordered, _scaled)
