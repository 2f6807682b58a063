"""The files of a version for the vLLM backend that hold where the version lies, and so its number.

Owns their names and how they are renumbered. vLLM takes the path of its weights as it stands, so it is absolute and as
the container sees it: `/models/<name>/<N>/weights`. Called by publish, lint, serve and whoever makes such a version.
"""

import json
from collections.abc import Mapping
from pathlib import Path, PurePosixPath

from deploy.records import read_object

ENGINE_FILE = "model.json"
LORA_FILE = "multi_lora.json"
WEIGHTS_FOLDER = "weights"
LORA_FOLDER = "lora"


def write_engine_file(path: Path, content: Mapping[str, object]) -> None:
    """Write `model.json` or `multi_lora.json`, for people to read too."""
    path.write_text(json.dumps(content, indent=2) + "\n")


def renumber_engine_files(folder: Path, number: int) -> None:
    """Write the version's number into the paths of its engine files, where it has any."""
    if (folder / ENGINE_FILE).is_file():
        arguments = read_object(folder / ENGINE_FILE)
        arguments["model"] = _renumbered(str(arguments["model"]), number, depth=1)
        write_engine_file(folder / ENGINE_FILE, arguments)
    if (folder / LORA_FILE).is_file():
        places = read_object(folder / LORA_FILE)
        write_engine_file(
            folder / LORA_FILE, {name: _renumbered(str(place), number, depth=2) for name, place in places.items()}
        )


def inside_version(path: str, name: str, number: int) -> PurePosixPath | None:
    """What of an in-container path lies below `<name>/<number>/`; None if it does not lead there."""
    found = PurePosixPath(path)
    parts = found.parts
    for place in range(len(parts) - 2, 0, -1):
        if parts[place : place + 2] == (name, str(number)) and found.is_absolute() and ".." not in parts:
            return PurePosixPath(*parts[place + 2 :])
    return None


def _renumbered(path: str, number: int, *, depth: int) -> str:
    """The path with its version's part replaced, which stands `depth` parts before the last."""
    parts = list(PurePosixPath(path).parts)
    parts[-1 - depth] = str(number)
    return str(PurePosixPath(*parts))
