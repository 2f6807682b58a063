"""Which of several timm architectures with the same tensors was most likely trained, and what speaks for it.

Owns that order, which decides nothing: the user is asked, and told what to answer first. Called by timm_models.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from deploy.checkpoint.model import CheckpointRequest
from deploy.checkpoint.timm_entries import import_timm

_Size = tuple[int, int]
_SIDES = 2  # height and width


@dataclass(frozen=True, slots=True, kw_only=True)
class Clues:
    """What is known beside the tensors: how the file and its folder are called, images' size, the number of classes."""

    file: str
    size: _Size | None
    classes: int | None

    @staticmethod
    def of(request: CheckpointRequest, size: _Size | None, *, classes: int | None) -> "Clues":
        """Those of a request; `size` is what the file says, and gives way to what was asked for."""
        asked = request.input_shapes[0][1:] if request.input_shapes else ()
        if len(asked) == _SIDES:
            size = asked[0], asked[1]
        return Clues(file="/".join(request.path.parts[-2:]), size=size, classes=classes)


def likeliest_first(built: Mapping[str, _Size | None], clues: Clues) -> tuple[list[str], str]:
    """The names, the likeliest first, and what the first has before the second; empty where nothing tells them apart.

    `built` has by name what size of image the positions are of. First the name of the file, the longest where
    several stand in it, then images of the size that timm has for it, then its number of classes, then that timm has
    weights to begin with. What all of these leave open stays in order.
    """
    rows = [(name, _speaks_for(name, clues.size or size, clues)) for name, size in built.items()]
    rows.sort(key=lambda row: [strength for strength, _ in row[1]], reverse=True)
    pairs = zip(rows[0][1], rows[1][1], strict=True) if len(rows) > 1 else ()
    return [name for name, _ in rows], next((words for (own, words), (other, _) in pairs if own > other), "")


def _speaks_for(name: str, size: _Size | None, clues: Clues) -> tuple[tuple[int, str], ...]:
    """How much each clue speaks for an architecture, and in which words."""
    cfg: Any = import_timm().models.get_pretrained_cfg(name)
    known, named = cfg is not None, _plain(name) in _plain(clues.file)
    fits = known and size is not None and size == (cfg.input_size[1], cfg.input_size[2])
    return (
        (len(name) if named else 0, f"{clues.file} has its name"),
        (int(fits), f"timm has it for images of {_spelled(size)}"),
        (int(known and cfg.num_classes == clues.classes), f"timm's has {clues.classes or 'no'} classes too"),
        (int(known and bool(cfg.has_weights)), "timm has weights of it to begin with"),
    )


def _spelled(size: _Size | None) -> str:
    return f"{size[0]} x {size[1]}" if size else ""


def _plain(name: str) -> str:
    return re.sub(r"[^a-z0-9]+", "_", name.lower())
