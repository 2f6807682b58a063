"""Which ensemble was asked for: its plan, or why there cannot be one.

Owns which options belong to which kind. Called by package.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from deploy.checkpoint.model import Checkpoint
from deploy.ensemble.image import plan_images
from deploy.ensemble.inputs import Kind
from deploy.ensemble.text import plan_texts
from deploy.ensemble.whole import EnsemblePlan, check_part_names
from deploy.errors import UsageError


@dataclass(frozen=True, slots=True, kw_only=True)
class EnsembleRequest:
    """What the user asked for: `kind` is what goes in, None without an ensemble; the others are for one kind each."""

    kind: Kind | None
    images: Path | None = None
    exif_orientation: bool = False
    texts: Path | None = None
    promote: bool = False


def plan_ensemble(
    asked: EnsembleRequest, checkpoint: Checkpoint, *, repository: Path, names: Sequence[str]
) -> EnsemblePlan | None:
    """The plan for a checkpoint that is published as the models `names`; None where no ensemble was asked for.

    Raises UsageError if there cannot be one, or an option was given that it has no use for.
    """
    _check_options(asked)
    if asked.kind is None:
        return None
    for name in names:
        check_part_names(repository, name, asked.kind, promote=asked.promote)
    if asked.kind == "text":
        return plan_texts(checkpoint, asked.texts)
    return plan_images(checkpoint, asked.images, exif_orientation=asked.exif_orientation)


def _check_options(asked: EnsembleRequest) -> None:
    given: dict[str, tuple[Kind, object]] = {
        "--images": ("image", asked.images),
        "--exif-orientation": ("image", asked.exif_orientation),
        "--texts": ("text", asked.texts),
    }
    for option, (kind, value) in given.items():
        if value and asked.kind != kind:
            raise UsageError(
                f"{option} was given without --ensemble {kind}",
                expected=f"an ensemble that takes {kind}s",
                fix=f"add --ensemble {kind}, or leave it out",
            )
