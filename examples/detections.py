"""From a served detector's boxes and scores to detections: the step that the server leaves to the client.

`boxes` is one image's [boxes, 4], corners in pixels of the image that was sent; `scores` its [boxes, classes]. Needs
numpy only.
"""

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, slots=True, kw_only=True)
class Rule:
    """What counts as a detection: the least score, the overlap above which the worse of two boxes goes, how many.

    `background` says that class 0 is none, as it is for SSD. `inspect` names torchvision's own numbers for a model.
    """

    score: float
    overlap: float
    most: int
    background: bool = False


def detect(boxes: np.ndarray, scores: np.ndarray, rule: Rule) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The boxes, scores and labels of the detections, best first; suppression is done within each class."""
    where, labels = np.nonzero(scores > rule.score)
    if rule.background:
        where, labels = where[labels > 0], labels[labels > 0]
    found = scores[where, labels]
    order = np.argsort(-found, kind="stable")
    where, labels, found = where[order], labels[order], found[order]
    stays = np.zeros(len(where), dtype=bool)
    for label in np.unique(labels):
        members = np.flatnonzero(labels == label)
        stays[members[_apart(boxes[where[members]], rule.overlap)]] = True
    kept = np.flatnonzero(stays)[: rule.most]
    return boxes[where[kept]], found[kept], labels[kept]


def _apart(boxes: np.ndarray, overlap: float) -> list[int]:
    """The boxes, best first, that overlap no better one that stays by more."""
    areas = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
    waiting, stays = np.arange(len(boxes)), []
    while len(waiting):
        best, waiting = waiting[0], waiting[1:]
        stays.append(int(best))
        sides = np.minimum(boxes[best, 2:], boxes[waiting, 2:]) - np.maximum(boxes[best, :2], boxes[waiting, :2])
        shared = np.clip(sides, 0, None).prod(axis=1)
        with np.errstate(invalid="ignore"):
            over = shared / (areas[best] + areas[waiting] - shared) > overlap
        waiting = waiting[~over]
    return stays
