"""Handwritten digits as a network sees them: scikit-learn's 8x8 images, split, enlarged and normalised.

Owns the data and its preprocessing, so that training and serving cannot differ in it. Knows no torch and no Triton.
`finetune.py` and `classify.py` call it.
"""

from dataclasses import dataclass

import numpy as np
from PIL import Image
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

CLASSES = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
MEAN = (0.485, 0.456, 0.406)
STD = (0.229, 0.224, 0.225)
SIZE = 64

_WHITE = 16.0  # the brightest pixel of the data set


@dataclass(frozen=True, slots=True, kw_only=True)
class Digits:
    """Images as float [n, 8, 8] in 0..1 and their labels as int64 [n]."""

    images: np.ndarray
    labels: np.ndarray

    def head(self, count: int) -> "Digits":
        """The first `count` images."""
        return Digits(images=self.images[:count], labels=self.labels[:count])


def load_split(seed: int) -> tuple[Digits, Digits]:
    """The training images (1,347) and the held-out ones (450), each class in both in its share."""
    data = load_digits()
    images = data.images / _WHITE
    train, test = train_test_split(np.arange(len(images)), test_size=450, stratify=data.target, random_state=seed)
    return _take(images, data.target, train), _take(images, data.target, test)


def preprocess(images: np.ndarray, size: int = SIZE) -> np.ndarray:
    """What the network takes: float32 [n, 3, size, size], resized bilinearly and normalised like ImageNet."""
    resized = [
        Image.fromarray(image.astype(np.float32)).resize((size, size), Image.Resampling.BILINEAR) for image in images
    ]
    grey = np.stack([np.asarray(image) for image in resized])[:, None]
    mean = np.asarray(MEAN, dtype=np.float32)[:, None, None]
    std = np.asarray(STD, dtype=np.float32)[:, None, None]
    return ((grey - mean) / std).astype(np.float32)


def _take(images: np.ndarray, labels: np.ndarray, rows: np.ndarray) -> Digits:
    return Digits(images=images[rows], labels=labels[rows].astype(np.int64))
