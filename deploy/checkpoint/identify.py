"""Which architecture a set of tensor names and shapes belongs to, and how it differs from those it does not.

Owns matching and its messages. Works on shapes alone: no data, no torch.
Called by load.
"""

import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, replace
from math import isqrt
from typing import Any

from deploy.checkpoint.architecture import PREFIX, QUANTIZABLE, Architecture, Shape, Shapes
from deploy.errors import UsageError, listed

COUNTER = ".num_batches_tracked"
_OBSERVER = re.compile(r"(_fake_quant|activation_post_process(_\d+)?)\.")
_STATISTIC = re.compile(r"\.running_(mean|var)$")
_NEAREST = 3
_MOST_NETWORKS = 4  # a teacher beside its student, a generator beside its discriminators
_FACTORY = "give your own architecture, or a builder with a changed head, as --factory package.module:function"


class MismatchError(UsageError):
    """The weights are not those of the architecture."""


class UnknownArchitectureError(MismatchError):
    """No builder of torchvision has these tensors."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """How found tensors differ from expected ones."""

    missing: tuple[str, ...]
    unexpected: tuple[str, ...]
    reshaped: tuple[tuple[str, Shape, Shape], ...]

    def __bool__(self) -> bool:
        return bool(self.missing or self.unexpected or self.reshaped)

    def lines(self, limit: int) -> list[str]:
        """One line per kind of difference, each naming at most `limit` tensors."""
        shapes = [f"{name} is {list(found)}, not {list(wanted)}" for name, found, wanted in self.reshaped]
        kinds = (("missing", self.missing), ("unexpected", self.unexpected), ("other shape", shapes))
        return [f"{kind}: {listed(names, limit)}" for kind, names in kinds if names]


@dataclass(frozen=True, slots=True, kw_only=True)
class Match:
    """An architecture with what was read from the tensors, and what of them does not fit it.

    `also` are architectures that the tensors fit as well, and that are not taken unless they are asked for.
    """

    architecture: Architecture
    options: dict[str, Any]
    num_classes: int | None
    in_channels: int
    image_size: int | None
    agreeing: int
    total: int
    difference: Difference
    also: tuple[Architecture, ...] = ()

    @property
    def likeness(self) -> float:
        """The share of tensors, of the file's and the architecture's together, that agree in name and shape."""
        return self.agreeing / self.total


def identify(found: Shapes, zoo: Mapping[str, Architecture], *, quantizable: bool = False) -> Match:
    """The one architecture that fits exactly, before those that stand second to it.

    Of a network known to be `quantizable`, that form goes first where it computes otherwise than the plain one. Batches
    that were counted rule out a form whose batch norms are frozen.

    Raises UsageError if several fit that compute differently, or none, naming the nearest three.
    """
    names = {name for name in found if not name.endswith(COUNTER)}
    # Most are told apart by their names alone, which is cheaper than comparing shapes with every architecture.
    named = [entry for entry in zoo.values() if names.issuperset(entry.shapes)]
    exact = [match for entry in named if not (match := match_architecture(entry, found)).difference]
    fitting = {match.architecture.name for match in exact}
    first = [match for match in exact if match.architecture.second_to not in fitting]
    if quantizable:
        first = [match for match in exact if match.architecture.differs_as_quantizable] or first
    if len(names) < len(found):
        first = [match for match in first if not match.architecture.is_frozen] or first
    if len(first) > 1:
        raise _ambiguous(first)
    if not first:
        raise _unknown((match_architecture(entry, found) for entry in zoo.values()), names)
    return replace(first[0], also=tuple(match.architecture for match in exact if match is not first[0]))


def forms_of(builder: str, zoo: Mapping[str, Architecture]) -> dict[str, Architecture]:
    """Every architecture that this builder gives, by name: one, or several that it builds from other options."""
    return {name: entry for name, entry in zoo.items() if entry.builder == builder}


def other_forms(taken: Architecture, found: Shapes, zoo: Mapping[str, Architecture]) -> tuple[Architecture, ...]:
    """The other forms of the same builder that the tensors fit as well, for whoever asked for one of them by name."""
    others = (entry for name, entry in forms_of(taken.builder, zoo).items() if name != taken.name)
    return tuple(entry for entry in others if not match_architecture(entry, found).difference)


def match_architecture(entry: Architecture, found: Shapes) -> Match:
    """How `found` fits `entry` once classes, channels and image size are taken from the tensors."""
    found = {name: shape for name, shape in found.items() if name not in entry.auxiliary and not name.endswith(COUNTER)}
    expected = dict(entry.shapes)
    classes = _adapt(expected, found, entry.head, dim=0)
    channels = _adapt(expected, found, {entry.stem: 1} if entry.stem else {}, dim=1)
    size = _adapt_position(entry, expected, found)
    difference = compare(found, expected)
    agreeing = len(expected) - len(difference.missing) - len(difference.reshaped)
    return Match(
        architecture=entry,
        options=_options(entry, classes, channels, size),
        num_classes=classes,
        in_channels=channels or 3,
        image_size=size,
        agreeing=agreeing,
        total=len(expected) + len(difference.unexpected),
        difference=difference,
    )


def compare(found: Shapes, expected: Shapes) -> Difference:
    """What is missing from, unexpected in, or of another shape in `found`."""
    return Difference(
        missing=tuple(name for name in expected if name not in found),
        unexpected=tuple(name for name in found if name not in expected),
        reshaped=tuple(
            (name, found[name], shape) for name, shape in expected.items() if name in found and found[name] != shape
        ),
    )


def require_match(match: Match) -> None:
    """Raises UsageError, naming each difference, if the asked architecture does not fit."""
    if refusal := _without_statistics(match):
        raise refusal
    if match.difference:
        raise MismatchError(
            f"the weights do not fit {PREFIX}{match.architecture.name}, which was asked for:\n    "
            + "\n    ".join(match.difference.lines(limit=20)),
            expected="every tensor of the architecture and no other",
            fix=f"leave out --arch to have it identified; or {_FACTORY}",
        )


def _adapt(expected: Shapes, found: Shapes, multiples: Mapping[str, int], *, dim: int) -> int | None:
    """The size that the first name says in the file, its multiples put into the expected shapes of all.

    None if that tensor is absent, has another rank, or is no multiple long.
    """
    first = next(iter(multiples), None)
    if first is None or len(found.get(first, ())) != len(expected[first]):
        return None
    size, rest = divmod(found[first][dim], multiples[first])
    if rest:
        return None
    for name, multiple in multiples.items():
        shape = list(expected[name])
        shape[dim] = size * multiple
        expected[name] = tuple(shape)
    return size


def _adapt_position(entry: Architecture, expected: Shapes, found: Shapes) -> int | None:
    """The image size that the positional embedding was made for: a square of patches and one class token."""
    if entry.position is None or entry.stem is None:
        return None
    shape = found.get(entry.position, ())
    if len(shape) != 3 or isqrt(shape[1] - 1) ** 2 != shape[1] - 1:
        return None
    expected[entry.position] = (shape[0], shape[1], expected[entry.position][2])
    return isqrt(shape[1] - 1) * expected[entry.stem][-1]


def _options(entry: Architecture, classes: int | None, channels: int | None, size: int | None) -> dict[str, Any]:
    options = dict(entry.options)
    if classes is not None:
        options["num_classes"] = classes
    if channels is not None and channels != 3:
        options["in_channels"] = channels
    if size is not None and entry.size_option:
        options[entry.size_option] = size
    return options


def _ambiguous(exact: list[Match]) -> UsageError:
    lines = [f"{match.architecture.name}: {match.architecture.about}" for match in exact]
    names = " or --arch ".join(match.architecture.name for match in exact)
    fix = f"say which one was trained: --arch {names}"
    if all(match.architecture.kind == "two-stage detection" for match in exact):
        fix = f"train a detector of one stage, which is packaged: SSD, RetinaNet or FCOS; inspect takes --arch {names}"
    return UsageError(
        "the weights fit several architectures that compute differently:\n    " + "\n    ".join(lines),
        expected="one; nothing in the weights can tell them apart",
        fix=fix,
    )


def _unknown(matches: Iterable[Match], names: Collection[str]) -> UsageError:
    plain = (match for match in matches if not match.architecture.name.startswith(QUANTIZABLE))
    nearest = sorted(plain, key=lambda match: match.likeness, reverse=True)[:_NEAREST]
    if refusal := _prepared_to_be_quantized(names) or _changed_stem(nearest[0]) or _without_statistics(nearest[0]):
        return refusal
    blocks = [
        f"{match.architecture.name}: {match.agreeing} of {match.total} tensors agree; "
        + "; ".join(match.difference.lines(limit=4))
        for match in nearest
        if match.agreeing
    ]
    parts = sorted({name.partition(".")[0] for name in names if "." in name})
    loose = sorted(name for name in names if "." not in name)
    if not blocks and 1 < len(parts) + len(loose) <= _MOST_NETWORKS and parts:
        begin = f"their names begin with {', '.join(f'{part}.' for part in parts)}"
        return UnknownArchitectureError(
            f"the weights fit no torchvision builder: {begin}" + (f", beside {', '.join(loose)}" if loose else ""),
            expected="the weights of one network; no tensor agrees with any",
            fix="where one of these is a network of its own, and the one to deploy, save it by itself: "
            f"torch.save(model.{parts[0]}.state_dict(), 'weights.pt'); else {_FACTORY}",
        )
    return UnknownArchitectureError(
        "the weights fit no torchvision builder",
        expected="nearest:\n    " + "\n    ".join(blocks) if blocks else "a torchvision model; no tensor agrees",
        fix=_how_to_build(nearest[0]),
    )


def _prepared_to_be_quantized(names: Iterable[str]) -> UsageError | None:
    """The refusal of a network in which torch's `prepare` or `prepare_qat` put observers."""
    observers = sorted(name for name in names if _OBSERVER.search(name))
    if not observers:
        return None
    return UsageError(
        f"the network was prepared to be quantized eagerly: {listed(observers, 2)} are no weights of its layers",
        expected="float weights: neither format carries the modules that torch quantizes eagerly",
        fix="save the float weights from before `prepare`; or train with torchao's QATConfig and convert for weights "
        "only, which is packaged",
    )


