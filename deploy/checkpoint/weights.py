"""The weights inside whatever dict training saved, with the prefixes that wrappers left on their names.

Owns where people put weights and how EMA weights are told from raw ones. Knows no architecture.
Called by load.
"""

import re
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

from deploy.checkpoint.model import WeightsChoice
from deploy.checkpoint.sniff import SAVE_WHOLE
from deploy.errors import UsageError

if TYPE_CHECKING:
    from torch import Tensor

T = TypeVar("T")
PREFIXES = (
    "module.",
    "_orig_mod.",
    "_fsdp_wrapped_module.",
    "_checkpoint_wrapped_module.",
    "model.",
    "net.",
    "network.",
)
# Wrappers that sit inside a name too: of a part that was compiled, sharded or checkpointed by itself.
_INNER = ("._orig_mod.", "._fsdp_wrapped_module.", "._checkpoint_wrapped_module.")
_ONLY_IN_TRAINING = re.compile(r"^(criterion|loss(es|_.*)?|.*_loss|metrics?|.*_metrics?|(train|val|valid|test)_.*)$")
# Numbers that training puts beside the weights, by names of no module's.
_PROGRESS = re.compile(r"^(epochs?|(global_?)?step|iter(ation)?s?|num_updates|best_\w+)$", re.IGNORECASE)
# What profilers of operations count into buffers of every module.
_PROFILED = frozenset(("total_ops", "total_params"))
# The step that leaves out what only training uses, where no prefix tells it from the network.
NETWORK_ALONE = ""
# Before a prefix that is put before all names: the factory's module holds, as a part, the network that was saved.
ADDED = "+"
_FLAT = re.compile(r"(^|\.)_?flat_param(_\d+)?$")
USUAL_KEYS = frozenset(
    ("state_dict", "model_state_dict", "model_state", "model", "net", "network", "weights", "module", "params")
)
_EMA = re.compile(r"(^|_)(ema|swa|averaged)(_|$)")
_NOT_WEIGHTS = re.compile(r"^(optim|sched|lr_|scaler|amp|loss|criterion|rng|metrics?($|_))")
_DEPTH = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """One set of named tensors, and where it lay: `under` is a dotted path, or None for the top of the file.

    `modules` are the names of the network's modules, those without weights too, as far as torch kept them.
    """

    tensors: dict[str, "Tensor"]
    under: str | None = None
    choice: WeightsChoice | None = None
    modules: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class _Candidate:
    path: tuple[str, ...]
    mapping: Mapping[str, Any]
    modules: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        return ".".join(self.path)

    @property
    def is_ema(self) -> bool:
        return any(_EMA.search(key.lower()) for key in self.path)

    @property
    def is_usual(self) -> bool:
        return any(key.lower() in USUAL_KEYS for key in self.path)


def find_weights(content: Mapping[Any, Any], wanted: WeightsChoice | None, *, whole: bool = False) -> Found:
    """The one set of weights in `content`.

    One state_dict may hold a network and its average, each under its own part of the names: two sets too, unless the
    `whole` may be what is built and none of them was `wanted`.

    Raises UsageError if there is no tensor at all, if several sets cannot be told apart, if EMA and raw weights are
    both there and `wanted` is None, or if the `wanted` ones are not there.
    """
    found = list(_candidates(content, ()))
    split = wanted is not None or not whole
    candidates = [part for one in found for part in ((split and [*_with_average(one)]) or (one,))]
    if not candidates:
        held = ", ".join(repr(key) for key in list(content)[:8]) or "nothing"
        raise UsageError(
            f"there are no tensors in the file; it holds {held}",
            expected="a dict of named tensors, at the top or under a key such as 'state_dict' or 'model'",
        )
    ema = [candidate for candidate in candidates if candidate.is_ema]
    raw = [candidate for candidate in candidates if not candidate.is_ema]
    choice = _choose_kind(ema, raw, wanted)
    of_kind = ema if choice == "ema" else raw
    return _found(_only_one(of_kind), choice, others=of_kind)


def strip_prefixes(tensors: Mapping[str, "Tensor"]) -> Iterator[tuple[tuple[str, ...], dict[str, "Tensor"]]]:
    """The tensors as they are, then with one wrapper after another removed; each form with all that were removed.

    A wrapper is a prefix that all names carry, but those of losses and metrics, which are then left out; or one such as
    `._orig_mod.` inside names. A Lightning module may call its network anything, so that any prefix of all names may be
    one. Losses and metrics beside the bare network go last (`NETWORK_ALONE`). `unwrap` repeats the steps.
    """
    removed: tuple[str, ...] = ()
    current = dict(tensors)
    yield removed, current
    while (step := _next_step(current)) is not None:
        removed = (*removed, step)
        current = unwrap(current, (step,))
        yield removed, current


