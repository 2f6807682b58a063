"""What the preprocessing step of an image ensemble does, as it stands beside it in `transform.json`.

Owns which checkpoints it is known for, and the refusals. Runs nothing. Called by image and package.
"""

from typing import Literal

from deploy.checkpoint.inputs import RESIZE_NOTE, UNKNOWN
from deploy.checkpoint.model import Checkpoint, Preprocessing
from deploy.checkpoint.preprocess import INTERPOLATIONS, known_scaling
from deploy.checkpoint.pretrained_folder import PROCESSOR, open_folder
from deploy.errors import UsageError
from deploy.records import Record

TRANSFORM_FILE = "transform.json"
PURPOSE = "--ensemble image"
_MODES: dict[int, Literal["L", "RGB"]] = {1: "L", 3: "RGB"}
# What a photograph has today, several times over; a small file can claim any size, and takes its memory.
_MAX_PIXELS = 178_956_970  # the size at which Pillow itself refuses: 2 x 89 million


class ImageTransform(Record):
    """From an encoded image to the network's row. `mean` and `std` are None where the graph itself normalises.

    `size` is the network's (height, width), `resize` the shorter edge or (height, width), lengths in pixels.
    `crop_rounds` says where the crop begins when an odd number is left over: transformers rounds the half down.
    `exif_orientation` says whether training turned photographs as their EXIF says.
    """

    mode: Literal["L", "RGB"]
    resize: int | tuple[int, int] | None
    crop: int | None
    interpolation: str
    size: tuple[int, int]
    mean: tuple[float, ...] | None
    std: tuple[float, ...] | None
    value_range: tuple[float, float]
    dtype: str
    exif_orientation: bool
    crop_rounds: Literal["even", "down"] = "even"
    max_pixels: int = _MAX_PIXELS


def image_transform(checkpoint: Checkpoint, *, exif_orientation: bool) -> ImageTransform:
    """The transform of a checkpoint's training. Raises UsageError where a part of it is not known."""
    known = checkpoint.preprocessing
    channels, height, width = _image_of(checkpoint)
    fused = "scale" in known.fused
    _check_answers(checkpoint)
    if checkpoint.how == "config":
        _check_processor(checkpoint)
    if not fused:
        known_scaling(known, channels, PURPOSE)
    crop = _check_resizing(known, (height, width))
    return ImageTransform(
        mode=_MODES[channels],
        resize=known.resize,
        crop=crop,
        interpolation=known.interpolation or "bilinear",
        size=(height, width),
        mean=None if fused else known.mean,
        std=None if fused else known.std,
        value_range=known.value_range or (0.0, 1.0),
        dtype=checkpoint.inputs[0].dtype,
        exif_orientation=exif_orientation,
        crop_rounds="down" if checkpoint.how == "config" else "even",
    )


def _check_answers(checkpoint: Checkpoint) -> None:
    """Raises UsageError if softmax scores are not what the network was trained for, as far as that is known."""
    problem = open_folder(checkpoint.network_path).config.get("problem_type") if checkpoint.how == "config" else None
    require_one_class_of_several(PURPOSE, checkpoint.num_classes, problem)


def require_one_class_of_several(purpose: str, classes: int | None, problem: str | None) -> None:
    """Raises UsageError for one number and for several labels at once, of which softmax would make nonsense."""
    if classes == 1 or problem in ("regression", "multi_label_classification"):
        what = "one number" if classes == 1 or problem == "regression" else "several labels at once"
        raise UsageError(
            f"{purpose} scores classes of which one is right, and this network was trained for {what}",
            expected="a classifier of at least two classes, trained with softmax",
            fix=f"leave {purpose} out: the version gives the raw outputs",
        )


def _check_processor(checkpoint: Checkpoint) -> None:
    """Raises UsageError if the folder has no image processor, or one that does what the first step cannot."""
    known = checkpoint.preprocessing
    if known.source == UNKNOWN.source:
        raise UsageError(
            f"{PURPOSE}: no image processor lies in {checkpoint.network_path}",
            expected=f"that of training beside the weights: {PROCESSOR}",
            fix="save it there: processor.save_pretrained(folder)",
        )
    if known.mean is None or known.resize is None or known.layout == "NCHW, BGR":
        why = next((note for note in checkpoint.notes if note.startswith(("preprocessing:", RESIZE_NOTE))), "")
        raise UsageError(
            f"{PURPOSE}: what the processor of {checkpoint.network_path} does is more than the first step can do: "
            + (why or "it turns RGB to BGR"),
            expected="resize, crop, scaling and normalising to the size that the network takes",
            fix=f"leave {PURPOSE} out, and prepare images with the processor itself, which the version keeps",
        )


def _image_of(checkpoint: Checkpoint) -> tuple[int, int, int]:
    """Channels, height and width of the one image that the network takes."""
    inputs, known = checkpoint.inputs, checkpoint.preprocessing
    described = ", ".join(f"{tensor.name} {tensor.dtype} {list(tensor.shape)}" for tensor in inputs)
    sizes = [size for size in inputs[0].shape[1:] if isinstance(size, int)]
    if len(inputs) != 1 or len(sizes) != 3 or len(inputs[0].shape) != 4 or sizes[0] not in _MODES:
        raise UsageError(
            f"{PURPOSE} needs a model of one image, and this one takes {described}",
            expected="one input of 1 or 3 channels and a constant height and width",
            fix=f"leave {PURPOSE} out, and decode in the client",
        )
    if inputs[0].dtype not in ("float32", "float16", "uint8"):
        raise UsageError(
            f"{PURPOSE}: the network takes {inputs[0].dtype}, which a Python model cannot hand on",
            expected="float32, float16, or --fuse-preprocess",
            fix="add --fuse-preprocess, so that pixels are handed on",
        )
    if "resize" in known.fused:
        raise UsageError(
            f"{PURPOSE} and --image-size were both given",
            expected="one of them: both resize and crop",
            fix="leave --image-size out; --fuse-preprocess alone goes well with it",
        )
    return sizes[0], sizes[1], sizes[2]


def _check_resizing(known: Preprocessing, size: tuple[int, int]) -> int | None:
    """The crop, None where the resizing alone gives the network's size."""
    way_out = "say what training did: --resize 256 --crop 224 --interpolation bilinear, or --resize 224,224"
    if known.resize is None or (isinstance(known.resize, int) and known.crop is None):
        missing = "resize" if known.resize is None else "crop"
        raise UsageError(
            f"{PURPOSE} needs {missing} of the preprocessing, which nothing says (source: {known.source})",
            expected="how training made images as large as the network takes them",
            fix=way_out,
        )
    if known.interpolation not in INTERPOLATIONS:
        raise UsageError(
            f"{PURPOSE}: training's interpolation is {known.interpolation or 'not known'}",
            expected=f"one of {', '.join(INTERPOLATIONS)}",
            fix=way_out,
        )
    # A resize of both edges to the network's size leaves nothing to cut off.
    crop = None if known.resize == size else known.crop
    made = (crop, crop) if crop is not None else known.resize
    if made != size:
        raise UsageError(
            f"resizing and cropping as in training gives {made}, and the network takes {size}",
            expected="the size that the network takes",
            fix="correct --resize and --crop, or give the network's size with --input-shape",
        )
    return crop
