"""Real pictures for tests: scikit-learn's two photographs, as patches of pixels and as encoded files."""

import io
from pathlib import Path

import numpy as np
from PIL import Image
from sklearn.datasets import load_sample_image

PHOTOGRAPHS = ("china.jpg", "flower.jpg")


def sample_pixels(rows: int, *, size: int) -> np.ndarray:
    """Patches of both photographs, uint8 [rows, 3, size, size], some of them much darker."""
    generator = np.random.default_rng(0)
    patches = []
    for row in range(rows):
        photograph = load_sample_image(PHOTOGRAPHS[row % 2])
        top, left = (int(generator.integers(0, edge - size)) for edge in photograph.shape[:2])
        patch = photograph[top : top + size, left : left + size].transpose(2, 0, 1)
        patches.append((patch * (1.0 if row % 3 else 0.4)).astype(np.uint8))
    return np.stack(patches)


def write_photographs(folder: Path) -> Path:
    """The folder with both photographs: one as JPEG, one as PNG."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, suffix in zip(PHOTOGRAPHS, (".jpg", ".png"), strict=True):
        Image.fromarray(load_sample_image(name)).save(folder / Path(name).with_suffix(suffix))
    return folder


def encoded(pixels: np.ndarray, *, kind: str = "PNG", mode: str | None = None) -> bytes:
    """An image file of pixels [height, width] or [height, width, 3]."""
    stream = io.BytesIO()
    picture: Image.Image = Image.fromarray(pixels)
    (picture.convert(mode) if mode else picture).save(stream, kind)
    return stream.getvalue()