def unwrap(tensors: Mapping[str, T], removed: Iterable[str]) -> dict[str, T]:
    """The tensors after the steps `removed`: those that carry a prefix, without it; `.X.` becomes `.` anywhere."""
    current = dict(tensors)
    for step in removed:
        if step == NETWORK_ALONE:
            current = {name: tensor for name, tensor in current.items() if not _is_left_over(name)}
        elif step.startswith(ADDED):
            current = {step.removeprefix(ADDED) + name: tensor for name, tensor in current.items()}
        elif step.startswith("."):
            current = {name.replace(step, "."): tensor for name, tensor in current.items()}
        else:
            current = {name.removeprefix(step): t for name, t in current.items() if name.startswith(step)}
    return current


def parts_of(tensors: Mapping[str, "Tensor"]) -> Iterator[tuple[tuple[str, ...], dict[str, "Tensor"]]]:
    """What lies under each first part of the names, in the forms of `strip_prefixes`; nothing where there is one part.

    A training module may hold its network beside metrics of any name, or beside another network.
    """
    *_, (removed, whole) = (form for form in strip_prefixes(tensors) if NETWORK_ALONE not in form[0])
    parts = dict.fromkeys(f"{name.partition('.')[0]}." for name in whole if "." in name)
    for part in parts if len(parts) > 1 else ():
        for further, form in strip_prefixes(unwrap(whole, (part,))):
            yield (*removed, part, *further), form


def average_beside(tensors: Mapping[str, Any]) -> tuple[str, ...]:
    """The parts of the names under which a network and its average lie, raw first, where they are all that there is.

    Nothing otherwise; losses and metrics count for nothing.
    """
    shapes: dict[str, Counter[tuple[int, ...]]] = {}
    for name, tensor in tensors.items():
        # An average counts its steps beside the weights.
        if _has_values(tensor) and tensor.numel() > 1 and not _is_left_over(name):
            shapes.setdefault(name.partition(".")[0], Counter())[tuple(tensor.shape)] += 1
    averages = [part for part in shapes if _EMA.search(part.lower())]
    pairs = [
        (part, average)
        for average in averages
        for part in shapes
        if part not in averages and shapes[part].total() > 1 and shapes[part] == shapes[average]
    ]
    return pairs[0] if len(pairs) == 1 and len(shapes) == len(pairs[0]) else ()


def left_out_notes(tensors: Mapping[str, "Tensor"], removed: Iterable[str]) -> tuple[str, ...]:
    """What to say of the losses, metrics and others that `unwrap` leaves out; nothing where there are none."""
    current, gone = dict(tensors), list[str]()
    for step in removed:
        if step == NETWORK_ALONE:
            gone += filter(_is_left_over, current)
        elif not step.startswith((".", ADDED)):
            gone += [name for name in current if not name.startswith(step)]
        current = unwrap(current, (step,))
    if not gone:
        return ()
    training = all(map(_is_left_over, gone))
    which = "that only training uses" if training else "beside the network that was asked for"
    return (f"tensors {which} were left out: {', '.join(gone[:5])}",)


def may_hold_weights(key: str) -> bool:
    """Whether what training saved under `key` may be a model; an optimizer's state, say, is none."""
    return not _NOT_WEIGHTS.match(key.lower())


def _next_step(names: Collection[str]) -> str | None:
    lasting = [name for name in names if not _is_left_over(name)]
    prefix = next((prefix for prefix in PREFIXES if lasting and all(name.startswith(prefix) for name in lasting)), None)
    inner = next((marker for marker in _INNER if any(marker in name for name in names)), None)
    beside = NETWORK_ALONE if 0 < len(lasting) < len(names) else None
    return next((step for step in (prefix, inner, _common_part(lasting), beside) if step is not None), None)


def _is_left_over(name: str) -> bool:
    """Whether a tensor by its name belongs to a loss, a metric or a profiler, or tells how far training came."""
    first, last = name.partition(".")[0], name.rpartition(".")[2]
    return bool(_ONLY_IN_TRAINING.match(first) or _PROGRESS.match(name)) or last in _PROFILED


def _common_part(names: Collection[str]) -> str | None:
    """The first part of all names where that is a whole network's: several parts, of which one is divided again."""
    first = {name.partition(".")[0] for name in names}
    rest = {name.partition(".")[2] for name in names}
    several = len({name.partition(".")[0] for name in rest}) > 1
    return f"{first.pop()}." if len(first) == 1 and several and any("." in name for name in rest) else None


def _candidates(mapping: Mapping[Any, Any], path: tuple[str, ...]) -> Iterator[_Candidate]:
    """Every mapping of names to tensors at or below `path`; a training dict's loose tensors count only without one."""
    import torch

    named = {key: value for key, value in mapping.items() if isinstance(key, str)}
    tensors = {key for key, value in named.items() if isinstance(value, torch.Tensor)}
    if tensors and len(tensors) == len(mapping):
        yield _Candidate(path, named, _modules(mapping))
        return
    nested = [
        candidate
        for key, value in named.items()
        if isinstance(value, Mapping) and len(path) < _DEPTH and may_hold_weights(key)
        for candidate in _candidates(value, (*path, key))
        if any(map(_has_values, candidate.mapping.values()))
    ]
    if nested:
        yield from nested
    elif tensors:
        yield _Candidate(path, named, _modules(mapping))


