"""Which knobs a version has, and a config with them turned.

Owns what each knob is in a ModelConfig. The batch limit is `preferred_batch_size` and never `max_batch_size`: lowering
that would refuse requests that the version's contract allows. Called by run, bed and publish.
"""

import difflib
import itertools
from collections.abc import Iterator, Sequence
from typing import Any

from deploy.errors import UsageError
from deploy.repository.manifest import Manifest
from deploy.repository.protobuf import format_config, schema
from deploy.slo.tune_records import Knob, Setting

# What the packager wrote for either format; a config that names neither has nothing to turn.
_THREADS = ("intra_op_thread_count", "INTRA_OP_THREAD_COUNT")
# Waiting takes its share of the bound: beyond a quarter, compute and the queue have too little left.
_DELAY_SHARES = (1 / 64, 1 / 32, 1 / 16, 1 / 8, 1 / 4)
_LEAST_DELAY_US = 50
_MOST_INSTANCES = 64


def own_setting(config: Any) -> Setting:
    """The setting that a config stands for."""
    limit, delay = None, None
    if _batches(config):
        limit = 1
        if config.HasField("dynamic_batching"):
            batching = config.dynamic_batching
            limit = max(batching.preferred_batch_size, default=config.max_batch_size)
            delay = int(batching.max_queue_delay_microseconds) if limit > 1 else None
    threads = _threads_parameter(config)
    return Setting(
        batch_limit=limit,
        delay_us=delay,
        instances=config.instance_group[0].count if len(config.instance_group) == 1 else None,
        threads=int(config.parameters[threads].string_value) if threads else None,
    )


def find_knobs(
    manifest: Manifest, config: Any, *, cores: int, bound_ms: float, most_instances: int = _MOST_INSTANCES
) -> tuple[Knob, ...]:
    """The knobs that this version's target heeds, each with at least two values, one of them the version's own.

    `most_instances` is how many this machine has memory for. Raises UsageError if there is no knob.
    """
    own = own_setting(config)
    instances = [count for count in _counts(cores, beyond=2) if count <= most_instances]
    found: list[Knob | None] = [_knob("instances", instances, own.instances)]
    if manifest.format == "aoti" and manifest.target.triton is not None:
        # Triton's own PyTorch backend runs an archive's loader per model: instances would wait for each other.
        found = []
    if manifest.target.device == "cpu":
        found.append(_knob("threads", _counts(cores, beyond=1), own.threads))
    if own.batch_limit is not None:
        found.append(_knob("batch_limit", _counts(config.max_batch_size, beyond=1), own.batch_limit))
        found.append(_knob("delay_us", _delays(bound_ms), own.delay_us or 0))
    knobs = tuple(knob for knob in found if knob and len(knob.values) > 1)
    if not knobs:
        raise UsageError(
            f"{manifest.name}:{manifest.version} has nothing to tune on target {manifest.target.name}, cores: {cores}",
            expected="a version that batches, or a machine with more than one core",
        )
    return knobs


def apply(config: Any, setting: Setting) -> Any:
    """A copy of the config with the knobs of `setting` turned; a knob that is None stays as it is."""
    turned = schema().ModelConfig()
    turned.CopyFrom(config)
    if setting.batch_limit == 1:
        turned.ClearField("dynamic_batching")
    elif setting.batch_limit is not None:
        batching = turned.dynamic_batching
        batching.SetInParent()
        del batching.preferred_batch_size[:]
        if setting.batch_limit < turned.max_batch_size:
            batching.preferred_batch_size.append(setting.batch_limit)
        batching.max_queue_delay_microseconds = setting.delay_us or 0
    if setting.instances is not None:
        turned.instance_group[0].count = setting.instances
    if setting.threads is not None and (name := _threads_parameter(turned)):
        turned.parameters[name].string_value = str(setting.threads)
    return turned


def difference(before: Any, after: Any) -> str:
    """The change of a config as a unified diff; empty where there is none."""
    old, new = format_config(before).splitlines(), format_config(after).splitlines()
    return "\n".join(difflib.unified_diff(old, new, "config.pbtxt", "config.pbtxt, tuned", lineterm="", n=1))


def all_settings(knobs: Sequence[Knob]) -> Iterator[Setting]:
    """Every setting of the knobs, once."""
    values = [[(knob.name, value) for value in knob.values] for knob in knobs]
    yield from dict.fromkeys(made(dict(choice)) for choice in itertools.product(*values))


def made(chosen: dict[str, int]) -> Setting:
    """The setting of these knob values: without merging the delay means nothing."""
    if chosen.get("batch_limit") == 1:
        chosen = {name: value for name, value in chosen.items() if name != "delay_us"}
    return Setting.model_validate(chosen)


def only(setting: Setting, knobs: Sequence[Knob]) -> Setting:
    """The setting with those knobs only; a delay counts where requests are merged."""
    names = {knob.name for knob in knobs}
    given = setting.model_dump(exclude_none=True)
    chosen: dict[str, int] = {name: value for name, value in given.items() if name in names}
    if "delay_us" in names and chosen.get("batch_limit") != 1:
        chosen.setdefault("delay_us", 0)
    return made(chosen)


def first_settings(own: Setting, knobs: Sequence[Knob], *, cores: int) -> tuple[Setting, ...]:
    """What is worth a trial before anything is known: the version's own, and the corners that mostly win.

    A core per instance with one thread, one instance with all cores, each with and without merging.
    """
    values = {knob.name: knob.values for knob in knobs}
    spread = {"instances": cores, "threads": 1}
    alone = {"instances": 1, "threads": cores}
    merging = max(values.get("batch_limit", (1,)))
    corners: list[dict[str, int]] = [
        spread | {"batch_limit": merging, "delay_us": 0},
        spread | {"batch_limit": 1},
        alone | {"batch_limit": 1},
        alone | {"batch_limit": merging, "delay_us": 0},
    ]
    found = [only(own, knobs)]
    for corner in corners:
        chosen = only(own, knobs).model_dump(exclude_none=True)
        chosen |= {name: value for name, value in corner.items() if value in values.get(name, ())}  # type: ignore[call-overload]
        found.append(made(chosen))
    return tuple(dict.fromkeys(found))


def _knob(name: Any, values: Sequence[int], own: int | None) -> Knob | None:
    return None if own is None else Knob(name=name, values=tuple(sorted({*values, own})))


def _counts(most: int, *, beyond: int) -> tuple[int, ...]:
    """1, 2, 4 and so on up to `most` times `beyond`, and `most` itself."""
    limit = most * beyond
    return tuple(sorted({most, limit, *(1 << power for power in range(limit.bit_length()) if 1 << power <= limit)}))


def _delays(bound_ms: float) -> tuple[int, ...]:
    """No delay, and shares of the bound in microseconds, to two digits."""
    raw = (share * bound_ms * 1000 for share in _DELAY_SHARES)
    return (0, *(int(float(f"{delay:.2g}")) for delay in raw if delay >= _LEAST_DELAY_US))


def _batches(config: Any) -> bool:
    return bool(config.max_batch_size > 1)


def _threads_parameter(config: Any) -> str | None:
    return next((name for name in _THREADS if name in config.parameters), None)
