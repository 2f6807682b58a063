"""A timm model's weights told by their names and shapes, or taken for the one that was asked for; and the module built.

Owns the comparison with timm's index, and what timm says of the input. Called by library and load.
"""

import warnings
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from math import isqrt
from typing import TYPE_CHECKING, Any

from deploy.checkpoint.architecture import Shapes
from deploy.checkpoint.identify import Difference, compare
from deploy.checkpoint.inputs import (
    UNKNOWN,
    UNKNOWN_NOTE,
    check_plain,
    input_specs,
    with_dynamic,
    with_facts,
)
from deploy.checkpoint.model import CheckpointRequest, Preprocessing
from deploy.checkpoint.tensors import check_floats
from deploy.checkpoint.timm_entries import (
    TimmEntry,
    digest_names,
    digest_shapes,
    import_timm,
    likeness,
    sketch,
    timm_version,
)
from deploy.checkpoint.timm_zoo import index_is_ready, load_index
from deploy.checkpoint.training import TrainingFacts
from deploy.checkpoint.understand import Contents, Understood
from deploy.checkpoint.weights import strip_prefixes
from deploy.errors import UsageError

if TYPE_CHECKING:
    from torch import Tensor, nn

TIMM = "timm/"

_IMAGE = "image"
_COUNTER = "num_batches_tracked"
_NEAREST = 3
_SHOWN = 12
_INSTALL = 'pip install "deployctl[timm]"'
_FACTORY = "give your own architecture as --factory package.module:function"


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
        raise _with_fix(otherwise, f"install timm, whose architectures are then tried too: {_INSTALL}") from otherwise
    removed, tensors = _unwrapped(contents)
    shapes = _shapes(tensors)
    match, hint = _match(request, contents, shapes, otherwise)
    options, size = _sized(match, request, contents.facts)
    name = _asked(request) or match.entry.name
    module = build_timm(TIMM + name, options, filled=shapes)
    difference = compare(shapes, _shapes(module.state_dict()))
    if difference:
        raise _misfit(name, difference, match.entry, size)
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
    preprocessing, notes = _preprocessing(name, size, contents.facts)
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
        notes=(*hint, *_headless(options), *notes),
    )


def build_timm(architecture: str, options: Mapping[str, Any], *, filled: Collection[str]) -> "nn.Module":
    """The module, without memory for the parameters that will be `filled`, where it can be built so."""
    from deploy.checkpoint.build import left_on_meta, parameters_on_meta

    timm, name = import_timm(), architecture.removeprefix(TIMM)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            with parameters_on_meta():
                module: nn.Module = timm.create_model(name, pretrained=False, **options)
        except RuntimeError:
            return timm.create_model(name, pretrained=False, **options)  # type: ignore[no-any-return]
        if left_on_meta(module, filled=filled):
            return timm.create_model(name, pretrained=False, **options)  # type: ignore[no-any-return]
    return module


def timm_look_alikes(request: CheckpointRequest, understood: Understood) -> tuple[str, ...]:
    """A note naming timm's architectures with the same tensors as torchvision's, which may compute otherwise.

    Nothing where an architecture was asked for, or where no index of timm is at hand.
    """
    if request.arch is not None or not index_is_ready():
        return ()
    names = [match.entry.name for match in _matches(_shapes(understood.tensors))]
    if not names:
        return ()
    return (
        f"timm has architectures with the same tensors: {_listed(names)}; if timm trained it, say which one: "
        f"--arch {TIMM}{names[0]}",
    )


def _headless(options: Mapping[str, Any]) -> tuple[str, ...]:
    """A note where the weights have no head: another way of making the network leaves the same tensors."""
    if options["num_classes"]:
        return ()
    return (
        "no head: it gives pooled features, as with num_classes=0; the maps of features_only=True would have the same "
        "tensors, and are a network of your own: --factory",
    )


def _unwrapped(contents: Contents) -> tuple[tuple[str, ...], dict[str, "Tensor"]]:
    """The tensors without the prefixes of wrappers: in the first form whose names timm knows, else in the last."""
    known = {digest for entry in load_index().values() for digest in (entry.names, entry.headless)}
    forms = list(strip_prefixes(contents.found.tensors))
    return next((form for form in forms if digest_names(_shapes(form[1])) in known), forms[-1])


