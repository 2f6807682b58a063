"""Encoded images become the network's input, as training made it: the `model.py` of an ensemble's first step.

Runs in Triton's python backend with numpy and Pillow alone. What training did stands in `transform.json` beside it.
An image that cannot be used fails its own request, with the reason; every other request is answered.
"""

import io
import json
import warnings
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

FORMATS = ("JPEG", "PNG")
_LEVELS = np.float32(1.0 / 255.0)


class BadImage(ValueError):  # noqa: N818 - named for what it says
    """An image that cannot be decoded, or is none."""


def prepare(data: bytes, transform: dict[str, Any]) -> np.ndarray:
    """One encoded image as the network's row [channels, height, width]. Raises BadImage with the reason."""
    return _to_array(_crop(_resize(_decode(data, transform), transform), transform), transform)


def _decode(data: bytes, transform: dict[str, Any]) -> Any:
    """The image in the colours of training: grey, palette, alpha and CMYK are converted as `Image.convert` does."""
    if not data:
        raise BadImage("the image is empty (0 bytes)")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            image: Any = Image.open(io.BytesIO(data), formats=FORMATS)
            width, height = image.size
            if width * height > transform["max_pixels"]:
                raise BadImage(f"the image has {width} x {height} pixels; at most {transform['max_pixels']} are taken")
            if transform["exif_orientation"]:
                image = ImageOps.exif_transpose(image)
            return image.convert(transform["mode"])
    except BadImage:
        raise
    except Image.DecompressionBombError:
        # Before its size is known here: Pillow's own limit.
        most = min(transform["max_pixels"], 2 * (Image.MAX_IMAGE_PIXELS or 0))
        raise BadImage(f"the image has more than the {most} pixels that are taken") from None
    except UnidentifiedImageError:
        raise BadImage(f"these {len(data)} bytes are no image in the formats {' and '.join(FORMATS)}") from None
    except Exception as error:  # noqa: BLE001 - decoders raise what they like on bytes that anybody may send
        raise BadImage(f"the image of {len(data)} bytes is damaged: {str(error) or type(error).__name__}") from None


def _resize(image: Any, transform: dict[str, Any]) -> Any:
    """Resized as torchvision resizes a PIL image: the shorter edge, the other one cut down to a whole number."""
    resize = transform["resize"]
    if resize is None:
        return image
    width, height = image.size
    if isinstance(resize, list):
        size = (resize[1], resize[0])
    elif width <= height:
        size = (resize, int(resize * height / width))
    else:
        size = (int(resize * width / height), resize)
    if size == image.size:
        return image
    if min(size) < 1 or size[0] * size[1] > transform["max_pixels"]:
        raise BadImage(f"an image of {width} x {height} would become {size[0]} x {size[1]} when resized as in training")
    return image.resize(size, Image.Resampling[transform["interpolation"].upper()])


def _crop(image: Any, transform: dict[str, Any]) -> Any:
    """The centre, rounded as training's library rounds; what training would have padded is refused."""
    crop = transform["crop"]
    width, height = image.size
    if crop is not None:
        if width < crop or height < crop:
            raise BadImage(f"an image of {width} x {height} is too small for training's crop of {crop}")
        whole = int if transform["crop_rounds"] == "down" else round
        top, left = whole((height - crop) / 2.0), whole((width - crop) / 2.0)
        image = image.crop((left, top, left + crop, top + crop))
        width, height = image.size
    wanted = tuple(transform["size"])
    if (height, width) != wanted:
        raise BadImage(f"the image is {height} x {width} after resizing; the network takes {wanted[0]} x {wanted[1]}")
    return image


def _to_array(image: Any, transform: dict[str, Any]) -> np.ndarray:
    """Channels first; scaled and normalised in float32 as torchvision does, unless the graph itself does so."""
    pixels = np.asarray(image)
    pixels = pixels[np.newaxis] if pixels.ndim == 2 else pixels.transpose(2, 0, 1)
    if transform["mean"] is None:
        return np.ascontiguousarray(pixels)
    values = pixels.astype(np.float32) * _LEVELS
    low, high = transform["value_range"]
    if (low, high) != (0.0, 1.0):
        values = values * np.float32(high - low) + np.float32(low)
    mean, std = (np.asarray(transform[name], np.float32).reshape(-1, 1, 1) for name in ("mean", "std"))
    return np.ascontiguousarray((values - mean) / std, dtype=transform["dtype"])


class TritonPythonModel:
    """What the python backend loads."""

    def initialize(self, args: dict[str, str]) -> None:
        """Read what training did."""
        folder = Path(args["model_repository"], args["model_version"])
        self._transform: dict[str, Any] = json.loads((folder / "transform.json").read_text(encoding="utf-8"))
        self._batched = json.loads(args["model_config"])["max_batch_size"] > 0

    def execute(self, requests: list[Any]) -> list[Any]:
        """One response per request, in order."""
        return [self._respond(request) for request in requests]

    def _respond(self, request: Any) -> Any:
        import triton_python_backend_utils as pb_utils

        images = pb_utils.get_input_tensor_by_name(request, "IMAGE").as_numpy().reshape(-1)
        rows = []
        for position, data in enumerate(images):
            try:
                rows.append(prepare(bytes(data), self._transform))
            except BadImage as error:
                which = f"image {position + 1} of {len(images)}: " if len(images) > 1 else ""
                refused = pb_utils.TritonError(which + str(error), pb_utils.TritonError.INVALID_ARG)
                return pb_utils.InferenceResponse(error=refused)
        return pb_utils.InferenceResponse([pb_utils.Tensor("PIXELS", np.stack(rows))])
