"""Which version Triton serves, and which it served before.

Owns the model's `config.pbtxt` and the history beside it; never touches a version. Called by publish, and by the
commands `promote` and `rollback`.

The history is written before the config is replaced. After a crash between the two its last entry never happened,
which the next call sees from the config and notes, so that `rollback` always goes where traffic really was.

An ensemble brings its steps along, and has one switch, its own config: before it each step is served beside the version
that the ensemble of before runs, after it what no promoted ensemble runs any more is dropped. A crash at any instant
leaves an ensemble whose steps are all served; the next call of either finishes what was left.
"""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from deploy.errors import UnfinishedError, UsageError
from deploy.files import disk_errors_explained, write_atomically
from deploy.repository.beside import config_with, own_config, promoted_ensembles, versions_run
from deploy.repository.edits import find_edits, keep_edited
from deploy.repository.find import find_model, find_version, read_manifest
from deploy.repository.history import HISTORY_FILE, Approval, PromotionEntry, settled_history
from deploy.repository.integrity import require_intact, step_versions
from deploy.repository.layout import (
    ATTESTATIONS_FOLDER,
    CONFIG_FILE,
    Version,
    promoted_version,
    served_versions,
    version_numbers,
)
from deploy.repository.lint import require_clean
from deploy.repository.lock import held
from deploy.repository.manifest import Manifest, created_now, version_digest


@dataclass(frozen=True, slots=True, kw_only=True)
class Promoted:
    """What a promotion or a rollback did. `previous` is None where no version was promoted.

    `before` is the same, and where the config said of none the one that the history says was promoted last.
    `edited` says what the replaced config had otherwise than that of its version, `kept` where it lies now. `steps`
    are the versions that an ensemble brought along, and that are promoted now.
    """

    version: Version
    previous: int | None
    digest: str
    before: int | None
    unsafe_accepted: tuple[str, ...]
    contract_changes: tuple[str, ...]
    edited: tuple[str, ...] = ()
    kept: Path | None = None
    steps: tuple[Version, ...] = ()


def promote(
    repository: Path,
    name: str,
    number: int,
    *,
    approval: Approval | None = None,
    leaving: int | None = None,
    on_step: Callable[[str], None] = lambda _: None,
) -> Promoted:
    """Make Triton serve version `number`, by one replacement of `<name>/config.pbtxt`.

    `leaving` is the version that must still be the promoted one; None for any. Raises UsageError if there is no such
    version, a file of it has changed, something strange lies beside it, or a check of it did not pass; UnfinishedError
    if Triton would reject its config, or another version than `leaving` is promoted, or was since `approval` was given.
    """
    version = find_version(repository, f"{name}:{number}")
    read_manifest(version)  # nothing is left beside what deployctl never published
    with _held(version.repository, name):
        _check_left(version.model_folder, leaving)
        return _apply(version, _Change(action="promote", approval=approval, on_step=on_step))


def rollback(
    repository: Path,
    name: str,
    *,
    to: int | None = None,
    leaving: int | None = None,
    on_step: Callable[[str], None] = lambda _: None,
) -> Promoted:
    """Make Triton serve the version that was promoted before the present one, or the earlier one numbered `to`.

    `leaving` is the version that must still be the promoted one. Raises UsageError if there was none before, or if it
    is gone or no longer the version that it was; UnfinishedError if another than `leaving` is promoted by now.
    """
    folder = find_model(repository, name).folder
    if not (folder / ATTESTATIONS_FOLDER).is_dir():
        raise _nothing_before(repository, name, ())
    with _held(repository, name):
        _check_left(folder, leaving)
        stack = settled_history(folder).stack()
        if to is not None:
            stack = _undone(stack, to, name)
        if len(stack) < 2:
            raise _nothing_before(repository, name, stack)
        version = find_version(repository, f"{name}:{stack[-2].version}")
        if version_digest(version.folder) != stack[-2].digest:
            raise UsageError(
                f"{version} is not the version that was promoted then: its digest differs",
                expected=stack[-2].digest,
                fix="look at what replaced it, then promote a version by its number",
            )
        return _apply(version, _Change(action="rollback", on_step=on_step))


