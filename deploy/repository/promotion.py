"""Which version Triton serves, and which it served before.

Owns the model's `config.pbtxt` and the history beside it; never touches a version. Called by publish, and by the
commands `promote` and `rollback`.

The history is written before the config is replaced. After a crash between the two its last entry never happened,
which the next call sees from the config and notes, so that `rollback` always goes where traffic really was.
"""

import fcntl
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from deploy.errors import UnfinishedError, UsageError
from deploy.files import disk_errors_explained, write_atomically
from deploy.records import Record
from deploy.repository.edits import find_edits, keep_edited
from deploy.repository.find import find_model, find_version
from deploy.repository.integrity import require_intact
from deploy.repository.layout import ATTESTATIONS_FOLDER, CONFIG_FILE, Version, promoted_version
from deploy.repository.lint import require_clean
from deploy.repository.manifest import MANIFEST_FILE, created_now, version_digest

HISTORY_FILE = "promotions.json"


class Relied(Record):
    """One attestation that a promotion relied on: its kind, its file below `attestations/`, and the file's digest."""

    kind: str
    file: str
    sha256: str


class Approval(Record):
    """What stood behind a promotion: the environment, the digest of its file, and the attestations that it took.

    `instead_of` is the version that was promoted when this was decided, None where none was. `met` is each demand with
    the reason it was taken as met.
    """

    environment: str | None
    policy_sha256: str | None
    instead_of: int | None
    relied: tuple[Relied, ...]
    met: tuple[str, ...] = ()


class PromotionEntry(Record):
    """One step of the history. `void` says that the entry before it was cut off by a crash and never took effect.

    `approval` is None where no policy was asked, and in histories from before there was one.
    """

    action: Literal["promote", "rollback", "void"]
    version: int
    digest: str
    at: str
    approval: Approval | None = None


class PromotionHistory(Record):
    """Every promotion of one model, oldest first; `<name>/attestations/promotions.json`."""

    entries: tuple[PromotionEntry, ...] = ()

    def stack(self) -> tuple[PromotionEntry, ...]:
        """The promotions that rollback can undo, the present one last."""
        kept: list[PromotionEntry] = []
        states: list[list[PromotionEntry]] = []
        for entry in self.entries:
            if entry.action == "void":
                kept = states.pop() if states else []
                continue
            states.append(kept)
            kept = [*kept, entry] if entry.action == "promote" else _back_to(entry.version, kept)
        return tuple(kept)

    def __add__(self, entry: PromotionEntry) -> "PromotionHistory":
        return PromotionHistory(entries=(*self.entries, entry))


def _back_to(number: int, stack: list[PromotionEntry]) -> list[PromotionEntry]:
    """The stack without the present promotion, and without those that a rollback to `number` went past."""
    kept = stack[:-1]
    while kept and kept[-1].version != number:
        kept = kept[:-1]
    return kept


@dataclass(frozen=True, slots=True, kw_only=True)
class Promoted:
    """What a promotion or a rollback did. `previous` is None where no version was promoted.

    `edited` says what the replaced config had otherwise than that of its version, `kept` where it lies now.
    """

    version: Version
    previous: int | None
    digest: str
    unsafe_accepted: tuple[str, ...]
    contract_changes: tuple[str, ...]
    edited: tuple[str, ...] = ()
    kept: Path | None = None


def promote(
    repository: Path,
    name: str,
    number: int,
    *,
    approval: Approval | None = None,
    on_step: Callable[[str], None] = lambda _: None,
) -> Promoted:
    """Make Triton serve version `number`, by one replacement of `<name>/config.pbtxt`.

    Raises UsageError if there is no such version, a file of it has changed, something strange lies beside it, or a
    check of it did not pass; UnfinishedError if Triton would reject its config, or another version was promoted since
    `approval` was given.
    """
    version = find_version(repository, f"{name}:{number}")
    with _history_held(version.model_folder) as history:
        return _apply(version, "promote", history, approval=approval, on_step=on_step)


