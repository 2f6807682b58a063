"""What an ensemble was proven with, images or texts as they are sent, as it lies in its version's evidence.

Owns the reading for whoever loads a served ensemble; the ensemble's own proof writes and judges it.
"""

from pathlib import Path

import numpy as np

from deploy.errors import UsageError


def load_encoded(folder: Path) -> tuple[str, tuple[bytes, ...]]:
    """The kind, `image` or `text`, and what is whole of it, in its order: what must be refused comes after.

    Raises UsageError if the file is absent or damaged.
    """
    kind = "text" if (folder / "texts.npz").is_file() else "image"
    file = folder / f"{kind}s.npz"
    try:
        with np.load(file, allow_pickle=False) as archive:
            exact = archive["embedding" if "embedding" in archive.files else "scores"]
            return kind, tuple(archive[f"{kind}/{n}"].tobytes() for n in range(len(exact)))
    except (OSError, KeyError, ValueError) as error:
        raise UsageError(
            f"{file} cannot be read: {error}", expected="the file that packaging wrote, unedited"
        ) from error
