"""What training itself makes of encoded images: torchvision's transforms on Pillow's image, then the eager network.

Owns the reference that an ensemble is proven against; shares no line with the step that it judges. Runs in a child.
Called by image and tokens.
"""

import io
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from deploy.checkpoint.model import Checkpoint
from deploy.ensemble.transform import ImageTransform
from deploy.validate.executables import EagerModel

_NUDGES = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class Answers:
    """One output of the network in float64, a row per input, and that of several runs of eager."""

    reference: np.ndarray
    eager: tuple[np.ndarray, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainedAnswers(Answers):
    """The same for images, with the network's input as training made it."""

    inputs: tuple[np.ndarray, ...]


def trained_answers(
    checkpoint: Checkpoint, images: Sequence[bytes], transform: ImageTransform, *, output: int, threads: int
) -> TrainedAnswers:
    """The answers of training for whole images, rows first; `output` is the index of the one that decides."""
    prepare = _training_transform(transform)
    inputs = [prepare(data)[np.newaxis] for data in images]
    answers = network_answers(checkpoint, [[row] for row in inputs], output=output, threads=threads)
    return TrainedAnswers(inputs=tuple(inputs), reference=answers.reference, eager=answers.eager)


def network_answers(
    checkpoint: Checkpoint, inputs: Sequence[Sequence[np.ndarray]], *, output: int, threads: int
) -> Answers:
    """The network's own answers, each of `inputs` asked alone; `output` is the index of the one that counts."""
    exact = EagerModel(checkpoint, dtype="float64", threads=threads)
    reference = np.concatenate([exact.run(row)[output] for row in inputs])
    eager = EagerModel(checkpoint, threads=threads)
    runs = [np.concatenate([eager.run(row)[output] for row in inputs])]
    for draw in range(_NUDGES):
        runs.append(np.concatenate([eager.run_nudged(row, draw=draw)[output] for row in inputs]))
    return Answers(reference=reference, eager=tuple(runs))


def _crop_as_transformers(image: Any, crop: int) -> Any:
    from torchvision.transforms import v2

    return v2.functional.crop(image, (image.height - crop) // 2, (image.width - crop) // 2, crop, crop)


def _training_transform(transform: ImageTransform) -> Any:
    """A function from encoded bytes to one row: the loader of torchvision's image folders, then its transforms."""
    import torch
    from PIL import Image, ImageOps

    from deploy.checkpoint.vision import import_torchvision

    import_torchvision()
    from torchvision.transforms import v2

    steps: list[Any] = []
    if transform.resize is not None:
        size = [transform.resize] if isinstance(transform.resize, int) else list(transform.resize)
        steps.append(v2.Resize(size, interpolation=v2.InterpolationMode(transform.interpolation), antialias=True))
    if transform.crop is not None and transform.crop_rounds == "even":
        steps.append(v2.CenterCrop(transform.crop))
    elif transform.crop is not None:
        steps.append(partial(_crop_as_transformers, crop=transform.crop))
    steps.append(v2.PILToTensor())
    if transform.mean is not None and transform.std is not None:
        low, high = transform.value_range
        steps.append(v2.ToDtype(torch.float32, scale=True))
        if (low, high) != (0.0, 1.0):
            steps.append(lambda values: values * (high - low) + low)
        steps.append(v2.Normalize(list(transform.mean), list(transform.std)))
        steps.append(v2.ToDtype(getattr(torch, transform.dtype)))

    def prepare(data: bytes) -> np.ndarray:
        image: Any = Image.open(io.BytesIO(data))
        image = ImageOps.exif_transpose(image) if transform.exif_orientation else image
        image = image.convert(transform.mode)
        for step in steps:
            image = step(image)
        row: np.ndarray = image.numpy()
        return row

    return prepare
