"""The encoded images that an ensemble was proven with, as they lie in its version's evidence.

Owns the file's name and its reading. Called by the ensemble's proof, and by whoever asks a served ensemble again.
"""

from pathlib import Path

import numpy as np

from deploy.errors import UsageError

ARRAYS = "images.npz"


def load_encoded(folder: Path) -> tuple[tuple[bytes, ...], np.ndarray]:
    """All images in their order, and the scores of those that are whole, which come first.

    Raises UsageError if the file is absent or damaged.
    """
    try:
        with np.load(folder / ARRAYS, allow_pickle=False) as archive:
            count = sum(name.startswith("image/") for name in archive.files)
            return tuple(archive[f"image/{n}"].tobytes() for n in range(count)), archive["scores"]
    except (OSError, KeyError, ValueError) as error:
        raise UsageError(
            f"{folder / ARRAYS} cannot be read: {error}", expected="the file that packaging wrote, unedited"
        ) from error
