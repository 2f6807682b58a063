"""A torchvision network whose head training replaced by one of its own: which network, and where the head is.

Owns the comparison of what is left without the head; what the head is, own_head says. Works on shapes alone: no data,
no torch. Called by understand, where no builder fits as it is.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

from deploy.checkpoint.architecture import HEAD, Architecture, Shapes
from deploy.checkpoint.head_layers import parse_layers
from deploy.checkpoint.identify import COUNTER, Match, identify, match_architecture
from deploy.checkpoint.own_head import OwnHead, own_head
from deploy.errors import UsageError

_KINDS = ("classification", "video")
_STATISTICS = ("running_mean", "running_var")


def with_own_head(
    found: Shapes, zoo: Mapping[str, Architecture], *, said: str | None, modules: Sequence[str], quantizable: bool
) -> tuple[Match, tuple[str, ...]] | None:
    """The network whose body fits with the head that was put on it, and what to say of that; None where no body fits.

    `said` is what `--head` says; `modules` are the names of the saved modules in their order, empty where they are not
    known. Raises UsageError where weights do not tell the head, or tell another than was said.
    """
    wanted = parse_layers(said) if said is not None else None
    refusal: UsageError | None = None
    for path in _paths(zoo.values()):
        body = {name: shape for name, shape in found.items() if not _is_under(name, path)}
        if len(body) == len(found):
            continue
        beheaded = {name: _beheaded(entry, path) for name, entry in zoo.items()}
        fitting = {name: entry for name, entry in beheaded.items() if entry is not None and _fits(entry, body)}
        if not fitting:
            continue
        match = identify(body, fitting, quantizable=quantizable)
        head = {name: shape for name, shape in found.items() if _is_under(name, path) and not name.endswith(COUNTER)}
        name = match.architecture.name
        try:
            own = own_head(name, path, _width(zoo[name], path), head, modules=modules, said=wanted)
        except UsageError as error:
            refusal = refusal or error
            continue
        return _completed(match, own, head), (own.note,)
    if refusal is not None:
        raise refusal
    return None


def _paths(entries: Iterable[Architecture]) -> list[str]:
    """Every module that is a builder's last layer or holds it: `classifier.3` before `classifier`."""
    paths: set[str] = set()
    for entry in entries:
        last = next(iter(entry.head), "").removesuffix(".weight")
        if last and entry.kind in _KINDS:
            parts = last.split(".")
            paths.update(".".join(parts[:depth]) for depth in range(1, len(parts) + 1))
    return sorted(paths, key=lambda path: (-path.count("."), path))


def _is_under(name: str, path: str) -> bool:
    return name.startswith(f"{path}.")


def _beheaded(entry: Architecture, path: str) -> Architecture | None:
    """The architecture without what lies under the path; None where that is not its head, or one of images."""
    if entry.kind not in _KINDS or not entry.head or not all(_is_under(name, path) for name in entry.head):
        return None
    return _with_tensors(entry, path, {}) if _width(entry, path) else None


def _with_tensors(entry: Architecture, path: str, tensors: Shapes) -> Architecture:
    """The architecture with these tensors in place of those under the path."""
    added = {name: shape for name, shape in tensors.items() if not name.endswith(_STATISTICS)}
    statistics = {name: shape for name, shape in tensors.items() if name.endswith(_STATISTICS)}

    def kept(shapes: Shapes) -> Shapes:
        return {name: shape for name, shape in shapes.items() if not _is_under(name, path)}

    return replace(
        entry,
        parameters={**kept(entry.parameters), **added},
        float_buffers={**kept(entry.float_buffers), **statistics},
        integer_buffers=kept(entry.integer_buffers),
        head={},
    )


def _width(entry: Architecture, path: str) -> int:
    """How many numbers the module at the path takes; 0 where its first layer is not linear, and may take images."""
    first = next(shape for name, shape in entry.shapes.items() if _is_under(name, path))
    return first[1] if len(first) == 2 else 0


def _fits(entry: Architecture, body: Shapes) -> bool:
    return body.keys() >= entry.shapes.keys() and not match_architecture(entry, body).difference


def _completed(match: Match, own: OwnHead, tensors: Shapes) -> Match:
    return replace(
        match,
        architecture=_with_tensors(match.architecture, own.path, tensors),
        options={**match.options, HEAD: own.option},
        num_classes=own.num_classes,
    )
