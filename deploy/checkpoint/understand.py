"""Which module the weights of a file belong to, and what it takes: from the zoo, or from the user's factory.

Owns the two ways to that answer; matching, inputs and factories have files of their own.
Called by load.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import takewhile
from typing import TYPE_CHECKING, Any, Literal

from deploy.checkpoint.architecture import HEAD, PREFIX, Shapes
from deploy.checkpoint.detectors import as_trained
from deploy.checkpoint.formats import Stored
from deploy.checkpoint.heads import with_own_head
from deploy.checkpoint.identify import (
    Match,
    MismatchError,
    compare,
    forms_of,
    identify,
    match_architecture,
    other_forms,
    require_match,
)
from deploy.checkpoint.inputs import (
    UNKNOWN,
    UNKNOWN_NOTE,
    check_plain,
    input_shape,
    input_specs,
    preprocessing_from,
    preprocessing_of,
    size_notes,
    with_dynamic,
)
from deploy.checkpoint.model import CheckpointRequest, Preprocessing
from deploy.checkpoint.own_head import no_such_head
from deploy.checkpoint.parts import beside_notes, ending_notes, inner_parts, is_quantizable
from deploy.checkpoint.signature import range_notes, read_signature
from deploy.checkpoint.tensors import check_floats
from deploy.checkpoint.training import TrainingFacts
from deploy.checkpoint.weights import ADDED, Found, average_beside, parts_of, strip_prefixes, unwrap
from deploy.checkpoint.zoo import find_architecture, load_zoo
from deploy.errors import UsageError
from deploy.spec import Dim, TensorSpec

if TYPE_CHECKING:
    from torch import Tensor, nn

FACTORY = "factory/"


@dataclass(frozen=True, slots=True, kw_only=True)
class Contents:
    """What the file holds, before anything is known of its architecture. `dtype` is that of most weights."""

    stored: Stored
    found: Found
    facts: TrainingFacts
    dtype: str


class MisfitError(UsageError):
    """The weights are not those of the factory's module."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Understood:
    """The answer. `tensors` are the weights that the module takes, under its own names; `buffers` of the user's own.

    `dims`, `absent` and `decisions` are the `Checkpoint`'s.
    """

    architecture: str
    how: Literal["inferred", "asked", "factory"]
    options: dict[str, Any]
    inputs: tuple[TensorSpec, ...]
    dims: tuple[Dim, ...] = ()
    absent: tuple[str, ...] = ()
    decisions: dict[str, int | None] = field(default_factory=dict)
    num_classes: int | None
    parameters: int
    preprocessing: Preprocessing
    tensors: dict[str, "Tensor"]
    buffers: frozenset[str] = frozenset()
    removed: tuple[str, ...]
    notes: tuple[str, ...]


def understand_zoo(request: CheckpointRequest, contents: Contents) -> Understood:
    """The torchvision builder that fits, inferred or asked for. Raises UsageError if there is not exactly one."""
    *_, (removed, tensors) = strip_prefixes(contents.found.tensors)
    parts = inner_parts(contents.found.modules, removed)
    match, ending = _match(request, _shapes(tensors), contents.facts.arch, parts)
    entry, keywords = as_trained(match.architecture, request.preprocessing)
    match = replace(match, architecture=entry)
    shape = input_shape(match, request, contents.facts)
    options = dict(match.options) | keywords
    if entry.size_option and entry.size_option not in options:
        options[entry.size_option] = list(shape[1:])
    used = {name: tensor for name, tensor in tensors.items() if name not in entry.auxiliary}
    check_floats(used, {*entry.parameters, *entry.float_buffers})
    check_plain(request, names=entry.inputs, why=PREFIX + entry.name)
    inputs, dims = with_dynamic(input_specs([shape] * len(entry.inputs), entry.inputs, contents.dtype), request.dynamic)
    _check_dynamic(match, dims)
    preprocessing, notes = preprocessing_of(match, shape, contents.facts)
    return Understood(
        architecture=PREFIX + entry.name,
        how="asked" if request.arch else "inferred",
        options=options,
        inputs=inputs,
        dims=dims,
        num_classes=match.num_classes,
        parameters=sum(used[name].numel() for name in entry.parameters),
        preprocessing=preprocessing,
        tensors=used,
        removed=removed,
        notes=(
            *notes,
            *size_notes(match, request, contents.facts),
            *_architecture_notes(match, left_out=len(tensors) - len(used)),
            *ending,
            *beside_notes(contents.found.modules, contents.found.tensors, removed),
        ),
    )


