"""A head that training put in place of a library's own: which layers it has, from its weights and what was said of it.

Owns what follows from the head's tensors, the names of the saved modules and `--head`. Works on shapes alone: no data,
no torch. Called by heads and timm_heads, which know where a network's head is.

Weights tell linear layers and norms, and their order. They do not tell what has no weights: a dropout does nothing in
serving, a ReLU does. So a head is taken without a question only where nothing can stand between its layers.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from deploy.checkpoint.architecture import Shape, Shapes
from deploy.checkpoint.head_layers import Layer, Told, as_told, merged
from deploy.checkpoint.identify import UnknownArchitectureError
from deploy.errors import UsageError

_IDLE = re.compile(r"\d+|.*(drop|flatten|identity).*", re.IGNORECASE)


@dataclass(frozen=True, slots=True, kw_only=True)
class OwnHead:
    """The head: `layers` by name inside a Sequential at `path`, or one layer there; and what to say of it."""

    path: str
    layers: str | dict[str, str]
    num_classes: int
    note: str

    @property
    def option(self) -> dict[str, str | dict[str, str]]:
        """What stands for it in a Checkpoint's options."""
        return {self.path: self.layers}


@dataclass(frozen=True, slots=True, kw_only=True)
class _Place:
    """Where a head lies: `path` is the builder's module that was replaced, which takes rows of `width` numbers.

    `told` are the layers with weights by their names inside the path, in order; "" where one layer is the whole head.
    `slots` names all its modules in order, those without weights too, as far as they are known: `whole` says whether
    that is all of them, `placed` whether a name tells the place among all.
    """

    name: str
    path: str
    width: int
    told: Mapping[str, Told]
    slots: tuple[str, ...]
    whole: bool
    placed: bool

    def at(self, slot: str) -> str:
        """The path of one module of the head."""
        return f"{self.path}.{slot}" if slot else self.path


Layers = dict[str, Layer]


def own_head(
    name: str, path: str, width: int, tensors: Shapes, *, modules: Sequence[str], said: Sequence[Layer] | None
) -> OwnHead:
    """The head of the network `name` at the path, which takes rows of `width` numbers and has these `tensors`.

    `modules` are the names of the saved modules in their order, empty where they are not known; `said` is what `--head`
    says. Raises UsageError where weights do not tell the head, or tell another than was said.
    """
    place = _place(name, path, width, tensors, modules)
    layers = _as_told(place) if said is None else _as_said(place, said)
    texts = {slot: str(layer) for slot, layer in layers.items()}
    gives = [one.gives for one in place.told.values() if one.gives]
    return OwnHead(
        path=path,
        layers=texts.get("", texts),
        num_classes=gives[-1] if gives else width,
        note=_note(place, layers, said=said is not None),
    )


def no_such_head(said: str) -> UnknownArchitectureError:
    """The refusal of a `--head` beside weights that are those of no network with another head."""
    return UnknownArchitectureError(
        f"--head {said!r} was given, and the other weights are no classifier's that is known here",
        expected="a network whose last layers were replaced, and nothing else",
        fix="leave it out to see what the weights fit; or give the network as --factory package.module:function",
    )


def _place(network: str, path: str, width: int, tensors: Shapes, modules: Sequence[str]) -> _Place:
    """What is known of a head. Raises UsageError where its layers are no row of layers that are known here."""
    children: dict[str, dict[str, Shape]] = {}
    for name, shape in tensors.items():
        child, _, last = name.removeprefix(f"{path}.").rpartition(".")
        children.setdefault(child, {})[last] = shape
    numbered = all(child.isdecimal() for child in children)
    if numbered:
        children = dict(sorted(children.items(), key=lambda one: int(one[0])))
    told = {child: layer for child in children if (layer := as_told(children[child])) is not None}
    if len(told) < len(children) or not _is_row(told, width):
        raise _of_own_code(network, path, children, told)
    inside = [name.removeprefix(f"{path}.") for name in modules if name.startswith(f"{path}.")]
    whole = path in modules and {*children} <= {*inside, ""}  # else the names are those of another module
    slots = tuple(name for name in inside if "." not in name) if whole else ()
    if not slots and numbered:
        slots = tuple(str(number) for number in range(int([*told][-1]) + 1))
    return _Place(
        name=network, path=path, width=width, told=told, slots=slots or tuple(told), whole=whole,
        placed=whole or numbered or "" in told,
    )  # fmt: skip


