"""A timm model's weights told by their names and shapes, or taken for the one that was asked for; and the module built.

Owns the comparison with timm's index, and what timm says of the input. Called by library and load.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from math import isqrt
from typing import TYPE_CHECKING, Any

from deploy.checkpoint.architecture import HEAD, Shapes
from deploy.checkpoint.identify import compare
from deploy.checkpoint.inputs import check_plain, input_specs, with_dynamic
from deploy.checkpoint.model import CheckpointRequest
from deploy.checkpoint.own_head import no_such_head
from deploy.checkpoint.parts import inner_parts
from deploy.checkpoint.tensors import check_floats
from deploy.checkpoint.timm_build import build_timm, built_timm, usual, without_classes
from deploy.checkpoint.timm_entries import (
    TIMM,
    TimmEntry,
    digest_names,
    digest_shapes,
    import_timm,
    shapes_of,
    timm_version,
)
from deploy.checkpoint.timm_forms import check_fused, check_fused_like, headless_note, nearly_headless, pooling_note
from deploy.checkpoint.timm_heads import bodies, with_own_head
from deploy.checkpoint.timm_likely import Clues, likeliest_first
from deploy.checkpoint.timm_refusals import FACTORY, INSTALL, SHOWN, ambiguous, misfit, nearest, unknown
from deploy.checkpoint.timm_sizes import as_pair, asked_size, guessed_note, named_alike, of_a_size, sides_of
from deploy.checkpoint.timm_training import TimmSaid, timm_preprocessing, what_timm_said
from deploy.checkpoint.timm_zoo import index_is_ready, load_index
from deploy.checkpoint.training import TrainingFacts
from deploy.checkpoint.understand import Contents, Understood
from deploy.checkpoint.weights import strip_prefixes
from deploy.errors import UsageError, listed, with_fix

if TYPE_CHECKING:
    from torch import Tensor, nn

_IMAGE = "image"
# Arguments after which a positional embedding has other rows than the index counted.
_TOKENS = frozenset(("img_size", "patch_size", "reg_tokens", "class_token", "no_embed_class", "global_pool"))


@dataclass(frozen=True, slots=True, kw_only=True)
class TimmMatch:
    """An entry whose names, and all shapes that no fine-tune changes, are those of the file."""

    entry: TimmEntry
    options: dict[str, Any]


def understand_timm(
    request: CheckpointRequest, contents: Contents, *, otherwise: UsageError | None = None
) -> Understood:
    """The timm architecture that was asked for, or the only one that fits.

    Where none fits, or timm is not installed, `otherwise` is raised with what that would change. Raises UsageError if
    several fit, or the one asked for does not.
    """
    if otherwise is not None and timm_version() is None:
        raise with_fix(otherwise, f"install timm, whose architectures are then tried too: {INSTALL}") from otherwise
    removed, tensors = _unwrapped(contents)
    shapes = shapes_of(tensors)
    said = what_timm_said(contents)
    modules = inner_parts(contents.found.modules, removed)
    match, hint = _match(request, said, shapes, modules=modules, facts=contents.facts, otherwise=otherwise)
    options, size, guessed = _sized(match, request, contents.facts, said)
    name = _tagged(_asked(request) or match.entry.name, said)
    module = built_timm(name, options, shapes)
    difference = compare(shapes, shapes_of(module.state_dict()))
    if difference:
        check_fused(shapes, name, module, classes=options["num_classes"])
        raise misfit(name, difference, match.entry, size)
    state = module.state_dict()
    check_floats(tensors, {key for key, tensor in state.items() if tensor.is_floating_point()})
    check_plain(request, names=(_IMAGE,), why=TIMM + name)
    inputs, dims = with_dynamic(input_specs([size], [_IMAGE], contents.dtype), request.dynamic)
    if dims and match.entry.sized:
        raise UsageError(
            f"{TIMM}{name} takes images of one size, for which it is built",
            expected="no --dynamic",
            fix="leave it out, and resize what comes in",
        )
    preprocessing, notes = timm_preprocessing(name, size, contents.facts, said)
    return Understood(
        architecture=TIMM + name,
        how="asked" if request.arch else "inferred",
        options=options,
        inputs=inputs,
        dims=dims,
        num_classes=options["num_classes"] or None,
        parameters=sum(parameter.numel() for parameter in module.parameters()),
        preprocessing=preprocessing,
        tensors=tensors,
        removed=removed,
        notes=(*hint, *guessed, *headless_note(options), *pooling_note(module, options, said), *notes),
    )


def is_of_timm(contents: Contents) -> bool:
    """Whether timm itself wrote what lies with the weights, and names an architecture that can be built here."""
    said = what_timm_said(contents)
    return said.by_timm and timm_version() is not None and (said.arch or "").partition(".")[0] in load_index()


def timm_look_alikes(request: CheckpointRequest, understood: Understood) -> tuple[str, ...]:
    """A note naming timm's architectures with the same tensors as torchvision's, which may compute otherwise.

    Nothing where an architecture was asked for, or where no index of timm is at hand.
    """
    if request.arch is not None or not index_is_ready():
        return ()
    shapes = shapes_of(understood.tensors)
    built = {match.entry.name: as_pair(match.options.get("img_size")) for match in _matches(shapes)}
    if HEAD in understood.options:
        built = dict.fromkeys(body.entry.name for body in bodies(load_index().values(), shapes))
    if not built:
        return ()
    names, _ = likeliest_first(built, Clues.of(request, None, classes=understood.num_classes))
    return (
        f"timm has architectures with the same tensors: {listed(names, SHOWN)}; if timm trained it, say which one: "
        f"--arch {TIMM}{names[0]}",
    )


def _unwrapped(contents: Contents) -> tuple[tuple[str, ...], dict[str, "Tensor"]]:
    """The tensors without the prefixes of wrappers: in the first form whose names timm knows, else in the last."""
    known = {digest for entry in load_index().values() for digest in (entry.names, entry.headless)}
    forms = list(strip_prefixes(contents.found.tensors))
    return next((form for form in forms if digest_names(shapes_of(form[1])) in known), forms[-1])


def _match(
    request: CheckpointRequest, said: TimmSaid, shapes: Shapes, *, modules: Sequence[str], facts: TrainingFacts,
    otherwise: UsageError | None,
) -> tuple[TimmMatch, tuple[str, ...]]:  # fmt: skip
    """The match, and a note where the file itself chose between several, or told what no index has."""
    asked = _asked(request)
    entry = _find(asked) if asked is not None else None
    if request.head is not None or (entry and digest_names(shapes) not in (entry.names, entry.headless)):
        own = _with_own_head(request, said, shapes, modules=modules, entry=entry)
        if own is None and request.head is not None:
            raise otherwise or no_such_head(request.head)
        if own is not None:
            return own
    if entry is not None:
        return TimmMatch(entry=entry, options=_options(entry, shapes)), ()
    matches, named = list(_matches(shapes)), (said.arch or "").partition(".")[0]
    chosen = [match for match in matches if match.entry.name == named]
    if chosen and len(matches) > 1:
        others = [match.entry.name for match in matches if match is not chosen[0]]
        return chosen[0], (f"the file says that it is {said.arch}; {listed(others, SHOWN)} would fit too",)
    if not chosen and named in load_index() and (said.options or (said.by_timm and not matches)):
        # Built with other arguments than the index was, perhaps: whether it fits is seen once it is built.
        entry = _find(named)
        return TimmMatch(entry=entry, options=_options(entry, shapes)), (f"the file says that it is {said.arch}",)
    matches = matches or [
        TimmMatch(entry=entry, options=_options(entry, shapes))
        for entry in nearly_headless(load_index().values(), shapes, without_classes)
    ]
    size = said.size or as_pair(facts.size)
    matches = matches or _of_a_size(request, shapes, size)
    if not matches and (own := _with_own_head(request, said, shapes, modules=modules, entry=None)) is not None:
        return own
    if not matches:
        check_fused(shapes, None, None, classes=None)
        check_fused_like(shapes, [name for name, _ in nearest(shapes)], usual)
        raise unknown(otherwise, shapes)
    if len(matches) > 1:
        matches = [match for match in matches if _fits(match, shapes)] or matches
    if len(matches) == 1:
        return matches[0], ()
    built = {match.entry.name: as_pair(match.options.get("img_size")) for match in matches}
    raise ambiguous(*likeliest_first(built, Clues.of(request, size, classes=matches[0].options["num_classes"])))


def _with_own_head(
    request: CheckpointRequest, said: TimmSaid, shapes: Shapes, *, modules: Sequence[str], entry: TimmEntry | None
) -> tuple[TimmMatch, tuple[str, ...]] | None:
    """The one network, of all or the `entry` that was asked for, whose head alone is another; None where none is.

    Raises UsageError if several are.
    """

    def built(entry: TimmEntry) -> "nn.Module | None":
        return usual(entry.name, **{**_options(entry, shapes), "num_classes": 2})

    entries = [entry] if entry else load_index().values()
    found = [
        (TimmMatch(entry=one, options={**_options(one, shapes), "num_classes": own.num_classes, HEAD: own.option}), own)
        for one, own in with_own_head(entries, shapes, said=request.head, modules=modules, build=built)
    ]
    named = (said.arch or "").partition(".")[0]
    chosen = [one for one in found if one[0].entry.name == named] or [one for one in found if _fits(one[0], shapes)]
    if len(chosen) > 1:
        names = {match.entry.name: as_pair(match.options.get("img_size")) for match, _ in chosen}
        raise ambiguous(*likeliest_first(names, Clues.of(request, said.size, classes=chosen[0][1].num_classes)))
    return (chosen[0][0], (chosen[0][1].note,)) if chosen else None


def _fits(match: TimmMatch, shapes: Shapes) -> bool:
    """Whether the network as timm makes it has these shapes, its first layer's too, of which the index says nothing.

    A patch of 14 pixels is not one of 16. True where timm does not make it.
    """
    try:
        module = build_timm(TIMM + match.entry.name, match.options, filled=shapes)
    except Exception:  # noqa: BLE001 - timm's builders raise what an argument leads them to
        return True
    return not compare(shapes, shapes_of(module.state_dict()))


def _of_a_size(request: CheckpointRequest, shapes: Shapes, told: tuple[int, int] | None) -> list[TimmMatch]:
    """Those whose tensors follow from the images' size, which was asked for or is `told` by the file.

    Raises UsageError where the tensors are those of another size.
    """

    def built(entry: TimmEntry, size: tuple[int, int] | None) -> Shapes | None:
        module = usual(entry.name, **_options(entry, shapes), **({"img_size": list(size)} if size else {}))
        return None if module is None else shapes_of(module.state_dict())

    alike = named_alike(load_index().values(), shapes)
    found = of_a_size(alike, shapes, sides_of(request.input_shapes) or told, built)
    return [TimmMatch(entry=entry, options=_options(entry, shapes)) for entry in found]


def _tagged(name: str, said: TimmSaid) -> str:
    """The architecture with the tag of the weights that training began with, where the file says which."""
    known = said.arch is not None and said.arch.partition(".")[0] == name
    cfg = import_timm().models.get_pretrained_cfg(said.arch) if known else None
    return said.arch if cfg is not None and said.arch else name


def _asked(request: CheckpointRequest) -> str | None:
    return request.arch.strip().removeprefix(TIMM) if request.arch else None


def _find(asked: str) -> TimmEntry:
    """The entry of an architecture by name, with or without the tag of its weights. Raises UsageError without one."""
    import_timm()
    index = load_index()
    name, _, tag = asked.partition(".")
    if name not in index:
        near = get_close_matches(name.lower(), index, n=3, cutoff=0.5)
        raise UsageError(
            f"timm {timm_version()} has no architecture {name!r} that can be built here",
            expected=f"one that it has; nearest: {', '.join(near)}" if near else "one that it has",
            fix=FACTORY,
        )
    if tag:
        tags = [key.partition(".")[2] for key in import_timm().models.list_pretrained(f"{name}.*")]
        if tag not in tags:
            raise UsageError(f"timm has no weights {tag!r} of {name}", expected=f"one of {', '.join(tags) or 'none'}")
    return index[name]


def _matches(shapes: Shapes) -> Iterator[TimmMatch]:
    """Every architecture with these names and, but for what fine-tunes change, these shapes."""
    names = digest_names(shapes)
    digests: dict[frozenset[str], str] = {}
    for entry in load_index().values():
        if names not in (entry.names, entry.headless):
            continue
        flexible = frozenset((*entry.head, *entry.stem, *([entry.position.tensor] if entry.position else [])))
        if flexible not in digests:
            digests[flexible] = digest_shapes({key: shapes[key] for key in shapes if key not in flexible})
        if digests[flexible] == entry.shapes:
            yield TimmMatch(entry=entry, options=_options(entry, shapes))


def _options(entry: TimmEntry, shapes: Shapes) -> dict[str, Any]:
    """What timm's builder is called with so that the shapes come out as they are in the file."""
    head = next((shapes[key] for key in entry.head if key in shapes), (0,))
    options: dict[str, Any] = {"num_classes": head[0]}
    stem = next((shapes[key] for key in entry.stem if len(shapes.get(key, ())) > 1), None)
    if stem is not None and stem[1] != 3:
        options["in_chans"] = stem[1]
    if entry.position is not None:
        shape = shapes.get(entry.position.tensor, ())
        patches = shape[1] - entry.position.prefix if len(shape) == 3 else 0
        side = isqrt(max(0, patches))
        if side and side**2 == patches:
            options["img_size"] = [side * entry.position.patch] * 2
    return options


