"""What is said of weights that are no architecture of timm's, several of them, or not the one that was asked for.

Owns these refusals; what fits is decided in timm_models, which calls this.
"""

from deploy.checkpoint.architecture import Shapes
from deploy.checkpoint.identify import Difference, UnknownArchitectureError
from deploy.checkpoint.timm_entries import TIMM, TimmEntry, likeness, sketch, timm_version
from deploy.checkpoint.timm_zoo import load_index
from deploy.errors import UsageError, listed

FACTORY = "give your own architecture as --factory package.module:function"
INSTALL = 'pip install "deployctl[timm]"'
_NEAREST = 3
SHOWN = 12


def ambiguous(names: list[str], reason: str) -> UsageError:
    """The refusal of weights that several architectures have, the likeliest first, and what speaks for that one."""
    likely = f", likely {TIMM}{names[0]}, since {reason}" if reason else ""
    return UsageError(
        f"the weights fit {len(names)} architectures of timm, which may compute or preprocess differently: "
        f"{listed(names, SHOWN)}",
        expected="one; nothing in the weights can tell them apart",
        fix=f"say which one was trained{likely}: --arch {TIMM}{names[0]}",
    )


def nearest(shapes: Shapes) -> list[tuple[str, float]]:
    """The few architectures whose tensors' names are most like these, with the share of names in common."""
    found = sketch(shapes)
    shares = {entry.name: likeness(found, entry.sketch) for entry in load_index().values()}
    near = sorted(shares, key=lambda name: shares[name], reverse=True)[:_NEAREST]
    return [(name, shares[name]) for name in near if shares[name]]


def unknown(otherwise: UsageError | None, shapes: Shapes) -> UsageError:
    """The refusal of torchvision's index, with timm's nearest by the names of tensors."""
    near = nearest(shapes)
    alike = [f"{name} ({share:.0%})" for name, share in near]
    words = f"; of timm {timm_version()} none fits" + (
        f", nearest by tensor names: {', '.join(alike)}" if alike else ""
    )
    assert otherwise is not None
    if near and near[0][1] == 1:
        maker = f"timm.create_model({near[0][0]!r}, ...)"
        return UsageError(
            otherwise.found.partition(":")[0] + words,
            expected=f"the shapes of one of them too: other arguments of {maker}, such as embed_dim, make others",
            fix=f"{FACTORY}, a function that returns {maker} with the arguments of training",
        )
    return UnknownArchitectureError(otherwise.found + words, expected=otherwise.expected, fix=otherwise.fix)


def misfit(name: str, difference: Difference, entry: TimmEntry, size: tuple[int, int, int]) -> UsageError:
    """The refusal that names what differs; where only shapes do, the image size may be another one than training's."""
    fix = f"leave out --arch to have it identified; or {FACTORY}"
    if entry.sized and not difference.missing and not difference.unexpected:
        fix = (
            f"say which size it was made for, where that was not {size[1]} x {size[2]}: "
            f"--input-shape {size[0]},HEIGHT,WIDTH; or {fix}"
        )
    return UsageError(
        f"the weights do not fit {TIMM}{name}:\n    " + "\n    ".join(difference.lines(limit=20)),
        expected="every tensor of the architecture and no other",
        fix=fix,
    )