def _is_row(told: Mapping[str, Told], width: int) -> bool:
    """Whether each layer takes what the one before it gives, and all lie in one nn.Sequential or are one layer."""
    for child, one in told.items():
        if "." in child or (not child and len(told) > 1) or one.takes not in (None, width):
            return False
        width = one.gives or width
    return True


def _as_told(place: _Place) -> Layers:
    """The layers, where nothing but a dropout can be among them that weights do not tell. Raises UsageError else."""
    first = place.slots.index(next(iter(place.told)))
    before, others = place.slots[:first], [slot for slot in place.slots[first:] if slot not in place.told]
    unplaced = not place.placed and len(place.told) > 1
    if others or unplaced or not all(_IDLE.fullmatch(slot) for slot in before):
        raise _untold(place)
    return {slot: place.told[slot].layer if slot in place.told else Layer(name="Dropout") for slot in place.slots}


def _as_said(place: _Place, said: Sequence[Layer]) -> Layers:
    """The layers that were said, with the sizes of their weights. Raises UsageError where these tell others."""
    slots = list(place.slots)
    if not place.placed:
        weighted = iter(place.told)
        slots = [next(weighted, "") if layer.holds_weights else f"_{at}" for at, layer in enumerate(said)]
    elif not place.whole and "" not in slots:
        slots += [str(number) for number in range(len(slots), len(said))]
    layers: Layers = {}
    for slot, layer in zip(slots, said, strict=False):
        one = place.told.get(slot)
        taken = merged(layer, one) if one else None if layer.holds_weights else layer
        if taken is None:
            raise _contradicted(place, f"{layer} at {place.at(slot)}", str(one.layer) if one else "no weights there")
        layers[slot] = taken
    if len(slots) != len(said) or not layers.keys() >= place.told.keys():
        count = f"{len(slots)} at {place.path}: {', '.join(place.at(slot) for slot in slots)}"
        raise _contradicted(place, f"{len(said)} layers", count)
    return layers


def _note(place: _Place, layers: Layers, *, said: bool) -> str:
    text = f"the head is training's own: {place.path} is {', '.join(map(str, layers.values()))}"
    if said:
        return f"{text}, as --head says"
    bare = [place.at(slot) for slot in layers if slot not in place.told]
    if bare:
        text += f"; {', '.join(bare)}, without weights, is taken for a dropout, which does nothing in serving"
    if not place.whole:
        text += "; a softmax behind it, or the like, would have left no trace in this file"
    return f"{text}; if training built another, say it with --head"


def _telling(place: _Place) -> str:
    words = [f"{place.at(child)} is {one.layer}" for child, one in place.told.items()]
    bare = [place.at(slot) for slot in place.slots if slot not in place.told]
    return ", ".join(words) + (f"; {', '.join(bare)} without weights" if bare else "")


def _untold(place: _Place) -> UsageError:
    return UsageError(
        f"this is {place.name} with a head of training's own: {_telling(place)}",
        expected="every layer of it: no weights tell a ReLU from a dropout, or whether either is there",
        fix=f"say what training built, in its order, such as --head {', '.join(_example(place))!r}",
    )


def _example(place: _Place) -> list[str]:
    """What such a head mostly is: a ReLU behind a layer, then a dropout, and a softmax at its end."""
    words: list[str] = []
    last = [*place.told][-1]
    for slot in place.slots:
        told = place.told.get(slot)
        if told and words and not place.placed:
            words.append("ReLU")
        behind = bool(words) and words[-1] not in ("Dropout", "ReLU")
        words.append(told.layer.name if told else "Dropout" if not behind else "ReLU" if last else "Softmax(dim=1)")
        last = "" if slot == last else last
    return words


def _contradicted(place: _Place, said: str, told: str) -> UsageError:
    return UsageError(
        f"--head says {said}, and the file of {place.name} tells {told}",
        expected=f"the head that was trained: {_telling(place)}",
        fix="name every module of the head in its order, dropouts too",
    )


def _of_own_code(name: str, path: str, children: Iterable[str], told: Mapping[str, Told]) -> UsageError:
    words = [
        f"{path}.{child}".rstrip(".") + (f" is {told[child].layer}" if child in told else "") for child in children
    ]
    shown = ", ".join(words[:4]) + (f" and {len(words) - 4} more" if len(words) > 4 else "")
    return UsageError(
        f"the weights fit {name} but for its head: {shown}",
        expected="linear layers and norms, one behind another",
        fix=f"this is {name} with another head: give a function that builds it and replaces {path} as training did, as "
        "--factory package.module:function",
    )
