"""What two versions differ in by what they say of themselves: config, contract, checkpoint, environment, size.

Owns which fact stands in which part; loads and runs nothing. Called by diff.
"""

from collections.abc import Iterator, Mapping
from typing import Any

from deploy.release.asked import Side
from deploy.repository.config_diff import config_changes
from deploy.repository.contract import contract_changes
from deploy.repository.layout import is_artifact_file
from deploy.repository.manifest import Manifest
from deploy.validate.difference_records import Change, SizeDifference

_LABEL_FACTS = 5


def changes(before: Side, after: Side) -> tuple[Change, ...]:
    """Every fact that differs, in the order a release engineer asks for them."""
    return tuple(_changes(before, after))


def size_difference(before: Manifest, after: Manifest) -> SizeDifference:
    """Bytes of both artifacts and of both versions as a whole, their manifests aside."""
    sizes = [sum(entry.size for entry in one.files if is_artifact_file(entry.path)) for one in (before, after)]
    totals = [sum(entry.size for entry in one.files) for one in (before, after)]
    return SizeDifference(
        artifact_before=sizes[0], artifact_after=sizes[1], total_before=totals[0], total_after=totals[1]
    )


def _changes(before: Side, after: Side) -> Iterator[Change]:
    old, new = before.manifest, after.manifest
    for change in contract_changes(old, new):
        yield Change(part="contract", what=change.what, before=change.before, after=change.after, notice=change.notice)
    yield from _bounds(old, new)
    yield from _added_labels(old, new)
    for found in config_changes(before.version.config.read_text(), after.version.config.read_text()):
        yield Change(part="config", what=found.path, before=found.before, after=found.after)
    yield from _fields("checkpoint", old.checkpoint.model_dump(), new.checkpoint.model_dump())
    yield from _fields("preprocessing", old.preprocessing.model_dump(), new.preprocessing.model_dump())
    yield from _fields("artifact", old.artifact, new.artifact)
    yield from _fields("target", old.target.model_dump(), new.target.model_dump())
    yield from _fields("environment", old.environment.model_dump(), new.environment.model_dump())
    yield from _verdicts(old, new)


def _bounds(old: Manifest, new: Manifest) -> Iterator[Change]:
    """Wider bounds, which are no change of the contract."""
    sides = [{dim.name: f"{dim.minimum}..{dim.maximum}" for dim in one.spec.dims} for one in (old, new)]
    yield from _fields("contract", *sides, prefix="bounds of ")


def _added_labels(old: Manifest, new: Manifest) -> Iterator[Change]:
    before, after = old.classes or (), new.classes or ()
    if len(after) > len(before) and after[: len(before)] == before:
        added = ", ".join(after[len(before) :][:_LABEL_FACTS])
        more = len(after) - len(before) - _LABEL_FACTS
        said = f"{len(after)}: {added}{f' and {more} more' if more > 0 else ''} are new"
        yield Change(part="labels", what="labels", before=str(len(before) or ""), after=said)


def _verdicts(old: Manifest, new: Manifest) -> Iterator[Change]:
    def words(one: Manifest) -> dict[str, str]:
        found = one.verdicts.model_dump(mode="json", exclude_none=True)
        return {name: str(judgement["verdict"]) for name, judgement in found.items()}

    yield from _fields("verdicts", words(old), words(new))
    yield from _fields(
        "verdicts", {"accepted as unsafe": old.unsafe_accepted}, {"accepted as unsafe": new.unsafe_accepted}
    )


def _fields(part: str, old: Mapping[str, Any], new: Mapping[str, Any], *, prefix: str = "") -> Iterator[Change]:
    for name in dict.fromkeys((*old, *new)):
        if old.get(name) != new.get(name):
            what = f"{prefix}{name.replace('_', ' ')}"
            yield Change(part=part, what=what, before=_said(old.get(name)), after=_said(new.get(name)))


def _said(value: Any) -> str:
    if value is None or value == ():
        return ""
    if isinstance(value, dict):
        return ", ".join(f"{name}={_said(item)}" for name, item in value.items())
    return ", ".join(map(_said, value)) if isinstance(value, (tuple, list)) else str(value)
