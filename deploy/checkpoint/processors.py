"""What the image processor of a transformers folder does, in the steps that are known here, and held against itself.

Owns the reading of its settings, as its own class completes them, and the comparison: a processor that does more, or
otherwise, is not described by halves. Called by pretrained.
"""

from collections.abc import Callable, Mapping
from types import ModuleType
from typing import Any

import numpy as np

from deploy.checkpoint.inputs import UNKNOWN, UNKNOWN_NOTE
from deploy.checkpoint.model import Preprocessing
from deploy.checkpoint.pretrained_folder import PROCESSOR, PROCESSOR_FOLDER, PretrainedFolder
from deploy.checkpoint.pretrained_inputs import sides
from deploy.spec import TensorSpec

_RESAMPLING = {0: "nearest", 1: "lanczos", 2: "bilinear", 3: "bicubic", 4: "box", 5: "hamming"}
_LEVELS = 255.0
# Below it a ConvNext's processor resizes more and crops, from there on it stretches (`ConvNextImageProcessor.resize`).
_CONVNEXT_STRETCHES = 384
# Resizing rounds to whole levels, in torchvision's tensors at times otherwise than in Pillow: by up to 9 in the noise
# that is resized here, and by 0.3 in the mean. Another mean, order of colours or place is off by more.
_MOST_LEVELS, _MEAN_LEVELS = 24.0, 0.5
_SEED, _COLOURS = 0, 3
# A wide image and an upright one, whose sides leave even and odd rests to be cut off: height and width.
_PICTURES = ((501, 752), (755, 504))


def read_processor(
    transformers: ModuleType, folder: PretrainedFolder, image: TensorSpec
) -> tuple[Preprocessing, tuple[str, ...]]:
    """The preprocessing of the folder's own processor, and a note where it cannot be told in the steps known here."""
    if folder.read(PROCESSOR) is None:
        return UNKNOWN, (UNKNOWN_NOTE,)
    try:
        processor: Any = transformers.AutoImageProcessor.from_pretrained(str(folder.path), local_files_only=True)
        described = _described(type(processor).__name__, processor.to_dict())
        channels, *size = (one for one in image.shape[1:] if isinstance(one, int))
        made, off = _compared(processor, described, channels)
    except Exception as error:  # noqa: BLE001 - a processor of any class runs here; what it raises is in the note
        return _only_by_itself(f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}")
    if off is not None:
        return _only_by_itself(off)
    if made != tuple(size):
        asked, own = (" x ".join(map(str, sides)) for sides in (size, made))
        note = f"resize and crop: unknown for {asked}; the folder's image processor makes {own}"
        return described.model_copy(update={"resize": None, "crop": None}), (note,)
    return described, ()


def made_size(transformers: ModuleType, folder: PretrainedFolder) -> tuple[int, int] | None:
    """Height and width of what the folder's processor makes of any image; None where that depends on the image."""
    if folder.read(PROCESSOR) is None:
        return None
    channels = int(folder.config.get("num_channels", _COLOURS))
    try:
        processor: Any = transformers.AutoImageProcessor.from_pretrained(str(folder.path), local_files_only=True)
        made = {
            processor(images=[_picture(size, channels)], return_tensors="np")["pixel_values"].shape[-2:]
            for size in _PICTURES
        }
    except Exception:  # noqa: BLE001 - a processor of any class runs here; `read_processor` says what it raises
        return None
    height, width = made.pop()
    return None if made else (int(height), int(width))


def _only_by_itself(why: str) -> tuple[Preprocessing, tuple[str, ...]]:
    note = (
        f"preprocessing: not that of resize, crop, scaling and normalising alone ({why}); prepare images by the "
        f"processor itself, which a version keeps in {PROCESSOR_FOLDER}/"
    )
    return Preprocessing(source=PROCESSOR), (note,)


