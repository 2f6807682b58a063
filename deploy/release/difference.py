"""What the answers of two versions to the same rows come to: flipped decisions, errors, accuracy.

Owns the arithmetic and its intervals; runs nothing. Called by diff.
"""

import math
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from deploy.errors import UsageError
from deploy.release.asked import Asked, Side
from deploy.slo.decision import interval
from deploy.spec import Spec
from deploy.validate.compare import row_axis, same_kind
from deploy.validate.difference_records import (
    REAL,
    SEEDED,
    AccuracyDifference,
    AnswerDifference,
    ClassFlips,
    Decision,
    DecisionDifference,
    Flip,
    OutputDifference,
)

CONFIDENCE = 0.95
_FLIPS_KEPT = 200
_CLASSES_KEPT = 100


@dataclass(frozen=True, slots=True, kw_only=True)
class Answered:
    """One source's rows with what both versions answered, per output of each, rows first."""

    asked: Asked
    before: Sequence[np.ndarray]
    after: Sequence[np.ndarray]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Decided:
    """The decisions of both versions on one source: the chosen index per row and place, and where they differ.

    `moved` are those of the newer version as the older one counts classes.
    """

    asked: Asked
    before: np.ndarray
    after: np.ndarray
    moved: np.ndarray
    flipped: np.ndarray
    scores: tuple[np.ndarray, np.ndarray]
    axis: int

    @property
    def rows_flipped(self) -> np.ndarray:
        """For each row the share of its decisions that differ."""
        shares: np.ndarray = self.flipped.reshape(len(self.flipped), -1).mean(axis=1)
        return shares


@dataclass(frozen=True, slots=True, kw_only=True)
class _Labels:
    """The labels of both versions for one output, each None where it has none of that number."""

    before: tuple[str, ...] | None
    after: tuple[str, ...] | None

    def of(self, classes: tuple[str, ...] | None, index: int) -> str | None:
        """The label of a class."""
        return classes[index] if classes else None

    def moved(self, chosen: np.ndarray) -> np.ndarray:
        """The newer version's indices as the older one counts them, by label.

        A label that the older one does not have keeps its index beyond the older one's last, as who labels rows of it
        counts too; else it is -1.
        """
        if self.before is None or self.after is None or self.before == self.after:
            return chosen
        known, count = {label: index for index, label in enumerate(self.before)}, len(self.before)
        places = [known.get(label, index if index >= count else -1) for index, label in enumerate(self.after)]
        moved: np.ndarray = np.array(places)[chosen]
        return moved


def compare_answers(sides: tuple[Side, Side], answered: Sequence[Answered]) -> AnswerDifference:
    """What the two versions' answers differ in. Decisions are judged on real rows, on seeded ones where there are none.

    Where both versions have labels a decision is its label, so that a class that only moved is no flip.
    """
    real = any(one.asked.real and one.asked.counted.any() for one in answered)
    judged = [one for one in answered if one.asked.real == real]
    before, after = (side.manifest.spec for side in sides)
    outputs = []
    flipped = [np.zeros(one.asked.rows) for one in judged]
    accuracy = None
    for index in range(max(len(before.outputs), len(after.outputs))):
        missing = _incomparable(before, after, index, answered)
        if missing:
            output = (before if index < len(before.outputs) else after).outputs[index]
            lost = index < len(before.outputs) and row_axis(output) is not None
            outputs.append(OutputDifference(output=output.name, incomparable=missing, decisions_lost=lost))
            continue
        decided = _decide(sides, answered, index)
        chosen = [one for one in decided if one.asked.real == real]
        for rows, one in zip(flipped, chosen, strict=bool(chosen)):
            np.maximum(rows, one.rows_flipped > 0, out=rows)
        accuracy = accuracy or _accuracy(chosen)
        outputs.append(_output(sides, answered, decided, index=index, real=real))
    return AnswerDifference(
        sources=tuple(one.asked.source() for one in answered),
        judged_on=REAL if real else SEEDED,
        rows=sum(int(one.asked.counted.sum()) for one in judged),
        flipped_rows=sum(int(rows[one.asked.counted].sum()) for rows, one in zip(flipped, judged, strict=True)),
        outputs=tuple(outputs),
        accuracy=accuracy,
    )


def _incomparable(before: Spec, after: Spec, index: int, answered: Sequence[Answered]) -> str:
    """Why output `index` of the two cannot be compared at all; empty if it can."""
    if index >= len(before.outputs) or index >= len(after.outputs):
        return "only the newer version has it" if index >= len(before.outputs) else "only the older version has it"
    for one in answered:
        old, new = one.before[index], one.after[index]
        axis = row_axis(before.outputs[index])
        if old.ndim != new.ndim or (axis is None and old.shape != new.shape):
            return f"it was {list(old.shape[1:])} per row and is {list(new.shape[1:])}"
        if axis is not None and np.delete(old.shape, axis).tolist() != np.delete(new.shape, axis).tolist():
            return f"it was {list(old.shape[1:])} per row and is {list(new.shape[1:])}"
    return ""


