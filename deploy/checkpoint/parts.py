"""What the names of a network's modules tell that its weights do not: torch saves both with a state_dict.

Owns the conclusions drawn from modules without weights, whose names `weights` finds. Reads no file, needs no torch.
Called by understand.
"""

import re
from collections.abc import Collection, Iterable

from deploy.checkpoint.architecture import PREFIX, Architecture
from deploy.checkpoint.weights import unwrap
from deploy.errors import UsageError

_IDLE = re.compile(
    r"loss|criterion|metric|acc|f1|auroc|auc|precision|recall|confusion|drop|flatten|identity|^(train|val|valid|test)_",
    re.IGNORECASE,
)
_STUBS = frozenset(("quant", "dequant"))  # with which torchvision's quantizable forms begin and end
# Squeezenet's own goes on behind its last convolution.
_OWN_ENDING = {"squeezenet1_0": 3, "squeezenet1_1": 3}


def inner_parts(modules: Iterable[str], removed: Iterable[str]) -> tuple[str, ...]:
    """The names of the network's modules in their order, without the wrappers `removed` from those of its weights."""
    return tuple(unwrap(dict.fromkeys(modules), removed))


def beside_notes(modules: Iterable[str], names: Iterable[str], removed: Iterable[str]) -> tuple[str, ...]:
    """What to say of modules without weights that the wrappers `removed` held beside the network: a softmax, a resize.

    `names` are those of the weights, as the file has them. Losses, metrics and dropout change no answer.
    """
    current, weights, found = dict.fromkeys(modules), dict.fromkeys(names), list[str]()
    for step in removed:
        inside = step.removesuffix(".")
        held = {name.partition(".")[0] for name in weights} | {inside, ""}
        if inside and not step.startswith("."):
            found += [name for name in current if "." not in name and name not in held and not _IDLE.search(name)]
        current, weights = unwrap(current, (step,)), unwrap(weights, (step,))
    if not found:
        return ()
    return (
        f"beside the network, the saved module had {', '.join(found)}, without weights: what its own forward does with "
        "that is not known and not served; --factory gives it",
    )


def is_quantizable(parts: Collection[str]) -> bool:
    """Whether the network is one of torchvision's quantizable forms."""
    return _STUBS.issubset(parts)


def ending_notes(entry: Architecture, parts: Collection[str], *, asked: bool) -> tuple[str, ...]:
    """What to say of modules that training put behind the last layer of `entry`, which was `asked` for by name.

    Nothing where there are none. Raises UsageError where it was inferred: a softmax has no weights to be told by.
    """
    last = next(iter(entry.head), "").removesuffix(".weight")
    later = _behind(last, own=_OWN_ENDING.get(entry.name, 0), parts=parts)
    # SSD has a list of last layers, each with weights: one for each size of its features.
    behind = [name for name in later if not any(own.startswith(f"{name}.") for own in entry.shapes)]
    if not behind:
        return ()
    names = ", ".join(behind)
    if asked:
        return (f"{names} of the saved network, behind {last}, have no weights and are left out: {last} answers",)
    raise UsageError(
        f"the weights fit {PREFIX}{entry.name}, but the network that was saved goes on behind its last layer, {last}, "
        f"with {names}: such as a softmax, which no weights tell",
        expected="the builder's own network, which ends there",
        fix="say every layer of the head, such as --head 'Linear, Softmax(dim=1)'; or leave that part out with "
        f"--arch {entry.name}; or give the network that was trained as --factory package.module:function",
    )


def _behind(last: str, *, own: int, parts: Collection[str]) -> list[str]:
    """The modules of the same nn.Sequential that come after `last`, and after the builder's `own`."""
    parent, _, index = last.rpartition(".")
    if not index.isdecimal():
        return []
    inside = (name.removeprefix(f"{parent}.") for name in parts if name.startswith(f"{parent}."))
    numbers = sorted(int(rest) for rest in inside if rest.isdecimal())
    return [f"{parent}.{number}" for number in numbers if number > max(own, int(index))]