def _nothing_before(repository: Path, name: str, stack: tuple[PromotionEntry, ...]) -> UsageError:
    said = f"version {stack[-1].version} is the only one ever promoted" if stack else "no promotion of it is known"
    return UsageError(
        f"there is nothing to roll {name} back to: {said}",
        expected="an earlier promotion",
        fix=f"choose a version with `deployctl promote {repository} {name}:N`",
    )


def _check_left(model_folder: Path, leaving: int | None) -> None:
    now = promoted_version(model_folder)
    if leaving is not None and now != leaving:
        found = f"version {now} was promoted meanwhile" if now else "the promoted config was changed meanwhile"
        raise UnfinishedError(
            found,
            expected=f"version {leaving} to be the promoted one still",
            fix="decide which version is to be served, and promote it by its number",
        )


def _undone(stack: tuple[PromotionEntry, ...], to: int, name: str) -> tuple[PromotionEntry, ...]:
    """The stack as if only what followed the last promotion of `to` were to be undone."""
    earlier = [place for place, entry in enumerate(stack[:-1]) if entry.version == to]
    if not earlier:
        before = ", ".join(dict.fromkeys(f"{name}:{entry.version}" for entry in reversed(stack[:-1])))
        raise UsageError(
            f"{name}:{to} is not among the versions promoted before the present one",
            expected=f"one of {before}" if before else "an earlier promotion",
            fix=f"promote it instead: `deployctl promote REPOSITORY {name}:{to}`",
        )
    return stack[: earlier[-1] + 2]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Change:
    """What is done, on whose word, for which ensemble, and who is told of each step."""

    action: Literal["promote", "rollback"]
    on_step: Callable[[str], None]
    approval: Approval | None = None
    ensemble: str | None = None


def _apply(version: Version, change: _Change) -> Promoted:
    manifest = _require_releasable(version)
    running = versions_run(version.repository, version.name)
    _check_highest(version, running)
    config = config_with(version, running)
    require_clean(config, folder=version.model_folder)
    digest = version_digest(version.folder)
    previous = promoted_version(version.model_folder)
    # Where the config does not say which is promoted, the history may.
    last = None if previous else next(iter(settled_history(version.model_folder).stack()[-1:]), None)
    if change.approval is not None and change.approval.instead_of != previous:
        raise UnfinishedError(
            f"version {previous} was promoted while {version} was judged against version {change.approval.instead_of}",
            fix="run it again",
        )
    edited = find_edits(version.model_folder)
    change.on_step("promotion-checked")
    with disk_errors_explained(f"promoting {version}", version.model_folder):
        brought = _serve_steps(version, manifest, change)
        kept = keep_edited(version.model_folder) if edited else None
        if kept:
            change.on_step("edited-config-kept")
        # The config of the version promoted last is given back only: undoing that would change nothing.
        restored = last and change.action == "promote" and (last.version, last.digest) == (version.number, digest)
        if previous != version.number and not restored:
            _record(version, change, digest)
        _write_config(version.model_folder, config)
        change.on_step("promoted")
        if manifest.steps:
            back = _undo_steps(version, previous, change) if change.action == "rollback" else ()
            _drop_unused(version.repository, {step.model for step in manifest.steps})
            brought = (*brought, *back)
            change.on_step("steps-settled")
    return Promoted(
        version=version,
        previous=previous,
        digest=digest,
        before=last.version if last else previous,
        unsafe_accepted=manifest.unsafe_accepted,
        contract_changes=manifest.contract_changes,
        edited=edited,
        kept=kept,
        steps=brought,
    )


def _record(version: Version, change: _Change, digest: str) -> None:
    """Write the step into the history, before it takes effect."""
    entry = PromotionEntry(
        action=change.action,
        version=version.number,
        digest=digest,
        at=created_now(),
        approval=change.approval,
        ensemble=change.ensemble,
    )
    history = settled_history(version.model_folder) + entry
    history.write(version.model_folder / ATTESTATIONS_FOLDER / HISTORY_FILE)
    change.on_step("promotion-recorded")


