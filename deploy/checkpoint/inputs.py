"""The input spec and the preprocessing of a checkpoint, each from the best source there is.

Owns that order of sources and how honestly each is worded. Reads no file.
Called by load.
"""

from collections.abc import Sequence

from deploy.checkpoint.architecture import Kind, Shape
from deploy.checkpoint.identify import Match
from deploy.checkpoint.model import CheckpointRequest, DynamicRequest, Preprocessing
from deploy.checkpoint.training import TrainingFacts
from deploy.errors import UsageError
from deploy.spec import BATCH, Dim, TensorSpec

# RAFT looks at features an eighth as large, down to an eighth of those again, where two must remain.
_FLOW_STEP, _FLOW_LEAST = 8, 128
_SIZES: dict[Kind, str] = {
    "segmentation": "the side that the default weights' images were resized to",
    "video": "frames, height and width of the default weights' clips",
    "flow": "the smallest that the network takes",
    "detection": "the size that the network resizes all images to (--resize PX where training had another)",
    "two-stage detection": "the size that the network resizes images to",
}
# What an axis is called, by the number of axes: tokens, tokens with features, images, videos.
_AXES = {
    2: {1: "sequence"},
    3: {1: "sequence"},
    4: {2: "height", 3: "width"},
    5: {2: "frames", 3: "height", 4: "width"},
}
# What pixels are divided by, or not: the range that mean and standard deviation are of.
PIXEL_RANGE, UNIT_RANGE = (0.0, 255.0), (0.0, 1.0)
UNKNOWN = Preprocessing(source="unknown")
UNKNOWN_NOTE = "preprocessing: unknown; nothing says how images became input tensors during training"
RESIZE_NOTE = "resize and crop: unknown for"  # how it begins


def input_shape(match: Match, request: CheckpointRequest, facts: TrainingFacts) -> Shape:
    """Channels, (frames,) height and width of each input, from the best source there is.

    As asked, else from the positional embedding, the checkpoint, the default weights. Raises UsageError if what was
    asked contradicts the tensors, or if no source knows.
    """
    entry, channels = match.architecture, match.in_channels
    if request.input_shapes:
        return _asked_shape(match, request.input_shapes)
    side = match.image_size or (None if entry.size_is_fixed else facts.size)
    frames = entry.size[:-2] if entry.size else ()
    if side is not None:
        return (channels, *frames, side, side)
    if entry.size is None:
        raise UsageError(
            f"the input size of {entry.name} is not known",
            expected="a size that training used",
            fix=f"add --input-shape {_form(match)}",
        )
    return (channels, *entry.size)


def size_notes(match: Match, request: CheckpointRequest, facts: TrainingFacts) -> tuple[str, ...]:
    """Where the size comes from, where that is a guess that the user should look at: weights do not tell it."""
    entry = match.architecture
    if request.input_shapes or facts.size or entry.kind not in _SIZES or entry.size_is_fixed:
        return ()
    assert entry.size is not None
    size = " x ".join(map(str, entry.size))
    return (f"input size: {size}, {_SIZES[entry.kind]}; --input-shape {_form(match)} sets another",)


def input_specs(shapes: Sequence[Sequence[int]], names: Sequence[str], dtype: str) -> tuple[TensorSpec, ...]:
    """One spec per shape, the dynamic batch dim before it."""
    return tuple(
        TensorSpec(name=name, dtype=dtype, shape=(BATCH, *shape)) for name, shape in zip(names, shapes, strict=True)
    )


def check_plain(request: CheckpointRequest, *, names: Sequence[str], why: str) -> None:
    """Raises UsageError if anything but plain sizes of the inputs `names` was said, which is all there is to say."""
    named = [one.name for one in request.inputs if one.name not in (None, *names)]
    if named or any(one.shape is None or one.dtype for one in request.inputs) or request.values:
        raise UsageError(
            f"{why} takes {', '.join(names)} of the weights' dtype",
            expected="--input-shape C,H,W",
            fix="leave out names, dtypes and --values, or use --factory for a module of your own",
        )


