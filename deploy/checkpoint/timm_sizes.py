"""The size of the images that a timm network is built for: as asked, or as its tensors have it.

Owns the search for networks whose tensors follow from it, such as the tables of BEiT and CoAtNet, and what is said
where it is not known. Called by timm_models.
"""

from collections.abc import Callable, Iterable
from typing import Any

from deploy.checkpoint.architecture import Shapes
from deploy.checkpoint.identify import compare
from deploy.checkpoint.timm_entries import TIMM, TimmEntry, digest_names
from deploy.checkpoint.timm_refusals import FACTORY, SHOWN
from deploy.errors import UsageError, listed

Size = tuple[int, int]
# Gives the tensors that an architecture has for images of one size, or of timm's own (None); None where it has none.
Built = Callable[[TimmEntry, Size | None], Shapes | None]

# Multiples of most patches and windows: what a network is built for to see which of its tensors follow.
_OTHER_SIZES = ((448, 448), (512, 512))
_SIDES = 2  # height and width


def named_alike(entries: Iterable[TimmEntry], shapes: Shapes) -> list[TimmEntry]:
    """The architectures with exactly these names of tensors that are built for one size which no tensor counts."""
    names = digest_names(shapes)
    return [one for one in entries if one.sized and one.position is None and names in (one.names, one.headless)]


def of_a_size(entries: list[TimmEntry], shapes: Shapes, size: Size | None, built: Built) -> list[TimmEntry]:
    """Those of the architectures which have these tensors for images of that size.

    Raises UsageError where the weights are those of one for images of another size, or of a size that is not known.
    """
    fitting = [entry for entry in entries if size and built(entry, size) == shapes]
    if fitting or not entries:
        return fitting
    for entry in entries:
        differing = _differing(entry, shapes, size, built)
        if differing:
            raise _another_size([TIMM + one.name for one in entries], size, differing)
    return []


def _differing(entry: TimmEntry, shapes: Shapes, size: Size | None, built: Built) -> str:
    """A tensor with its shapes here and for that size, where those of another size explain all that differs."""
    own = built(entry, size)
    if own is None or own.keys() != shapes.keys():
        return ""
    wrong = [name for name, _, _ in compare(shapes, own).reshaped]
    other = next(filter(None, (built(entry, size) for size in _OTHER_SIZES)), own) if wrong else own
    if not wrong or not {*wrong} <= {name for name, _, _ in compare(other, own).reshaped}:
        return ""
    return f"{wrong[0]} is {list(shapes[wrong[0]])}, not {list(own[wrong[0]])}"


def _another_size(names: list[str], size: Size | None, differing: str) -> UsageError:
    said = f"{size[0]} x {size[1]}" if size else "timm's usual one"
    return UsageError(
        f"the weights are those of {listed(names, SHOWN)} for images of another size than {said}: {differing}",
        expected="the size that training built the network for",
        fix="say it: --input-shape CHANNELS,HEIGHT,WIDTH, where training had img_size=(HEIGHT, WIDTH); for one with "
        f"other arguments too, {FACTORY}",
    )


def as_pair(size: Any) -> Size | None:
    """Height and width of a number or a pair; None where there is none."""
    return (size, size) if isinstance(size, int) else (size[0], size[1]) if size else None


def sides_of(asked: tuple[tuple[int, ...], ...]) -> Size | None:
    """Height and width of the one shape that was asked for; None where none was, or it is no image's."""
    sides = asked[0][1:] if asked else ()
    return (sides[0], sides[1]) if len(sides) == _SIDES else None


def guessed_note(size: Size, channels: int) -> tuple[str, ...]:
    """A note on a network that is built for one size, where no tensor and nothing in the file says for which."""
    height, width = size
    return (
        f"input size: {height} x {width}, timm's usual one; the network is built for a size, and nothing says which: "
        f"--input-shape {channels},HEIGHT,WIDTH sets another",
    )


def asked_size(name: str, asked: tuple[tuple[int, ...], ...], channels: int, built: Size | None) -> Size:
    """Height and width as asked for. Raises UsageError where they do not fit the network, `built` for a size or not."""
    given = " and ".join(",".join(map(str, shape)) for shape in asked)
    if len(asked) != 1 or len(asked[0]) != 3 or asked[0][0] != channels or min(asked[0]) < 1:
        raise UsageError(
            f"--input-shape {given} does not fit {name} with {channels} input channels",
            expected=f"one shape {channels},HEIGHT,WIDTH, without the batch",
        )
    size = asked[0][1], asked[0][2]
    if built and size != built:
        raise UsageError(
            f"--input-shape {given} contradicts the positional embedding, which was made for {built[0]} x {built[1]}",
            expected=f"{channels},{built[0]},{built[1]}",
            fix="leave out --input-shape",
        )
    return size
