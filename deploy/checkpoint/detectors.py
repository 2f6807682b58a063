"""What can be said of training a detector, which resizes and normalises its images inside the network.

Owns how `--resize` becomes part of such a network, and what is refused. Called by understand, load and servable.
Imports no torch.
"""

from dataclasses import replace

from deploy.checkpoint.architecture import PREFIX, Architecture
from deploy.checkpoint.model import Checkpoint, PreprocessingRequest
from deploy.checkpoint.zoo import load_zoo
from deploy.errors import UsageError

# How an entry's description names what its builder resizes to by default.
_DEFAULT = "the shorter side to"


def as_trained(entry: Architecture, asked: PreprocessingRequest) -> tuple[Architecture, dict[str, int]]:
    """The entry whose usual size and description are those of training, and the builder's keywords that make it so.

    Any entry but a detector's comes back as it is. Raises UsageError if the network cannot be told what was asked.
    """
    if entry.kind != "detection":
        return entry, {}
    given = [f"--{name}" for name in ("mean", "std", "crop", "interpolation") if name in asked.said]
    if given:
        raise UsageError(
            f"{' and '.join(given)} were given, and {entry.name} normalises and resizes its images inside the network",
            expected="pixels in 0..1, and nothing done to them before",
            fix=f"leave out {' and '.join(given)}; where training changed them, --factory with the network as built",
        )
    if asked.resize is None:
        return entry, {}
    if not isinstance(asked.resize, int) or entry.resize_option is None or entry.size is None:
        wanted = "x".join(map(str, asked.resize)) if isinstance(asked.resize, tuple) else str(asked.resize)
        raise UsageError(
            f"--resize {wanted} is nothing that {entry.name} can be told",
            expected="the shorter side, --resize PX, of a RetinaNet or FCOS: an SSD is made for one size",
            fix="leave it out, or --factory with the network as training built it",
        )
    about = entry.about.replace(f"{_DEFAULT} {entry.size[0]}", f"{_DEFAULT} {asked.resize}, as asked for")
    return replace(entry, about=about, size=(asked.resize, asked.resize)), {entry.resize_option: asked.resize}


def require_one_stage(checkpoint: Checkpoint) -> None:
    """Raises UsageError for a detector of two stages: known by its weights, but never packaged."""
    name = checkpoint.architecture.removeprefix(PREFIX)
    if name == checkpoint.architecture or checkpoint.how not in ("inferred", "asked"):
        return
    entry = load_zoo().get(name)
    if entry and entry.kind == "two-stage detection":
        raise of_two_stages(name)


def of_two_stages(name: str) -> UsageError:
    """Why a detector of two stages is not packaged, and what is."""
    return UsageError(
        f"{name} is a detector of two stages: between them it chooses regions by non-maximum suppression; how many "
        "depends on the image, which no served tensor's shape can follow, and which ones can depend on a rounding",
        expected="a detector of one stage: SSD, RetinaNet or FCOS",
        fix="train one of those, or package the first stage with --factory package.module:function, where the "
        "function gives a module that returns tensors of constant size",
    )