def _check_dynamic(match: Match, dims: tuple[Dim, ...]) -> None:
    entry = match.architecture
    if dims and (entry.size_option or match.image_size or entry.kind in ("flow", "detection")):
        raise UsageError(
            f"{entry.name} takes images of one size, for which its weights and its forward were made",
            expected="no --dynamic",
            fix="leave it out, and resize what comes in",
        )


def _match(
    request: CheckpointRequest, shapes: Shapes, told: str | None, parts: Sequence[str]
) -> tuple[Match, tuple[str, ...]]:
    """The network with the builder's own head or with training's, and what to say of what it ends with."""
    if request.head is not None:
        own = _match_body(request, shapes, parts)
        if own is None:
            raise no_such_head(request.head)
        return own
    try:
        match = _match_builder(request, shapes, told, parts)
    except MismatchError:
        own = _match_body(request, shapes, parts)
        if own is None:
            raise
        return own
    return match, ending_notes(match.architecture, parts, asked=request.arch is not None)


def _match_body(
    request: CheckpointRequest, shapes: Shapes, parts: Sequence[str]
) -> tuple[Match, tuple[str, ...]] | None:
    """The network with a head of training's own, and what to say of that; None where none has such a body."""
    from deploy.checkpoint.build import make_head

    entry = find_architecture(request.arch) if request.arch is not None else None
    zoo = {entry.name: entry} if entry else load_zoo()
    found = with_own_head(shapes, zoo, said=request.head, modules=parts, quantizable=is_quantizable(parts))
    if found is not None:
        make_head(found[0].options[HEAD])  # refuses arguments that torch does not take, before any work
    return found


def _match_builder(request: CheckpointRequest, shapes: Shapes, told: str | None, parts: Sequence[str]) -> Match:
    """`told` is the name in the file itself: it decides between builders that fit, and counts for nothing where it does
    not. Between a builder's forms it decides only where it names one: training's name is that of the builder.
    """
    zoo = load_zoo()
    if request.arch is None:
        named = zoo.get(told) if told else None
        if named is None or match_architecture(named, shapes).difference:
            return identify(shapes, zoo, quantizable=is_quantizable(parts))
        return identify(shapes, {named.name: named} if named.is_form else forms_of(named.builder, zoo))
    match = match_architecture(find_architecture(request.arch), shapes)
    require_match(match)
    return replace(match, also=other_forms(match.architecture, shapes, zoo))


def _architecture_notes(match: Match, *, left_out: int) -> Iterator[str]:
    if left_out:
        yield f"{left_out} tensors of auxiliary heads were left out"
    if match.architecture.about:
        yield match.architecture.about
    for other in match.also:
        if other.about:
            yield f"the weights fit {other.name} too ({other.about}): --arch {other.name} takes it"


def understand_factory(request: CheckpointRequest, contents: Contents) -> Understood:
    """The module of the user's factory. Raises UsageError if it cannot be built, or the weights do not fit it."""
    assert request.factory is not None
    module, options, removed, tensors = _fitting_module(request.factory, contents)
    check_floats(tensors, {name for name, tensor in module.state_dict().items() if tensor.is_floating_point()})
    known = contents.facts.knows_preprocessing
    taken = read_signature(request, module, dtype=contents.dtype)
    return Understood(
        architecture=FACTORY + request.factory,
        how="factory",
        options=options,
        inputs=taken.inputs,
        dims=taken.dims,
        absent=taken.absent,
        num_classes=options.get("num_classes"),
        parameters=sum(parameter.numel() for parameter in module.parameters()),
        preprocessing=preprocessing_from(contents.facts) if known else UNKNOWN,
        tensors=tensors,
        buffers=frozenset(name for name, _ in module.named_buffers()),
        removed=removed,
        notes=(*(() if known else (UNKNOWN_NOTE,)), *range_notes(taken.inputs)),
    )