def _described(kind: str, settings: Mapping[str, Any]) -> Preprocessing:
    """The settings in our words: no normalising is one by 0 and 1, so that None stays what is not known."""
    size, crop = settings.get("size"), sides(settings.get("crop_size"))
    resize = sides(size) if settings.get("do_resize") else None
    shorter = isinstance(size, Mapping) and bool(size.get("shortest_edge"))
    crop = crop if settings.get("do_center_crop") else None
    if kind.startswith("ConvNext") and resize:
        crop, shorter = (resize, True) if resize[0] < _CONVNEXT_STRETCHES else (None, False)
        resize = (int(resize[0] / settings["crop_pct"]),) * 2 if crop else resize
    mean, std = _normalised(settings)
    factor = float(settings.get("rescale_factor") or 1 / _LEVELS) if settings.get("do_rescale") else 1.0
    low = -1.0 if settings.get("do_rescale") and settings.get("rescale_offset") else 0.0
    high = round(factor * _LEVELS + low, 9)
    return Preprocessing(
        source=PROCESSOR,
        resize=(resize[0] if shorter else resize) if resize else None,
        crop=crop[0] if crop else None,
        mean=mean,
        std=std,
        layout="NCHW, BGR" if settings.get("do_flip_channel_order") else "NCHW, RGB",
        value_range=(low, high),
        interpolation=_RESAMPLING.get(int(settings.get("resample", -1))),
    )


def _normalised(settings: Mapping[str, Any]) -> tuple[tuple[float, ...], tuple[float, ...]]:
    if not settings.get("do_normalize"):
        return (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)
    mean, std = (tuple(map(float, np.atleast_1d(settings[name]))) for name in ("image_mean", "image_std"))
    # EfficientNet's classifiers were trained with images that are divided twice.
    return (mean, tuple(value**2 for value in std)) if settings.get("include_top") else (mean, std)


def _compared(processor: Any, described: Preprocessing, channels: int) -> tuple[tuple[int, ...], str | None]:
    """Height and width of what the processor makes, and what of it the steps make otherwise; None for nothing."""
    assert described.std is not None and described.value_range is not None
    prepare, made = _as_described(described), np.empty(0)
    level = (described.value_range[1] - described.value_range[0]) / _LEVELS
    for size in _PICTURES:
        picture = _picture(size, channels)
        made = np.asarray(processor(images=[picture], return_tensors="np")["pixel_values"], np.float64)[0]
        ours = prepare(picture)
        if ours.shape != made.shape:
            of = f"of an image of {size[0]} x {size[1]}"
            return made.shape[1:], f"it makes {list(made.shape)} {of}, and these steps {list(ours.shape)}"
        off = np.abs(made - ours) * np.asarray(described.std).reshape(-1, 1, 1) / level
        if off.max() > _MOST_LEVELS or off.mean() > _MEAN_LEVELS:
            return made.shape[1:], f"of 255 levels it is off by {off.max():.3g}, {off.mean():.3g} in the mean"
    return made.shape[1:], None


def _picture(size: tuple[int, int], channels: int) -> Any:
    from PIL import Image

    values = np.random.default_rng(_SEED).integers(0, 256, (*size, 3), dtype=np.uint8)
    return Image.fromarray(values).convert("L" if channels == 1 else "RGB")


def _as_described(described: Preprocessing) -> Callable[[Any], np.ndarray]:
    """The steps in float64, resized by Pillow, cropped as transformers crops: rounded down."""
    from PIL import Image

    from deploy.checkpoint.preprocess import resized_size

    def prepare(picture: Any) -> np.ndarray:
        if described.resize is not None:
            height, width = resized_size(described, (picture.height, picture.width))
            way = Image.Resampling[(described.interpolation or "bilinear").upper()]
            picture = picture.resize((width, height), way)
        if crop := described.crop:
            left, top = (picture.width - crop) // 2, (picture.height - crop) // 2
            picture = picture.crop((left, top, left + crop, top + crop))
        values = np.asarray(picture, np.float64)
        values = values[np.newaxis] if values.ndim == 2 else values.transpose(2, 0, 1)
        if described.layout == "NCHW, BGR":
            values = values[::-1]
        low, high = described.value_range or (0.0, 1.0)
        mean, std = (np.asarray(part, np.float64).reshape(-1, 1, 1) for part in (described.mean, described.std))
        normalised: np.ndarray = (values / _LEVELS * (high - low) + low - mean) / std
        return normalised

    return prepare
