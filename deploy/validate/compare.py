"""The arithmetic of parity: one output of one call against its reference, in numpy alone.

Owns errors, finite positions and decisions; limits and verdicts are in `parity`. Called by baseline, parity, behaviour.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from deploy.spec import BATCH, TensorSpec


@dataclass(frozen=True, slots=True, kw_only=True)
class Element:
    """One element of an output: the row within the call, its index within the row, and both values."""

    row: int
    index: tuple[int, ...]
    reference: float
    found: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """What one output of one call came to. `elements` counts those that were compared, by finite values."""

    elements: int
    max_error: float
    square_error: float
    worst: Element | None
    misplaced: Element | None
    decisions: int
    flips: int
    flipped: Element | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Errors:
    """Errors over several calls: the largest absolute one and the root mean square."""

    elements: int
    max_error: float
    rms_error: float

    @classmethod
    def of(cls, comparisons: Iterable[Comparison]) -> "Errors":
        """The errors of all elements of all these calls together."""
        found = list(comparisons)
        elements = sum(item.elements for item in found)
        squares = sum(item.square_error for item in found)
        return cls(
            elements=elements,
            max_error=max((item.max_error for item in found), default=0.0),
            rms_error=math.sqrt(squares / elements) if elements else 0.0,
        )


def as_rows(array: np.ndarray, output: TensorSpec) -> np.ndarray:
    """The output with its rows first: as it is, or as one row where a static program gives it no such axis."""
    return array if _rows_first(output) else array[np.newaxis]


def row_axis(output: TensorSpec) -> int | None:
    """The decision axis counted in what `as_rows` gives."""
    if output.decision_axis is None or output.decision_axis < 0 or _rows_first(output):
        return output.decision_axis
    return output.decision_axis + 1


def _rows_first(output: TensorSpec) -> bool:
    return output.shape[:1] in ((BATCH,), (1,))


def same_kind(left: np.ndarray, right: np.ndarray) -> np.ndarray:
    """True where both are finite, both NaN, or both the same infinity."""
    same: np.ndarray = (np.isfinite(left) & np.isfinite(right)) | (left == right) | (np.isnan(left) & np.isnan(right))
    return same


def compare(
    reference: np.ndarray, found: np.ndarray, *, judged: np.ndarray, axis: int | None = None, allowed: float = math.inf
) -> Comparison:
    """One output against its reference, rows first, where `judged` is true.

    A decision (argmax along `axis`) is compared where the reference's margin between first and second exceeds
    `allowed`, the largest absolute error that passes.
    """
    reference, found = reference.astype(np.float64), found.astype(np.float64)
    finite = judged & np.isfinite(reference) & np.isfinite(found)
    # Non-finite values stand in for 0 here; `finite` keeps them out of the sums and `misplaced` reports them.
    error = np.abs(np.where(finite, found, 0.0) - np.where(finite, reference, 0.0))
    decisions, flips, flipped = _decisions(reference, found, judged=judged, axis=axis, allowed=allowed)
    return Comparison(
        elements=int(finite.sum()),
        max_error=float(error.max(initial=0.0)),
        square_error=float(np.square(error).sum()),
        worst=_element(reference, found, int(error.argmax())) if finite.any() else None,
        misplaced=_first(reference, found, judged & ~same_kind(reference, found)),
        decisions=decisions,
        flips=flips,
        flipped=flipped,
    )


def spread(rows: np.ndarray) -> float:
    """The widest range over the rows that any element of the output has; 0 if none is finite in every row."""
    rows = rows.astype(np.float64)
    with np.errstate(invalid="ignore"):
        ranges = rows.max(axis=0) - rows.min(axis=0)
    finite = ranges[np.isfinite(ranges)]
    return float(finite.max(initial=0.0))


def _decisions(
    reference: np.ndarray, found: np.ndarray, *, judged: np.ndarray, axis: int | None, allowed: float
) -> tuple[int, int, Element | None]:
    if axis is None or reference.shape[axis] < 2:
        return 0, 0, None
    whole = (judged & np.isfinite(reference) & np.isfinite(found)).all(axis=axis)
    ordered = np.partition(reference, -2, axis=axis)
    margin = np.where(whole, ordered.take(-1, axis) - ordered.take(-2, axis), 0.0)
    clear = whole & (margin > allowed)
    flips = clear & (reference.argmax(axis=axis) != found.argmax(axis=axis))
    if not flips.any():
        return int(clear.sum()), 0, None
    place = np.argwhere(flips)[0].tolist()
    place.insert(axis % reference.ndim, int(reference.argmax(axis=axis)[tuple(place)]))
    flat = int(np.ravel_multi_index(place, reference.shape))
    return int(clear.sum()), int(flips.sum()), _element(reference, found, flat)


def _first(reference: np.ndarray, found: np.ndarray, where: np.ndarray) -> Element | None:
    return _element(reference, found, int(where.argmax())) if where.any() else None


def _element(reference: np.ndarray, found: np.ndarray, flat: int) -> Element:
    place: Sequence[int] = [int(part) for part in np.unravel_index(flat, reference.shape)]
    return Element(
        row=place[0],
        index=tuple(place[1:]),
        reference=float(reference.reshape(-1)[flat]),
        found=float(found.reshape(-1)[flat]),
    )
