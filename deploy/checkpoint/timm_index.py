"""The index of timm's architectures: what the tensors of each are called, and which sizes a fine-tune changes.

Owns how an entry is derived from a model, without allocating weights, and the shipped file. Reads no checkpoint.
Called by timm_zoo for a timm release without a shipped index; `python -m deploy.checkpoint.timm_index deploy/data`
writes that of the installed one.
"""

import sys
import warnings
from collections.abc import Mapping
from math import isqrt
from pathlib import Path
from typing import Any

import torch

from deploy.checkpoint.architecture import Shapes
from deploy.checkpoint.build import COUNTER
from deploy.checkpoint.timm_entries import (
    Position,
    TimmEntry,
    digest_names,
    digest_shapes,
    encode,
    import_timm,
    index_file,
    sketch,
)

# Sizes that no model has by itself: a tensor that follows one of them shows it.
_CLASSES, _CHANNELS = 7, 5
_PLAIN = {"num_classes": 1000}  # some are made without a head unless they are asked for one
_OUTSIDE_TIMM = (RuntimeError, ValueError, TypeError, AssertionError, AttributeError, KeyError, NotImplementedError)


def build_index() -> dict[str, TimmEntry]:
    """Every architecture of the installed timm that can be built here, by name. Takes minutes."""
    timm = import_timm()
    entries = (look_at(timm, name) for name in timm.list_models())
    return {entry.name: entry for entry in entries if entry is not None}


def look_at(timm: Any, name: str) -> TimmEntry | None:
    """The entry of one architecture; None where it cannot be built without data or a package that is not here."""
    try:
        plain = _shapes(timm, name, _PLAIN)
        changed = _shapes(timm, name, {"num_classes": _CLASSES})
    except _OUTSIDE_TIMM:
        return None
    head = tuple(key for key, shape in plain.items() if changed.get(key, shape) != shape)
    stem = _stem(timm, name, plain)
    sized, position = _position(timm, name, plain)
    flexible = {*head, *stem, *([position.tensor] if position else [])}
    return TimmEntry(
        name=name,
        names=digest_names(plain),
        headless=digest_names(set(plain) - set(head)) if head else "",
        shapes=digest_shapes({key: shape for key, shape in plain.items() if key not in flexible}),
        head=head,
        stem=stem,
        position=position,
        sized=sized,
        sketch=sketch(plain),
    )


def _stem(timm: Any, name: str, plain: Shapes) -> tuple[str, ...]:
    """The tensors whose second dim alone follows the number of input channels; none where more would change."""
    try:
        other = _shapes(timm, name, {**_PLAIN, "in_chans": _CHANNELS})
    except _OUTSIDE_TIMM:
        return ()
    changed = tuple(key for key, shape in plain.items() if other.get(key) != shape)
    fits = all(other.get(key) == (plain[key][0], _CHANNELS, *plain[key][2:]) for key in changed)
    return changed if fits and plain.keys() == other.keys() else ()


def _position(timm: Any, name: str, plain: Shapes) -> tuple[bool, Position | None]:
    """Whether the model is built for an image size, and the embedding that shows which, if one alone follows it."""
    cfg = timm.models.get_pretrained_cfg(name)
    if cfg is None or not cfg.fixed_input_size or cfg.input_size[1] != cfg.input_size[2]:
        return False, None
    side = cfg.input_size[1]
    try:
        larger = _shapes(timm, name, {**_PLAIN, "img_size": 2 * side})
    except _OUTSIDE_TIMM:
        return False, None
    changed = [key for key, shape in plain.items() if larger.get(key) != shape]
    if len(changed) != 1 or plain.keys() != larger.keys() or len(plain[changed[0]]) != 3:
        return True, None
    tokens, more = plain[changed[0]][1], larger[changed[0]][1]
    grid = isqrt((more - tokens) // 3)
    exact = 3 * grid**2 == more - tokens and grid > 0 and side % grid == 0
    return True, Position(tensor=changed[0], prefix=tokens - grid**2, patch=side // grid) if exact else None


def _shapes(timm: Any, name: str, options: Mapping[str, Any]) -> Shapes:
    with torch.device("meta"), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        module = timm.create_model(name, pretrained=False, **options)
    return {key: tuple(value.shape) for key, value in module.state_dict().items() if not key.endswith(COUNTER)}


def main() -> None:
    """Write the index into the folder given as argument."""
    index_file(Path(sys.argv[1])).write_bytes(encode(build_index()))


if __name__ == "__main__":
    main()