def _fitting_module(
    reference: str, contents: Contents
) -> tuple["nn.Module", dict[str, Any], tuple[str, ...], dict[str, "Tensor"]]:
    """The factory's module with the keywords and prefixes under which every tensor fits.

    Prefixes are tried from none removed on: a wrapper module of the user's own may rightly call its part `model`. Where
    the whole fits in no way, a part of it may, if it is the only one.
    """
    from deploy.checkpoint.build import complete
    from deploy.checkpoint.factory import call_factory, keyword_choices

    difference = None
    whole, parts = list(strip_prefixes(contents.found.tensors)), list(parts_of(contents.found.tensors))
    names = {name for _, tensors in (*whole, *parts) for name in tensors}
    choices = keyword_choices(reference, _guess_classes(contents), settings=contents.facts.settings)
    for forms, options in [(forms, options) for forms in (whole, parts) if forms for options in choices]:
        module = call_factory(reference, options, filled=names)
        _require_tensors(reference, module)
        expected, fits = _shapes(module.state_dict()), []
        for removed, tensors in forms:
            full = complete(module, tensors)
            found = compare(_shapes(full), expected)
            difference = found if forms is whole else difference
            fits += [] if found else [(removed, full)]
        if fits and forms is parts and (len(fits) > 1 or average_beside(contents.found.tensors)):
            raise _several(reference, [removed for removed, _ in fits], average_beside(contents.found.tensors))
        fits = fits or (forms is whole and _inside(module, expected, forms)) or []
        if fits:
            return module, options, *fits[0]
    assert difference is not None
    raise MisfitError(
        f"the weights do not fit the module of --factory {reference}:\n    "
        + "\n    ".join(difference.lines(limit=20)),
        expected="every tensor of the module and no other",
        fix="let the function build what was trained, with the same arguments",
    )


def _inside(
    module: "nn.Module", expected: Shapes, forms: Iterable[tuple[tuple[str, ...], dict[str, "Tensor"]]]
) -> list[tuple[tuple[str, ...], dict[str, "Tensor"]]]:
    """The forms that fit the one part which holds all weights of a module that was built round the saved network."""
    from deploy.checkpoint.build import complete

    paths = [name.split(".")[:-1] for name in expected]
    common = [parts[0] for parts in takewhile(lambda parts: len({*parts}) == 1, zip(*paths, strict=False))]
    steps = [f"{ADDED}{'.'.join(common[: depth + 1])}." for depth in range(len(common))]
    found = [
        ((*removed, step), complete(module, unwrap(tensors, (step,)))) for step in steps for removed, tensors in forms
    ]
    return [(removed, full) for removed, full in found if not compare(_shapes(full), expected)]


def _require_tensors(reference: str, module: "nn.Module") -> None:
    """Raises UsageError for a module whose state holds anything but tensors, as eagerly quantized ones do."""
    import torch

    packed = next((name for name, one in module.state_dict().items() if not isinstance(one, torch.Tensor)), None)
    if packed is not None:
        raise UsageError(
            f"the module of --factory {reference} keeps packed integers in {packed}: it is quantized",
            expected="float weights: neither format carries the modules that torch quantizes eagerly",
            fix="give the float module and its weights; deployctl quantizes by itself: --precision int8",
        )


def _several(reference: str, places: list[tuple[str, ...]], averaged: tuple[str, ...]) -> UsageError:
    if averaged:
        return UsageError(
            f"a part of the file fits the module of --factory {reference}, and the file has it twice: {averaged[0]} "
            f"holds the weights and {averaged[1]} their average",
            expected="a choice: evaluation during training mostly used the average",
            fix="add --weights ema or --weights raw",
        )
    under = ", ".join("".join(step for step in place if not step.startswith(".")) for place in places)
    return UsageError(
        f"several networks in the file fit the module of --factory {reference}: those under {under}",
        expected="one, or a module that holds them all",
        fix="save the one to deploy by itself: torch.save(model.PART.state_dict(), 'weights.pt')",
    )


def _guess_classes(contents: Contents) -> int | None:
    """The number of classes to offer a factory: of the names in the file, else the rows of the last matrix."""
    if contents.facts.classes:
        return len(contents.facts.classes)
    return next((tensor.shape[0] for tensor in reversed(contents.found.tensors.values()) if tensor.dim() == 2), None)


def _shapes(tensors: Mapping[str, "Tensor"]) -> Shapes:
    return {name: tuple(tensor.shape) for name, tensor in tensors.items()}