def _output(
    sides: tuple[Side, Side], answered: Sequence[Answered], decided: Sequence[_Decided], *, index: int, real: bool
) -> OutputDifference:
    name = sides[0].manifest.spec.outputs[index].name
    labels = _labels(sides, index)
    numbers = _numbers(name, answered, index)
    both = [[one for one in decided if one.asked.real == kind] for kind in (True, False)]
    judged, seeded = both if real else (both[1], [])
    return numbers.model_copy(
        update={
            "decisions": _decisions(judged, name, labels),
            "decisions_lost": not decided and row_axis(sides[0].manifest.spec.outputs[index]) is not None,
            "seeded_decisions": _decisions(seeded, name, labels),
        }
    )


def _numbers(name: str, answered: Sequence[Answered], index: int) -> OutputDifference:
    """The errors of one output over all rows; nothing is said where the shapes differ."""
    squares = norm = largest = scale = 0.0
    elements = misplaced = 0
    found_by_unit: list[tuple[float, float, float | None]] = []
    for one in answered:
        old, new = (side[index].astype(np.float64) for side in (one.before, one.after))
        if old.shape != new.shape:
            widths = f"it was {list(old.shape[1:])} per row and is {list(new.shape[1:])}"
            return OutputDifference(output=name, incomparable=f"{widths}: decisions are compared, numbers are not")
        finite = np.isfinite(old) & np.isfinite(new)
        misplaced += int((~same_kind(old, new)).sum())
        error, values = np.abs(old[finite] - new[finite]), np.abs(old[finite])
        found = float(error.max(initial=0.0))
        own_scale = float(values.max(initial=0.0))
        found_by_unit.append((found, own_scale, one.asked.units.get(name)))
        elements, largest, scale = elements + error.size, max(largest, found), max(scale, own_scale)
        squares, norm = squares + float(np.square(error).sum()), norm + float(np.square(values).sum())
    return OutputDifference(
        output=name,
        elements=elements,
        max_error=largest,
        relative_l2=math.sqrt(squares / norm) if norm else (math.inf if squares else 0.0),
        scale=scale,
        eager_multiple=max(_multiples(found_by_unit), default=None),
        misplaced=misplaced,
    )


def _multiples(found: Sequence[tuple[float, float, float | None]]) -> Iterator[float]:
    """Each source's largest error, in the units of the evidence; `found` holds error, scale and unit.

    Of rows without evidence (--samples) the unit is the evidence's largest, in proportion to the size of the outputs:
    they are judged as well, not passed over.
    """
    shares = [unit / scale for _, scale, unit in found if unit and scale > 0]
    for error, scale, unit in found:
        own = unit or max(shares, default=0.0) * scale
        if own > 0:
            yield error / own
        elif error > 0 and shares:
            yield math.inf


def _labels(sides: tuple[Side, Side], index: int) -> _Labels:
    found = []
    for side in sides:
        output, classes = side.manifest.spec.outputs[index], side.manifest.classes
        axis = output.decision_axis
        fits = classes is not None and axis is not None and output.shape[axis] == len(classes)
        found.append(classes if fits else None)
    return _Labels(before=found[0], after=found[1])


def _decide(sides: tuple[Side, Side], answered: Sequence[Answered], index: int) -> list[_Decided]:
    """The decisions that output `index` carries; none where it carries none, in either version."""
    axes = [row_axis(side.manifest.spec.outputs[index]) for side in sides]
    if axes[0] is None or axes[1] is None:
        return []
    labels = _labels(sides, index)
    return [_decided(one, index, axes[0], labels) for one in answered]


def _decided(one: Answered, index: int, axis: int, labels: _Labels) -> _Decided:
    old, new = one.before[index].astype(np.float64), one.after[index].astype(np.float64)
    before, after = old.argmax(axis=axis), new.argmax(axis=axis)
    moved = labels.moved(after)
    flipped = before != moved
    if old.shape == new.shape:
        # Where a value is NaN or infinite in one version only, nothing was decided there that anybody could use.
        flipped |= (~same_kind(old, new)).any(axis=axis)
    return _Decided(
        asked=one.asked, before=before, after=after, moved=moved, flipped=flipped, scores=(old, new), axis=axis
    )