def rollback(
    repository: Path, name: str, *, to: int | None = None, on_step: Callable[[str], None] = lambda _: None
) -> Promoted:
    """Make Triton serve the version that was promoted before the present one, or the earlier one numbered `to`.

    Raises UsageError if there was none, or if it is gone or no longer the version that it was.
    """
    folder = find_model(repository, name).folder
    with _history_held(folder) as history:
        stack = history.stack()
        if to is not None:
            stack = _undone(stack, to, name)
        if len(stack) < 2:
            present = f"version {stack[-1].version}" if stack else "no version"
            raise UsageError(
                f"there is nothing to roll {name} back to: {present} is the only one ever promoted",
                expected="an earlier promotion",
                fix=f"choose a version with `deployctl promote {repository} {name}:N`",
            )
        version = find_version(repository, f"{name}:{stack[-2].version}")
        if version_digest(version.folder) != stack[-2].digest:
            raise UsageError(
                f"{version} is not the version that was promoted then: its digest differs",
                expected=stack[-2].digest,
                fix="look at what replaced it, then promote a version by its number",
            )
        return _apply(version, "rollback", history, on_step=on_step)


def read_history(model_folder: Path) -> PromotionHistory:
    """The promotions of a model, empty where only the first version ever was."""
    path = model_folder / ATTESTATIONS_FOLDER / HISTORY_FILE
    return PromotionHistory.read(path) if path.exists() else PromotionHistory()


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


def _apply(
    version: Version,
    action: Literal["promote", "rollback"],
    history: PromotionHistory,
    *,
    on_step: Callable[[str], None],
    approval: Approval | None = None,
) -> Promoted:
    manifest = require_intact(version)
    blockers = manifest.blockers()
    if blockers:
        raise UsageError(
            f"{version} may not be promoted: {'; '.join(blockers)}",
            expected="a version whose checks passed",
            fix="package the checkpoint again",
        )
    for step in manifest.steps:
        if promoted_version(version.repository / step.model) != step.version:
            raise UsageError(
                f"{version} is an ensemble that runs {step}, which is not promoted",
                expected="an ensemble whose steps are all served",
                fix=f"run `deployctl promote {version.repository} {step}` first",
            )
    config = version.config.read_text()
    require_clean(config, folder=version.model_folder)
    digest = version_digest(version.folder)
    previous = promoted_version(version.model_folder)
    if approval is not None and approval.instead_of != previous:
        raise UnfinishedError(
            f"version {previous} was promoted while {version} was judged against version {approval.instead_of}",
            fix="run it again",
        )
    edited = find_edits(version.model_folder)
    on_step("promotion-checked")
    with disk_errors_explained(f"promoting {version}"):
        kept = keep_edited(version.model_folder) if edited else None
        if kept:
            on_step("edited-config-kept")
        if previous != version.number:
            entry = PromotionEntry(
                action=action, version=version.number, digest=digest, at=created_now(), approval=approval
            )
            (history + entry).write(version.model_folder / ATTESTATIONS_FOLDER / HISTORY_FILE)
            on_step("promotion-recorded")
        target = version.model_folder / CONFIG_FILE
        # A server in poll mode loads the model again whenever this file is newer.
        if not target.exists() or target.read_bytes() != config.encode():
            write_atomically(target, config.encode())
    on_step("promoted")
    return Promoted(
        version=version,
        previous=previous,
        digest=digest,
        unsafe_accepted=manifest.unsafe_accepted,
        contract_changes=manifest.contract_changes,
        edited=edited,
        kept=kept,
    )


@contextmanager
def _history_held(model_folder: Path) -> Iterator[PromotionHistory]:
    """The history in agreement with the config, while no other process on this machine may change either."""
    with disk_errors_explained(f"reading the promotions of {model_folder.name}"):
        (model_folder / ATTESTATIONS_FOLDER).mkdir(exist_ok=True)
        descriptor = os.open(model_folder / ATTESTATIONS_FOLDER / ".lock", os.O_RDWR | os.O_CREAT, 0o644)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield _settled(read_history(model_folder), model_folder)
    finally:
        os.close(descriptor)


def _settled(history: PromotionHistory, model_folder: Path) -> PromotionHistory:
    """The history with what a crash, or a hand, left out: its stack ends with the version that is promoted."""
    number = promoted_version(model_folder)
    stack = history.stack()
    folder = model_folder / str(number)
    if number is None or (stack and stack[-1].version == number) or not (folder / MANIFEST_FILE).exists():
        return history
    digest = version_digest(folder)
    entry = PromotionEntry(action="void", version=number, digest=digest, at=created_now())
    if history.entries:
        shorter = (history + entry).stack()
        if shorter and shorter[-1].version == number:
            return history + entry
    return history + entry.model_copy(update={"action": "promote"})