def _require_releasable(version: Version) -> Manifest:
    """The manifest of a version that is intact and whose checks passed, and those of its steps too."""
    manifest = require_intact(version)
    for one in (version, *step_versions(version, manifest)):
        if blockers := read_manifest(one).blockers():
            raise UsageError(
                f"{one} may not be promoted: {'; '.join(blockers)}",
                expected="a version whose checks passed",
                fix="package the checkpoint again",
            )
    return manifest


def _check_highest(version: Version, running: dict[int, str]) -> None:
    """Triton answers with the highest version where a request names none: none above this one may be kept."""
    above = [number for number in sorted(running) if number > version.number]
    if above:
        by = running[above[-1]]
        raise UsageError(
            f"{version} would not be answered with: {by}, which is promoted, runs {version.name}:{above[-1]}",
            expected=f"a version from {above[-1]} on, as long as {by} is served",
            fix=f"change the ensemble first: `deployctl rollback {version.repository} {by.partition(':')[0]}`",
        )


def _serve_steps(version: Version, manifest: Manifest, change: _Change) -> tuple[Version, ...]:
    """See that each step of an ensemble is served before it is. Gives back those that were promoted for it."""
    promoted: list[Version] = []
    for step in step_versions(version, manifest):
        served = served_versions(step.model_folder)
        if step.number in served:
            continue
        if not served or step.number > served[-1]:
            _apply(step, _Change(action="promote", on_step=change.on_step, ensemble=str(version)))
            promoted.append(step)
        else:
            newest = Version(repository=step.repository, name=step.name, number=served[-1])
            config = config_with(newest, (*served, step.number))
            require_clean(config, folder=step.model_folder)
            _write_config(step.model_folder, config)
        change.on_step(f"step-served {step}")
    return tuple(promoted)


def _undo_steps(version: Version, left: int | None, change: _Change) -> tuple[Version, ...]:
    """Go back to the steps of an ensemble that is rolled back to, where only the one that is left had promoted others.

    Whoever promoted a step by its own name since then meant it: that one stays.
    """
    undone: list[Version] = []
    for step in step_versions(version, read_manifest(version)):
        stack = settled_history(step.model_folder).stack()
        if len(stack) < 2 or stack[-1].ensemble != f"{version.name}:{left}":
            continue
        before = Version(repository=step.repository, name=step.name, number=stack[-2].version)
        if before == step and version_digest(before.folder) == stack[-2].digest:
            _apply(before, _Change(action="rollback", on_step=change.on_step, ensemble=str(version)))
            undone.append(before)
    return tuple(undone)


def _drop_unused(repository: Path, names: set[str]) -> None:
    """Let each model serve its promoted version and what promoted ensembles run, and nothing else."""
    for name in sorted(names):
        number = promoted_version(repository / name)
        written = own_config(repository / name)
        if number is None or written is None or written != (repository / name / CONFIG_FILE).read_text():
            continue  # edited by hand: said and kept at the next promotion of its own
        version = Version(repository=repository, name=name, number=number)
        _write_config(version.model_folder, config_with(version, versions_run(repository, name)))


def _write_config(model_folder: Path, config: str) -> None:
    target = model_folder / CONFIG_FILE
    # A server in poll mode loads the model again whenever this file is newer.
    if not target.exists() or target.read_bytes() != config.encode():
        write_atomically(target, config.encode())


@contextmanager
def _held(repository: Path, name: str) -> Iterator[None]:
    """No other process on this machine may change what is promoted of this model, or of those that go with it."""
    with ExitStack() as stack:
        # All take them in one order, so that no two wait for each other.
        for one in sorted(_going_with(repository, name)):
            with disk_errors_explained(f"reading the promotions of {one}"):
                stack.enter_context(held(repository / one))
        yield


def _going_with(repository: Path, name: str) -> set[str]:
    """The model, the steps of its versions where they are ensembles, and the promoted ensembles that run any."""
    found = {name}
    for number in version_numbers(repository / name):
        version = Version(repository=repository, name=name, number=number)
        with suppress(UsageError):
            found |= {step.model for step in Manifest.read(version.manifest).steps}
    for ensemble in promoted_ensembles(repository):
        if {ensemble.name, *ensemble.steps} & found:
            found |= {ensemble.name, *ensemble.steps}
    return {one for one in found if (repository / one).is_dir()}
