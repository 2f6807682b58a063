"""The images that an ensemble is proven with: the user's own, seeded ones in every colour mode, and damaged ones.

Owns what they are. Decodes nothing of the user's. Called by image and package.
"""

import io
from pathlib import Path

import numpy as np

from deploy.ensemble.inputs import NamedInput, spread
from deploy.ensemble.transform import ImageTransform
from deploy.errors import UsageError

SUFFIXES = (".jpg", ".jpeg", ".png")
_SEED = 0
_GRID = 7
_ORIENTATION = 0x0112  # the EXIF tag; 6 is a camera held upright, 90 degrees clockwise


def read_images(folder: Path) -> tuple[NamedInput, ...]:
    """At most 16 of the folder's JPEG and PNG files, spread evenly over the sorted names.

    Raises UsageError if there is no such folder, or no image in it.
    """
    if not folder.is_dir():
        raise UsageError(f"{folder} is no folder", expected="a folder of JPEG or PNG files for --images")
    paths = sorted(path for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES and path.is_file())
    if not paths:
        raise UsageError(
            f"{folder} holds no image", expected=f"files that end in {', '.join(SUFFIXES)}", fix="name another folder"
        )
    return tuple(NamedInput(name=path.relative_to(folder).as_posix(), data=path.read_bytes()) for path in spread(paths))


def seeded_images(transform: ImageTransform) -> tuple[NamedInput, ...]:
    """Smooth fields with noise as JPEG and PNG: upright and wide, in colour, grey, alpha, palette, CMYK, and turned."""
    from PIL import Image

    generator = np.random.default_rng(_SEED)
    height, width = _large_enough(transform)
    pictures = [
        ("colour.jpg", "RGB", (height, width)),
        ("upright.png", "RGB", (width, height)),
        ("grey.jpg", "L", (height, width)),
        ("alpha.png", "RGBA", (height, width)),
        ("palette.png", "P", (height, width)),
        ("cmyk.jpg", "CMYK", (height, width)),
        ("turned.jpg", "RGB", (height, width)),
    ]
    images = []
    for name, mode, size in pictures:
        picture: Image.Image = Image.fromarray(_field(generator, size)).convert(mode)
        options = {}
        if name == "turned.jpg":
            exif = Image.Exif()
            exif[_ORIENTATION] = 6
            options = {"exif": exif}
        stream = io.BytesIO()
        picture.save(stream, "JPEG" if name.endswith("jpg") else "PNG", **options)
        images.append(NamedInput(name=f"seeded {name}", data=stream.getvalue()))
    return tuple(images)


def damaged_images(good: bytes) -> tuple[NamedInput, ...]:
    """What no decoder can use: nothing, text, half of an image that ends with its pixels, a header without an image."""
    return (
        NamedInput(name="an empty string", data=b""),
        NamedInput(name="a text", data=b"<html>no such image</html>"),
        NamedInput(name="half an image", data=good[: len(good) // 2]),
        NamedInput(name="the head of a JPEG", data=b"\xff\xd8\xff\xe0\x00\x10JFIF\x00"),
    )


def _large_enough(transform: ImageTransform) -> tuple[int, int]:
    """Height and width of a wide image that resizing makes smaller, as photographs are."""
    resize = transform.resize
    edge = max(resize) if isinstance(resize, tuple) else resize or max(transform.size)
    return int(edge * 1.5) + 1, edge * 2 + 3


def _field(generator: np.random.Generator, size: tuple[int, int]) -> np.ndarray:
    """Colours [height, width, 3] in 0..255: a few soft patches and some grain."""
    from PIL import Image

    patches = Image.fromarray(generator.integers(0, 256, (_GRID, _GRID, 3), dtype=np.uint8))
    smooth = np.asarray(patches.resize((size[1], size[0]), Image.Resampling.BICUBIC)).astype(np.float64)
    return np.clip(smooth + generator.normal(0, 12, smooth.shape), 0, 255).astype(np.uint8)
