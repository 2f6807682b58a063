"""The task's own measure of an artifact beside the fp32 checkpoint's, on the same labelled rows.

Owns the accuracy, its paired interval and the verdict on a drop. Called by precision.
"""

import math
from collections.abc import Callable, Sequence
from typing import Literal

import numpy as np

from deploy.evidence import Judgement, MetricEvidence, Verdict
from deploy.spec import Spec
from deploy.validate.samples import Samples

Metric = Literal["accuracy"]
Call = Callable[[list[np.ndarray]], Sequence[np.ndarray]]

# Each verdict is wrong with at most 5 %: pass by the upper end of a 90 % interval, fail by its lower end.
CONFIDENCE = 0.90
_MOST_ROWS = 10_000_000


def decides(samples: Samples | None, spec: Spec) -> bool:
    """Whether accuracy can be counted: the samples have labels, and an output has a row of class scores."""
    return samples is not None and samples.labels is not None and _deciding(spec) is not None


def answers(samples: Samples, spec: Spec, rows: np.ndarray, call: Call) -> np.ndarray:
    """The class that the first deciding output gives each of these rows, asked in batches within the bounds."""
    index = _deciding(spec)
    assert index is not None
    found = []
    for start in range(0, len(rows), spec.max_batch):
        chosen = rows[start : start + spec.max_batch]
        outputs = call([np.ascontiguousarray(array[chosen]) for array in samples.inputs])
        # A NaN anywhere is no answer, and so a wrong one.
        scores = np.atleast_2d(outputs[index])
        found.append(np.where(np.isfinite(scores).all(axis=1), scores.argmax(axis=1), -1))
    return np.concatenate(found)


def judge_accuracy(labels: np.ndarray, before: np.ndarray, after: np.ndarray, *, max_drop: float) -> MetricEvidence:
    """The drop in accuracy from `before` to `after`, with its interval, judged by `max_drop` percentage points.

    Pass if the whole interval is within it, fail if it lies beyond as a whole, else undecided: then the reason says how
    many rows would do. By the same labels a network that gives every row the same class must fail, else nothing passes.
    """
    rows = len(labels)
    worsened, improved = _changed(labels, before, after)
    drop = (worsened - improved) / rows
    low, high = paired_interval(worsened, improved, rows, confidence=CONFIDENCE)
    return MetricEvidence(
        rows=rows,
        before=float((before == labels).mean()),
        after=float((after == labels).mean()),
        worsened=worsened,
        improved=improved,
        drop=100 * drop,
        low=100 * low,
        high=100 * high,
        confidence=CONFIDENCE,
        max_drop=max_drop,
        judgement=_judgement(labels, before, after, limit=max_drop / 100),
    )


def paired_interval(worsened: int, improved: int, rows: int, *, confidence: float) -> tuple[float, float]:
    """The score interval of (worsened - improved) / rows, two shares of the same rows.

    Of Tango (Statistics in Medicine 17, 1998, 891-908), which holds for few discordant rows, and for none.
    """
    from scipy.optimize import brentq
    from scipy.stats import norm

    z = float(norm.ppf(0.5 + confidence / 2))

    def beyond(difference: float) -> float:
        return _score(worsened, improved, rows, difference)

    middle = (worsened - improved) / rows
    edge = 1.0 - 1e-12
    low = -1.0 if beyond(-edge) < z else brentq(lambda at: beyond(at) - z, -edge, middle)
    high = 1.0 if beyond(edge) > -z else brentq(lambda at: beyond(at) + z, middle, edge)
    return float(low), float(high)


def _score(worsened: int, improved: int, rows: int, difference: float) -> float:
    """How many standard errors the observed difference lies above this one, if that were the true one."""
    a = 2.0 * rows
    b = -worsened - improved + (2 * rows - worsened + improved) * difference
    c = -improved * difference * (1 - difference)
    share = (math.sqrt(max(b * b - 4 * a * c, 0.0)) - b) / (2 * a)
    variance = rows * (2 * share + difference * (1 - difference))
    gap = worsened - improved - rows * difference
    if variance <= 0.0:
        return 0.0 if gap == 0.0 else math.copysign(math.inf, gap)
    return gap / math.sqrt(variance)


def _changed(labels: np.ndarray, before: np.ndarray, after: np.ndarray) -> tuple[int, int]:
    """The rows that are right before and wrong after, and those that are wrong before and right after."""
    right, right_after = before == labels, after == labels
    return int((right & ~right_after).sum()), int((~right & right_after).sum())


def _judgement(labels: np.ndarray, before: np.ndarray, after: np.ndarray, *, limit: float) -> Judgement:
    rows = len(labels)
    worsened, improved = _changed(labels, before, after)
    low, high = paired_interval(worsened, improved, rows, confidence=CONFIDENCE)
    said = (
        f"accuracy {(after == labels).mean():.2%} of {rows} labelled samples, {(before == labels).mean():.2%} in fp32: "
        f"a drop of {100 * (worsened - improved) / rows:.2f} points, {CONFIDENCE:.0%} interval "
        f"[{100 * low:.2f}, {100 * high:.2f}], {100 * limit:g} may be"
    )
    if high <= limit:
        told = _told_by(labels, before, limit=limit)
        return Judgement(verdict=Verdict.PASS, reason=said) if told.passed else told
    if low > limit:
        return Judgement(verdict=Verdict.FAIL, reason=said)
    enough = rows_that_decide(worsened, improved, rows, limit=limit)
    more = f"about {enough:,} would, if they come out alike" if enough else "the drop is too near to what may be"
    return Judgement(verdict=Verdict.UNDECIDED, reason=f"{said}; {rows} samples cannot tell: {more}")


def _told_by(labels: np.ndarray, before: np.ndarray, *, limit: float) -> Judgement:
    """Whether these labels tell a good network from one that gives every row the same class, which must fail by them.

    Labels that are shifted by one, drawn at random or of one class do not: hardly anything is a drop then.
    """
    classes, counts = np.unique(labels, return_counts=True)
    commonest = classes[counts.argmax()]
    changed = _changed(labels, before, np.full_like(labels, commonest))
    low, high = paired_interval(*changed, len(labels), confidence=CONFIDENCE)
    if low > limit:
        return Judgement.yes("the labels tell")
    return Judgement(
        verdict=Verdict.FAIL if high <= limit else Verdict.UNDECIDED,
        reason=f"the labels tell nothing: a network that gives every row class {commonest} would be right in "
        f"{counts.max() / len(labels):.2%} of them, the fp32 checkpoint is in {(before == labels).mean():.2%}; check "
        "that they number the classes from 0 as training did, or leave them out, so that signal to noise decides",
    )


def rows_that_decide(worsened: int, improved: int, rows: int, *, limit: float) -> int | None:
    """How many rows of the same kind would settle the question, None if more than ten million."""

    def settled(wanted: int) -> bool:
        factor = wanted / rows
        low, high = paired_interval(round(worsened * factor), round(improved * factor), wanted, confidence=CONFIDENCE)
        return high <= limit or low > limit

    wanted = rows
    while not settled(wanted):
        wanted = math.ceil(wanted * 1.1) + 1
        if wanted > _MOST_ROWS:
            return None
    return wanted


def _deciding(spec: Spec) -> int | None:
    """The first output that is one row of class scores per sample."""
    for index, output in enumerate(spec.outputs):
        if output.decision_axis is not None and len(output.shape) == 2:
            return index
    return None