def with_dynamic(
    inputs: tuple[TensorSpec, ...], requests: Sequence[DynamicRequest]
) -> tuple[tuple[TensorSpec, ...], tuple[Dim, ...]]:
    """The inputs with dynamic dims where they were asked for, and the bounds of those dims.

    Axes that share a name are one dim, with one size in every request. Raises UsageError for an axis that does not
    exist, or one dim with two bounds.
    """
    named = {tensor.name: tensor for tensor in inputs}
    dims: dict[str, Dim] = {}
    for request in requests:
        if request.input not in named:
            raise UsageError(
                f"--dynamic {request.input}: there is no input {request.input!r}",
                expected=f"one of {', '.join(named)}",
            )
        for axis, name in request.axes:
            tensor = named[request.input]
            dim = _dim(tensor, axis, name=name, bounds=request.bounds)
            if dims.setdefault(dim.name, dim) != dim:
                first = dims[dim.name]
                raise UsageError(
                    f"--dynamic {request.input}: {dim.name} is {dim.minimum}..{dim.maximum} here and "
                    f"{first.minimum}..{first.maximum} in another input",
                    expected="one size of that name in a request",
                    fix=f"give both the same bounds, or this one a name of its own: {request.input}:{axis}@NAME",
                )
            shape = (*tensor.shape[:axis], dim.name, *tensor.shape[axis + 1 :])
            named[request.input] = tensor.model_copy(update={"shape": shape})
    return tuple(named.values()), tuple(dims.values())