def _changed_stem(match: Match) -> UsageError | None:
    """The refusal of weights that fit but for the kernel of the first convolution, as for small images.

    No library's builder is the network: its strides, and whether it pools behind, are not in the weights.
    """
    stem, difference = match.architecture.stem, match.difference
    if difference.missing or difference.unexpected or [name for name, *_ in difference.reshaped] != [stem]:
        return None
    name = match.architecture.name
    return UsageError(
        f"the weights fit {PREFIX}{name} but for its first convolution: {difference.lines(1)[0]}",
        expected="the builder's own: no weights tell the stride of another, or whether the pooling behind it was kept",
        fix=f"give a function that builds {name} and changes it as training did, as --factory package.module:function",
    )


def _without_statistics(match: Match) -> UsageError | None:
    """The refusal of parameters without the buffers beside them, as `named_parameters` gives them to be saved."""
    missing, difference = match.difference.missing, match.difference
    if not missing or difference.unexpected or difference.reshaped or not all(map(_STATISTIC.search, missing)):
        return None
    return UsageError(
        f"the weights fit {PREFIX}{match.architecture.name} but for the running statistics of batch normalisation, "
        f"{len(missing)} of which are not in the file: {listed(missing, 2)}",
        expected="what training saw of means and variances: parameters alone compute something else",
        fix="save every tensor, buffers too: torch.save(model.state_dict(), 'weights.pt')",
    )


def _how_to_build(match: Match) -> str:
    """What to do about weights that are nearest to `match`: which function to write where little differs."""
    entry, difference = match.architecture, match.difference
    heads = {name.partition(".")[0] for name in entry.head}
    changed = {name.partition(".")[0] for name in (*difference.missing, *difference.unexpected)}
    reshaped = {name for name, *_ in difference.reshaped}
    if changed and changed <= heads and not reshaped - {*entry.head}:
        return (
            f"this is {entry.name} with another head: give a function that builds it and replaces "
            f"{', '.join(sorted(changed))} as training did, as --factory package.module:function"
        )
    if reshaped and not changed:
        return (
            f"the names are those of {entry.name}: give a function that calls it with training's options (a width, "
            "groups, a patch size), as --factory package.module:function"
        )
    return _FACTORY
