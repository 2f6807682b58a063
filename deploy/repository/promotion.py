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

from deploy.errors import UsageError
from deploy.files import disk_errors_explained, write_atomically
from deploy.records import Record
from deploy.repository.find import find_model, find_version
from deploy.repository.integrity import require_intact
from deploy.repository.layout import ATTESTATIONS_FOLDER, CONFIG_FILE, Version, promoted_version
from deploy.repository.lint import require_clean
from deploy.repository.manifest import MANIFEST_FILE, created_now, version_digest

HISTORY_FILE = "promotions.json"


class PromotionEntry(Record):
    """One step of the history. `void` says that the entry before it was cut off by a crash and never took effect."""

    action: Literal["promote", "rollback", "void"]
    version: int
    digest: str
    at: str


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
            kept = [*kept, entry] if entry.action == "promote" else kept[:-1]
        return tuple(kept)

    def __add__(self, entry: PromotionEntry) -> "PromotionHistory":
        return PromotionHistory(entries=(*self.entries, entry))


@dataclass(frozen=True, slots=True, kw_only=True)
class Promoted:
    """What a promotion or a rollback did. `previous` is None where no version was promoted."""

    version: Version
    previous: int | None
    digest: str
    unsafe_accepted: tuple[str, ...]
    contract_changes: tuple[str, ...]


def promote(repository: Path, name: str, number: int, *, on_step: Callable[[str], None] = lambda _: None) -> Promoted:
    """Make Triton serve version `number`, by one replacement of `<name>/config.pbtxt`.

    Raises UsageError if there is no such version, a file of it has changed, something strange lies beside it, or a
    check of it did not pass;
    UnfinishedError if Triton would reject its config.
    """
    version = find_version(repository, f"{name}:{number}")
    with _history_held(version.model_folder) as history:
        return _apply(version, "promote", history, on_step)


def rollback(repository: Path, name: str, *, on_step: Callable[[str], None] = lambda _: None) -> Promoted:
    """Make Triton serve the version that was promoted before the present one.

    Raises UsageError if there was none, or if it is gone or no longer the version that it was.
    """
    folder = find_model(repository, name).folder
    with _history_held(folder) as history:
        stack = history.stack()
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
        return _apply(version, "rollback", history, on_step)


def read_history(model_folder: Path) -> PromotionHistory:
    """The promotions of a model, empty where only the first version ever was."""
    path = model_folder / ATTESTATIONS_FOLDER / HISTORY_FILE
    return PromotionHistory.read(path) if path.exists() else PromotionHistory()


def _apply(
    version: Version, action: Literal["promote", "rollback"], history: PromotionHistory, on_step: Callable[[str], None]
) -> Promoted:
    manifest = require_intact(version)
    blockers = manifest.blockers()
    if blockers:
        raise UsageError(
            f"{version} may not be promoted: {'; '.join(blockers)}",
            expected="a version whose checks passed",
            fix="package the checkpoint again",
        )
    config = version.config.read_text()
    require_clean(config, folder=version.model_folder)
    digest = version_digest(version.folder)
    previous = promoted_version(version.model_folder)
    on_step("promotion-checked")
    with disk_errors_explained(f"promoting {version}"):
        if previous != version.number:
            entry = PromotionEntry(action=action, version=version.number, digest=digest, at=created_now())
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