def _dim(tensor: TensorSpec, axis: int, *, name: str | None, bounds: tuple[int, int] | None) -> Dim:
    """The dim of one axis, called by the field's usual word for it unless it was given a name."""
    words = _AXES.get(len(tensor.shape), {})
    size = tensor.shape[axis] if 0 < axis < len(tensor.shape) else None
    if not isinstance(size, int):
        what = "the batch, which --max-batch makes dynamic" if axis == 0 else "dynamic already" if size else "no axis"
        raise UsageError(
            f"--dynamic {tensor.name}:{axis}: axis {axis} of {list(tensor.shape)} is {what}",
            expected=f"an axis in 1..{len(tensor.shape) - 1}",
        )
    low, high = bounds or (max(1, size // 2), size)
    if not 1 <= low < high:
        raise UsageError(
            f"--dynamic {tensor.name}:{axis}: {low}..{high} are no bounds",
            expected="MIN..MAX with 1 <= MIN < MAX",
            fix=f"write --dynamic {tensor.name}:{axis}=1..{max(2, size)}, or leave it out for a constant size",
        )
    return Dim(name=name or words.get(axis, f"{tensor.name}_{axis}"), minimum=low, maximum=high)


def preprocessing_of(match: Match, shape: Shape, facts: TrainingFacts) -> tuple[Preprocessing, tuple[str, ...]]:
    """What is known of the preprocessing, and the notes that say how far it can be relied on."""
    return with_facts(facts, *_usual_preprocessing(match, shape))


def with_facts(
    facts: TrainingFacts, usual: Preprocessing, notes: tuple[str, ...]
) -> tuple[Preprocessing, tuple[str, ...]]:
    """What the checkpoint tells, and the usual mean and deviation where it tells neither; `notes` are on the usual.

    A size that is told leaves the usual resize behind: together they might be nobody's.
    """
    if not facts.knows_preprocessing:
        return usual, notes
    told = preprocessing_from(facts)
    if told.mean or told.std or usual.mean is None:
        return told, ()
    filled: dict[str, object] = {
        "mean": usual.mean,
        "std": usual.std,
        "value_range": usual.value_range,
        "layout": usual.layout,
    }
    if told.interpolation is None:
        filled["interpolation"] = usual.interpolation
    if told.resize is None and told.crop is None:
        filled |= {"resize": usual.resize, "crop": usual.crop}
    if told.resize is not None:
        notes = tuple(note for note in notes if not note.startswith(RESIZE_NOTE))
    return told.model_copy(update={**filled, "source": f"checkpoint, else {usual.source}"}), notes


def _usual_preprocessing(match: Match, shape: Shape) -> tuple[Preprocessing, tuple[str, ...]]:
    """That of the builder's default weights, and the notes that say that it is a guess."""
    transforms, size = match.architecture.transforms, shape[1:]
    if transforms is None or shape[0] != len(transforms.mean):
        return UNKNOWN, (UNKNOWN_NOTE,)
    steps = transforms.resize is not None or transforms.crop is not None
    as_trained = size == match.architecture.size
    notes = [
        f"preprocessing: that of {transforms.source}, the builder's default pre-trained weights; "
        "nothing in the checkpoint says that this training used the same"
    ]
    if steps and not as_trained:
        used = transforms.crop or transforms.resize
        notes.append(f"{RESIZE_NOTE} {' x '.join(map(str, size))}; those weights used {used}")
    return Preprocessing(
        source=transforms.source,
        resize=transforms.resize if as_trained else None,
        crop=transforms.crop if as_trained else None,
        mean=transforms.mean,
        std=transforms.std,
        layout="NCTHW, RGB" if match.architecture.kind == "video" else "NCHW, RGB",
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
        value_range=range_of(facts.mean, facts.std),
        interpolation=facts.interpolation,
    )


def range_of(mean: Sequence[float] | None, std: Sequence[float] | None) -> tuple[float, float] | None:
    """0..255 where mean or deviation can only be of such pixels (123.7 and 58.4, say); None where nothing is told."""
    return PIXEL_RANGE if any(abs(value) > 1 for value in (*(mean or ()), *(std or ()))) else None


def mixed_ranges(mean: Sequence[float] | None, std: Sequence[float] | None) -> bool:
    """Whether one of them can only be of pixels in 0..255 (123.7), and the other only of pixels in 0..1 (0.229)."""
    if not mean or not std:
        return False
    largest, widest = max(map(abs, mean)), max(std)
    return widest < 1 < largest or 0 < largest <= 1 < widest


def _asked_shape(match: Match, asked: tuple[tuple[int, ...], ...]) -> Shape:
    """The one shape that was asked for, which a network of several inputs takes for each of them."""
    entry, channels, shape = match.architecture, match.in_channels, asked[0]
    given = " and ".join(",".join(map(str, each)) for each in asked)
    rank = 3 + (entry.kind == "video")
    if len({*asked}) != 1 or len(asked) not in (1, len(entry.inputs)) or len(shape) != rank or shape[0] != channels:
        raise UsageError(
            f"--input-shape {given} does not fit {entry.name} with {channels} input channels",
            expected=f"one shape {_form(match)}, without the batch",
        )
    fixed = (match.image_size, match.image_size) if match.image_size else entry.size if entry.size_is_fixed else None
    if fixed is not None and shape[1:] != fixed:
        raise UsageError(
            f"--input-shape {given} contradicts the positional embedding, which was made for "
            f"{' x '.join(map(str, fixed))}",
            expected=f"{channels},{','.join(map(str, fixed))}",
            fix="leave out --input-shape, or interpolate the embedding in training",
        )
    if entry.size_option and shape[1] != shape[2]:
        raise UsageError(
            f"--input-shape {given} is no square",
            expected=f"height and width that are equal: torchvision's {entry.name} takes no other images",
            fix="resize or pad the images to a square",
        )
    if entry.kind == "flow" and (min(shape[1:]) < _FLOW_LEAST or any(side % _FLOW_STEP for side in shape[1:])):
        raise UsageError(
            f"--input-shape {given} does not fit {entry.name}",
            expected=f"height and width of at least {_FLOW_LEAST}, each a multiple of {_FLOW_STEP}",
            fix="pad the images",
        )
    return shape


def _form(match: Match) -> str:
    return f"{match.in_channels},{'FRAMES,' if match.architecture.kind == 'video' else ''}HEIGHT,WIDTH"