def _sized(
    match: TimmMatch, request: CheckpointRequest, facts: TrainingFacts, said: TimmSaid
) -> tuple[dict[str, Any], tuple[int, int, int], tuple[str, ...]]:
    """The options with the image's size, the input's shape, and a note where that is a guess.

    The size is as asked, from the weights, the file, or timm.
    """
    options = {**said.options, **match.options}
    if said.options.keys() & _TOKENS:
        options["img_size"] = said.options.get("img_size")  # the rows of an embedding are counted otherwise then
        options = {name: value for name, value in options.items() if value is not None}
    channels, built = options.get("in_chans", 3), as_pair(options.get("img_size"))
    cfg = import_timm().models.get_pretrained_cfg(_asked(request) or match.entry.name)
    notes: tuple[str, ...] = ()
    if request.input_shapes:
        size = asked_size(match.entry.name, request.input_shapes, channels, built)
    elif known := built or said.size or as_pair(facts.size):
        size = known
    elif cfg is not None:
        size = (cfg.input_size[1], cfg.input_size[2])
        notes = guessed_note(size, channels) if match.entry.sized and not said.by_timm else ()
    else:
        raise UsageError(
            f"the input size of {match.entry.name} is not known", fix=f"add --input-shape {channels},HEIGHT,WIDTH"
        )
    if match.entry.sized:
        options["img_size"] = list(size)
    return options, (channels, *size), notes