def _match(
    request: CheckpointRequest, contents: Contents, shapes: Shapes, otherwise: UsageError | None
) -> tuple[TimmMatch, tuple[str, ...]]:
    """The match, and a note where the file itself chose between several."""
    asked = _asked(request)
    if asked is not None:
        entry = _find(asked)
        return TimmMatch(entry=entry, options=_options(entry, shapes)), ()
    matches = list(_matches(shapes))
    if not matches:
        raise _unknown(otherwise, shapes)
    if len(matches) == 1:
        return matches[0], ()
    said = contents.stored.content.get("arch")
    chosen = [match for match in matches if isinstance(said, str) and match.entry.name == said.partition(".")[0]]
    if chosen:
        others = [match.entry.name for match in matches if match is not chosen[0]]
        return chosen[0], (f"the file says that it is {said}; {_listed(others)} would fit too",)
    raise _ambiguous([match.entry.name for match in matches])


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
            fix=_FACTORY,
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
    match: TimmMatch, request: CheckpointRequest, facts: TrainingFacts
) -> tuple[dict[str, Any], tuple[int, int, int]]:
    """The options with the image's size, and the input's shape: as asked, from the weights, the file, or timm."""
    options, channels = dict(match.options), match.options.get("in_chans", 3)
    built = options.get("img_size")
    cfg = import_timm().models.get_pretrained_cfg(_asked(request) or match.entry.name)
    if request.input_shapes:
        size = _asked_size(match, request.input_shapes, channels, built)
    elif built:
        size = (built[0], built[1])
    elif facts.size:
        size = (facts.size, facts.size)
    elif cfg is not None:
        size = (cfg.input_size[1], cfg.input_size[2])
    else:
        raise UsageError(
            f"the input size of {match.entry.name} is not known", fix=f"add --input-shape {channels},HEIGHT,WIDTH"
        )
    if match.entry.sized:
        options["img_size"] = list(size)
    # As timm's own training script calls it: no tensor tells a maximum from a mean.
    if isinstance(pooling := facts.settings.get("gp"), str):
        options["global_pool"] = pooling
    return options, (channels, *size)


def _asked_size(
    match: TimmMatch, asked: tuple[tuple[int, ...], ...], channels: int, built: list[int] | None
) -> tuple[int, int]:
    given = " and ".join(",".join(map(str, shape)) for shape in asked)
    if len(asked) != 1 or len(asked[0]) != 3 or asked[0][0] != channels or min(asked[0]) < 1:
        raise UsageError(
            f"--input-shape {given} does not fit {match.entry.name} with {channels} input channels",
            expected=f"one shape {channels},HEIGHT,WIDTH, without the batch",
        )
    size = asked[0][1], asked[0][2]
    if built and list(size) != built:
        raise UsageError(
            f"--input-shape {given} contradicts the positional embedding, which was made for {built[0]} x {built[1]}",
            expected=f"{channels},{built[0]},{built[1]}",
            fix="leave out --input-shape",
        )
    return size


def _preprocessing(
    name: str, shape: tuple[int, int, int], facts: TrainingFacts
) -> tuple[Preprocessing, tuple[str, ...]]:
    """What the file says, else the pretrained_cfg of these weights, with a note on how far it can be relied on."""
    return with_facts(facts, *_usual_preprocessing(name, shape))


def _usual_preprocessing(name: str, shape: tuple[int, int, int]) -> tuple[Preprocessing, tuple[str, ...]]:
    cfg = import_timm().models.get_pretrained_cfg(name)
    if cfg is None or shape[0] != len(cfg.mean):
        return UNKNOWN, (UNKNOWN_NOTE,)
    source = f"timm {cfg.architecture}.{cfg.tag}" if cfg.tag else f"timm {name}"
    side = cfg.input_size[1]
    as_trained = shape[1:] == (side, side) and cfg.crop_mode == "center"
    note = f"preprocessing: the pretrained_cfg of {source}; nothing in the checkpoint says that this training used it"
    return Preprocessing(
        source=source,
        resize=int(side / cfg.crop_pct) if as_trained else None,
        crop=side if as_trained else None,
        mean=tuple(cfg.mean),
        std=tuple(cfg.std),
        layout="NCHW, RGB",
        value_range=(0.0, 1.0),
        interpolation=cfg.interpolation,
    ), (note,)


def _ambiguous(names: list[str]) -> UsageError:
    return UsageError(
        f"the weights fit {len(names)} architectures of timm, which may compute or preprocess differently: "
        f"{_listed(names)}",
        expected="one; nothing in the weights can tell them apart",
        fix=f"say which one was trained: --arch {TIMM}{names[0]}",
    )


def _unknown(otherwise: UsageError | None, shapes: Shapes) -> UsageError:
    """The refusal of torchvision's index, with timm's nearest by the names of tensors."""
    found = sketch(shapes)
    near = sorted(load_index().values(), key=lambda entry: likeness(found, entry.sketch), reverse=True)[:_NEAREST]
    alike = [f"{entry.name} ({likeness(found, entry.sketch):.0%})" for entry in near if likeness(found, entry.sketch)]
    words = f"; of timm {timm_version()} none fits" + (
        f", nearest by tensor names: {', '.join(alike)}" if alike else ""
    )
    assert otherwise is not None
    return UsageError(otherwise.found + words, expected=otherwise.expected, fix=otherwise.fix)


def _misfit(name: str, difference: Difference, entry: TimmEntry, size: tuple[int, int, int]) -> UsageError:
    """What differs; where only shapes do, in a model that is built for one image size, that may be another one."""
    fix = f"leave out --arch to have it identified; or {_FACTORY}"
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


def _with_fix(error: UsageError, more: str) -> UsageError:
    return UsageError(error.found, expected=error.expected, fix=f"{error.fix}; or {more}" if error.fix else more)


def _shapes(tensors: Mapping[str, "Tensor"]) -> Shapes:
    """Names and shapes, without counters: files may lack them, and timm's index does."""
    return {name: tuple(tensor.shape) for name, tensor in tensors.items() if not name.endswith(_COUNTER)}


def _listed(names: list[str]) -> str:
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more
