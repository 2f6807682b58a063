"""What the user says of the preprocessing of training, and what is left for clients once it is part of the graph.

Owns those two rules and their refusals; the tensors' side of it is in `fusing`. Imports no torch. Called by load.
"""

from math import isfinite

from deploy.checkpoint.inputs import RESIZE_NOTE, UNIT_RANGE, UNKNOWN_NOTE, mixed_ranges, range_of
from deploy.checkpoint.model import Checkpoint, FusedStep, Preprocessing, PreprocessingRequest
from deploy.errors import UsageError
from deploy.spec import BATCH, TensorSpec

PIXELS = (0, 255)
INTERPOLATIONS = ("nearest", "bilinear", "bicubic", "lanczos", "box", "hamming")
# What a graph can compute with antialiasing, as training does.
_IN_A_GRAPH = ("bilinear", "bicubic")
_WAY_OUT = "say what training did: --mean 0.485,0.456,0.406 --std 0.229,0.224,0.225, or mean and std in deploy.toml"


def settle(checkpoint: Checkpoint, asked: PreprocessingRequest) -> Checkpoint:
    """The checkpoint, with what was asked of its preprocessing: facts put in, steps moved into the graph.

    Raises UsageError if a fact cannot be right, or a step cannot be moved.
    """
    if asked.said:
        checkpoint = _with_facts(checkpoint, asked)
    if asked.image_size is not None and not asked.fuse:
        raise UsageError(
            "--image-size was given without --fuse-preprocess",
            expected="the size of the images that the graph itself resizes and crops",
            fix="add --fuse-preprocess, or leave --image-size out",
        )
    return _fused(checkpoint, asked) if asked.fuse else checkpoint


def image_input(inputs: tuple[TensorSpec, ...], purpose: str) -> TensorSpec:
    """The one input, an image [batch, channels, height, width] of a floating dtype. Raises UsageError if it is not."""
    described = ", ".join(f"{tensor.name} {tensor.dtype} {list(tensor.shape)}" for tensor in inputs)
    first = inputs[0]
    fits = len(inputs) == 1 and len(first.shape) == 4 and "float" in first.dtype and isinstance(first.shape[1], int)
    if not fits:
        raise UsageError(
            f"{purpose} needs a model of one image, and this one takes {described}",
            expected=f"one floating input [{BATCH!r}, channels, height, width]",
            fix=f"leave {purpose} out, and preprocess in the client",
        )
    return first


def known_scaling(preprocessing: Preprocessing, channels: int, purpose: str) -> None:
    """Raises UsageError unless mean and standard deviation of so many channels are known."""
    missing = [name for name in ("mean", "std") if getattr(preprocessing, name) is None]
    if missing:
        raise UsageError(
            f"{purpose} needs {' and '.join(missing)} of the preprocessing, which nothing says "
            f"(source: {preprocessing.source})",
            expected="the mean and standard deviation by which training normalised its images",
            fix=_WAY_OUT,
        )
    for name in ("mean", "std"):
        values = getattr(preprocessing, name)
        if len(values) != channels:
            raise UsageError(
                f"the preprocessing's {name} has {len(values)} values, and the model takes {channels} channels",
                expected=f"{channels} values, one per channel",
                fix=_WAY_OUT,
            )
    _check_one_range(preprocessing)
    assert preprocessing.std is not None and preprocessing.mean is not None
    if not all(map(isfinite, (*preprocessing.mean, *preprocessing.std))) or min(preprocessing.std) <= 0:
        raise UsageError(
            f"mean {preprocessing.mean} and std {preprocessing.std} normalise nothing",
            expected="finite numbers, and standard deviations above 0",
            fix=_WAY_OUT,
        )


def _check_one_range(preprocessing: Preprocessing) -> None:
    """Raises UsageError if the mean is of pixels in 0..255 and the standard deviation of pixels in 0..1, or so."""
    mean, std = preprocessing.mean, preprocessing.std
    if mixed_ranges(mean, std):
        assert mean is not None and std is not None
        of_mean, of_std = ("0..255", "0..1") if max(std) < 1 else ("0..1", "0..255")
        raise UsageError(
            f"mean {mean} is of pixels in {of_mean}, and std {std} of pixels in {of_std} "
            f"(source: {preprocessing.source})",
            expected="both of the same pixels, as training had them",
            fix=_WAY_OUT,
        )


