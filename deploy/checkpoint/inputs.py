"""The input spec and the preprocessing of a checkpoint, each from the best source there is.

Owns that order of sources and how honestly each is worded. Reads no file.
Called by load.
"""

from collections.abc import Sequence

from deploy.checkpoint.identify import Match
from deploy.checkpoint.model import CheckpointRequest, Preprocessing
from deploy.checkpoint.training import TrainingFacts
from deploy.errors import UsageError
from deploy.spec import BATCH, TensorSpec

UNKNOWN = Preprocessing(source="unknown")
UNKNOWN_NOTE = "preprocessing: unknown; nothing says how images became input tensors during training"


def image_shape(match: Match, request: CheckpointRequest, facts: TrainingFacts) -> tuple[int, int, int]:
    """Channels, height and width: as asked, else from the positional embedding, the checkpoint, the default weights.

    Raises UsageError if what was asked contradicts the tensors, or if no source knows.
    """
    channels = match.in_channels
    if request.input_shapes:
        return _asked_shape(match, request.input_shapes)
    transforms = match.architecture.transforms
    side = match.image_size or facts.size or (transforms.crop if transforms else None)
    if side is None:
        raise UsageError(
            f"the input size of {match.architecture.name} is not known",
            expected="a size that training used",
            fix=f"add --input-shape {channels},HEIGHT,WIDTH",
        )
    return channels, side, side


def input_specs(shapes: Sequence[Sequence[int]], names: Sequence[str], dtype: str) -> tuple[TensorSpec, ...]:
    """One spec per shape, the dynamic batch dim before it."""
    return tuple(
        TensorSpec(name=name, dtype=dtype, shape=(BATCH, *shape)) for name, shape in zip(names, shapes, strict=True)
    )


def preprocessing_of(
    match: Match, shape: tuple[int, int, int], facts: TrainingFacts
) -> tuple[Preprocessing, tuple[str, ...]]:
    """What is known of the preprocessing, and the notes that say how far it can be relied on."""
    if facts.knows_preprocessing:
        return preprocessing_from(facts), ()
    transforms, (channels, height, width) = match.architecture.transforms, shape
    if transforms is None or channels != len(transforms.mean):
        return UNKNOWN, (UNKNOWN_NOTE,)
    as_trained = height == width == transforms.crop
    notes = [
        f"preprocessing: that of {transforms.source}, the builder's default pre-trained weights; "
        "nothing in the checkpoint says that this training used the same"
    ]
    if not as_trained:
        notes.append(f"resize and crop: unknown for {height} x {width}; those weights used {transforms.crop}")
    return Preprocessing(
        source=transforms.source,
        resize=transforms.resize if as_trained else None,
        crop=transforms.crop if as_trained else None,
        mean=transforms.mean,
        std=transforms.std,
        layout="NCHW, RGB",
        value_range=(0.0, 1.0),
        interpolation=transforms.interpolation,
    ), tuple(notes)


def preprocessing_from(facts: TrainingFacts) -> Preprocessing:
    """What the checkpoint itself tells; the rest stays unknown."""
    return Preprocessing(
        source="checkpoint",
        resize=facts.resize,
        crop=facts.size,
        mean=facts.mean,
        std=facts.std,
        interpolation=facts.interpolation,
    )


def _asked_shape(match: Match, asked: tuple[tuple[int, ...], ...]) -> tuple[int, int, int]:
    channels = match.in_channels
    given = " and ".join(",".join(map(str, shape)) for shape in asked)
    if len(asked) != 1 or len(asked[0]) != 3 or asked[0][0] != channels or min(asked[0]) < 1:
        raise UsageError(
            f"--input-shape {given} does not fit {match.architecture.name} with {channels} input channels",
            expected=f"one shape {channels},HEIGHT,WIDTH, without the batch",
        )
    _, height, width = asked[0]
    if match.image_size is not None and (height, width) != (match.image_size, match.image_size):
        raise UsageError(
            f"--input-shape {given} contradicts the positional embedding, which was made for "
            f"{match.image_size} x {match.image_size}",
            expected=f"{channels},{match.image_size},{match.image_size}",
            fix="leave out --input-shape, or interpolate the embedding in training",
        )
    return channels, height, width