def _decisions(decided: Sequence[_Decided], output: str, labels: _Labels) -> DecisionDifference | None:
    rows = sum(int(one.asked.counted.sum()) for one in decided)
    if not rows:
        return None
    over = float(sum(one.rows_flipped[one.asked.counted].sum() for one in decided))
    low, high = interval(over, rows, 1.0 - CONFIDENCE)
    flips = [flip for one in decided for flip in _flips(one, output, labels)]
    return DecisionDifference(
        rows=rows,
        decisions=sum(int(one.flipped[one.asked.counted].size) for one in decided),
        flipped=len(flips),
        share=over / rows,
        low=low,
        high=high,
        confidence=CONFIDENCE,
        by_class=tuple(_by_class(decided, labels)),
        flips=tuple(flips[:_FLIPS_KEPT]),
        left_out=max(0, len(flips) - _FLIPS_KEPT),
    )


def _flips(one: _Decided, output: str, labels: _Labels) -> Iterator[Flip]:
    where = one.flipped & one.asked.counted.reshape(-1, *[1] * (one.flipped.ndim - 1))
    for place in map(tuple, np.argwhere(where).tolist()):
        chosen = [int(side[place]) for side in (one.before, one.after)]
        vectors = [np.moveaxis(side, one.axis, -1)[place] for side in one.scores]
        ordered = np.sort(vectors[0])
        row = place[0]
        truth = None if one.asked.truth is None else int(one.asked.truth[row])
        known = truth is not None and labels.before is not None and 0 <= truth < len(labels.before)
        yield Flip(
            source=one.asked.name,
            row=one.asked.origin[row],
            output=output,
            place=tuple(place[1:]),
            before=_decision(chosen[0], vectors[0], labels.before),
            after=_decision(chosen[1], vectors[1], labels.after),
            margin=float(ordered[-1] - ordered[-2]) if len(ordered) > 1 else math.inf,
            truth=(labels.of(labels.before, truth) if known else str(truth)) if truth is not None else None,
        )


def _decision(index: int, scores: np.ndarray, classes: tuple[str, ...] | None) -> Decision:
    return Decision(index=index, label=classes[index] if classes else None, score=float(scores[index]))


def _by_class(decided: Sequence[_Decided], labels: _Labels) -> Iterator[ClassFlips]:
    """The classes of which any decision differs, those with the most first."""
    seen: Counter[int] = Counter()
    became: dict[int, Counter[int]] = {}
    for one in decided:
        rows = one.asked.counted
        seen.update(one.before[rows].ravel().tolist())
        moved = one.flipped[rows]
        for old, new in zip(one.before[rows][moved].tolist(), one.after[rows][moved].tolist(), strict=True):
            became.setdefault(old, Counter())[new] += 1
    for old in sorted(became, key=lambda index: (-became[index].total(), index))[:_CLASSES_KEPT]:
        yield ClassFlips(
            label=labels.of(labels.before, old) or str(old),
            decisions=seen[old],
            flipped=became[old].total(),
            became={labels.of(labels.after, new) or str(new): count for new, count in became[old].most_common()},
        )


def _accuracy(decided: Sequence[_Decided]) -> AccuracyDifference | None:
    """Both against the true classes, where there is one decision per row and a file says what is true."""
    known = [one for one in decided if one.asked.truth is not None and one.before.ndim == 1]
    rows = sum(int(one.asked.counted.sum()) for one in known)
    if not rows:
        return None
    for one in known:
        _check_truth(one)
    right = [
        np.concatenate([(getattr(one, side) == one.asked.truth)[one.asked.counted] for one in known])
        for side in ("before", "moved")
    ]
    fixed, broken = int((~right[0] & right[1]).sum()), int((right[0] & ~right[1]).sum())
    # Each of the two shares with half the error: together they enclose their difference, if anything too widely.
    (fixed_low, fixed_high), (broken_low, broken_high) = (
        interval(count, rows, (1.0 - CONFIDENCE) / 2) for count in (fixed, broken)
    )
    return AccuracyDifference(
        rows=rows,
        before=float(right[0].mean()),
        after=float(right[1].mean()),
        fixed=fixed,
        broken=broken,
        drop=(broken - fixed) / rows,
        low=broken_low - fixed_high,
        high=broken_high - fixed_low,
        confidence=CONFIDENCE,
    )


def _check_truth(one: _Decided) -> None:
    """Raises UsageError where a row is of no class that either version knows: both would be wrong, and none worse."""
    assert one.asked.truth is not None
    classes = max(side.shape[one.axis] for side in one.scores)
    strange = np.flatnonzero((one.asked.truth < 0) | (one.asked.truth >= classes))
    if strange.size:
        row = int(strange[0])
        raise UsageError(
            f"{one.asked.name}: 'labels' names class {int(one.asked.truth[row])} in row {row}, and there are {classes}",
            expected=f"0 to {classes - 1}, the place of the true class in the output",
            fix="correct the labels, or leave out the rows that have none",
        )