def _with_average(candidate: _Candidate) -> Iterator[_Candidate]:
    """A network and its average where the candidate holds both, as a training module does; else nothing.

    What an average counts beside its weights, one number directly below its part, is left out.
    """
    both = average_beside(candidate.mapping)
    held = {part: unwrap(candidate.mapping, (f"{part}.",)) for part in both}
    for part, other in zip(both, reversed(both), strict=True):
        mapping = {
            name: one for name, one in held[part].items() if "." in name or one.numel() > 1 or name in held[other]
        }
        modules = tuple(unwrap(dict.fromkeys(candidate.modules), (f"{part}.",)))
        yield _Candidate((*candidate.path, part), mapping, modules)


def _modules(mapping: Mapping[Any, Any]) -> tuple[str, ...]:
    """The names that `state_dict` puts beside the tensors with each module's version; empty where nothing kept them."""
    versions = getattr(mapping, "_metadata", None)
    return tuple(name for name in versions if isinstance(name, str)) if isinstance(versions, Mapping) else ()


def _has_values(value: Any) -> bool:
    """Whether it can be a network's: a count of steps, or a generator's state, is none."""
    import torch

    return isinstance(value, torch.Tensor) and value.dim() > 0 and (value.is_floating_point() or value.is_quantized)


def _choose_kind(ema: list[_Candidate], raw: list[_Candidate], wanted: WeightsChoice | None) -> WeightsChoice | None:
    if wanted == "ema" and not ema:
        raise UsageError(
            "--weights ema was asked for, and the file has no EMA weights",
            expected=f"one of the sets it has: {_names(raw)}",
            fix="leave out --weights ema",
        )
    if wanted == "raw" and not raw:
        raise UsageError(
            f"--weights raw was asked for, and the file has only EMA weights ({_names(ema)})",
            fix="leave out --weights raw",
        )
    if wanted is None and ema and raw:
        raise UsageError(
            f"the file has raw weights ({_names(raw)}) and EMA weights ({_names(ema)}), which are two models",
            expected="a choice: evaluation during training mostly used the EMA weights where there are any",
            fix="add --weights ema or --weights raw",
        )
    if wanted is None:
        return "ema" if ema else None
    return wanted


def _only_one(candidates: list[_Candidate]) -> _Candidate:
    if len(candidates) > 1:
        usual = [candidate for candidate in candidates if candidate.is_usual]
        candidates = usual or candidates
    if len(candidates) > 1:
        raise UsageError(
            f"the file has several sets of weights: {_names(candidates)}",
            expected="one model per checkpoint",
            fix="save the one to deploy by itself: torch.save(checkpoint['...'], 'weights.pt')",
        )
    return candidates[0]


def _names(candidates: list[_Candidate]) -> str:
    return ", ".join(repr(candidate.name or "the top of the file") for candidate in candidates)


def _found(chosen: _Candidate, choice: WeightsChoice | None, *, others: list[_Candidate]) -> Found:
    import torch

    tensors = {key: value.detach() for key, value in chosen.mapping.items() if isinstance(value, torch.Tensor)}
    flat = next((name for name in tensors if _FLAT.search(name)), None)
    if flat is not None:
        raise UsageError(
            f"weight {flat!r} is a flat piece of FSDP's, without the names and shapes of what it was made of",
            expected="named tensors, whole or sharded",
            fix=SAVE_WHOLE,
        )
    notes = []
    beside = sorted(set(chosen.mapping) - set(tensors))
    if beside:
        notes.append(f"entries beside the tensors were left out: {', '.join(beside[:5])}")
    # Such as those of the best epoch, or of a teacher: of as many tensors, and so perhaps the ones that were meant.
    alike = [one for one in others if one is not chosen and len(one.mapping) == len(chosen.mapping)]
    if alike:
        notes.append(f"other weights in the file were left out: {_names(alike)}; taken were {_names([chosen])}")
    if _is_averaged_model(tensors):
        notes.append(f"the weights are an average of {int(tensors.pop('n_averaged'))} models (AveragedModel)")
    return Found(tensors=tensors, under=chosen.name or None, choice=choice, modules=chosen.modules, notes=tuple(notes))


def _is_averaged_model(tensors: Mapping[str, "Tensor"]) -> bool:
    """Whether this is the state of torch.optim.swa_utils.AveragedModel: a counter beside a module."""
    if "n_averaged" not in tensors or tensors["n_averaged"].numel() != 1:
        return False
    return len(tensors) > 1 and all(name.startswith("module.") for name in tensors if name != "n_averaged")