def _with_facts(checkpoint: Checkpoint, asked: PreprocessingRequest) -> Checkpoint:
    known, said = checkpoint.preprocessing, asked.said
    names = ", ".join(said)
    source = f"asked for ({names})" + ("" if known.source == "unknown" else f", else {known.source}")
    settled = known.model_copy(update={**said, "source": source})
    _check_one_range(settled)
    pixels = range_of(settled.mean, settled.std)
    if "mean" in said and "std" in said:
        settled = settled.model_copy(update={"value_range": pixels or UNIT_RANGE})
    elif "mean" in said or "std" in said:
        # The other one is still of the pixels that it was of.
        settled = settled.model_copy(update={"value_range": pixels or known.value_range or UNIT_RANGE})
    if isinstance(settled.resize, int) and settled.crop is not None and settled.crop > settled.resize:
        raise UsageError(
            f"a crop of {settled.crop} pixels does not fit into images resized to {settled.resize}",
            expected="a crop of at most the resized shorter edge",
            fix="correct --crop or --resize",
        )
    answered = (UNKNOWN_NOTE, *([RESIZE_NOTE] if "resize" in said else []))
    notes = [note for note in checkpoint.notes if not note.startswith(answered)]
    told = (*notes, f"preprocessing: {names} as asked for" + (", of pixels in 0..255" if pixels else ""))
    return checkpoint.model_copy(update={"preprocessing": settled, "notes": told})


def _fused(checkpoint: Checkpoint, asked: PreprocessingRequest) -> Checkpoint:
    purpose = "--fuse-preprocess"
    image = image_input(checkpoint.inputs, purpose)
    channels = image.shape[1]
    assert isinstance(channels, int)
    known_scaling(checkpoint.preprocessing, channels, purpose)
    steps: tuple[FusedStep, ...] = ("scale", "normalize")
    size = image.shape[2:]
    if asked.image_size is not None:
        steps, size = ("resize", "crop", *steps), asked.image_size
        check_geometry(checkpoint.preprocessing, image, asked.image_size)
    pixels = TensorSpec(name=image.name, dtype="uint8", shape=(*image.shape[:2], *size), values=PIXELS)
    inside = " and ".join([*(["resized and cropped"] if asked.image_size else []), "normalised"])
    note = f"preprocessing: fused; uint8 pixels come in and are {inside} inside the graph"
    preprocessing = checkpoint.preprocessing.model_copy(update={"fused": steps})
    return checkpoint.model_copy(
        update={"inputs": (pixels,), "preprocessing": preprocessing, "notes": (*checkpoint.notes, note)}
    )


def check_geometry(preprocessing: Preprocessing, image: TensorSpec, size: tuple[int, int]) -> None:
    """Raises UsageError unless images of `size` are known to become the network's own, by what a graph can compute."""
    found = {name: getattr(preprocessing, name) for name in ("resize", "interpolation")}
    if isinstance(preprocessing.resize, int):
        found["crop"] = preprocessing.crop
    missing = [name for name, value in found.items() if value is None]
    if missing:
        raise UsageError(
            f"--image-size needs {', '.join(missing)} of the preprocessing, which nothing says",
            expected="how training resized and cropped its images",
            fix="add --resize 256 --crop 224 --interpolation bilinear with training's own values",
        )
    if preprocessing.interpolation not in _IN_A_GRAPH:
        raise UsageError(
            f"training resized with {preprocessing.interpolation}, which the graph's formats cannot compute",
            expected=f"one of {', '.join(_IN_A_GRAPH)}",
            fix="leave --image-size out and resize before, or use --ensemble image, which resizes as training did",
        )
    height, width = resized_size(preprocessing, size)
    crop = preprocessing.crop or 0
    if min(height, width) < crop:
        raise UsageError(
            f"images of {size[0]} x {size[1]} become {height} x {width}, too small for a crop of {crop}",
            expected="a resized image that holds the crop",
            fix="correct --resize or --crop",
        )
    made = (crop, crop) if crop else (height, width)
    if made != image.shape[2:]:
        raise UsageError(
            f"resizing and cropping gives {made[0]} x {made[1]}, and the model takes {list(image.shape[2:])}",
            expected="the size that the model takes",
            fix="correct --resize and --crop, or give the model's size with --input-shape",
        )


def resized_size(preprocessing: Preprocessing, size: tuple[int, int]) -> tuple[int, int]:
    """Height and width of an image of `size` once it is resized as in training: the shorter edge, or both."""
    resize = preprocessing.resize
    if resize is None:
        return size
    if isinstance(resize, tuple):
        return resize
    height, width = size
    # torchvision cuts the longer edge down to a whole number.
    if width <= height:
        return int(resize * height / width), resize
    return resize, int(resize * width / height)
