"""The promotions of a model: who was promoted when, on whose word, and what of that took effect.

Owns the record beside the versions, and how a crash in it is read. Decides nothing. Called by promotion, and by
what approves one.
"""

import re
from pathlib import Path
from typing import Literal

from deploy.records import Record
from deploy.repository.layout import ATTESTATIONS_FOLDER, CONFIG_FILE, promoted_version, version_numbers
from deploy.repository.manifest import MANIFEST_FILE, created_now, version_digest

HISTORY_FILE = "promotions.json"
_NAMED = re.compile(r"\bversions\s*:\s*\[?\s*([1-9][0-9]{0,8})")


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

    `approval` is None where no policy was asked, and in histories from before there was one. `ensemble` is the one that
    brought a step along, as `NAME:N`; None for what was promoted by its own name.
    """

    action: Literal["promote", "rollback", "void"]
    version: int
    digest: str
    at: str
    approval: Approval | None = None
    ensemble: str | None = None


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


def read_history(model_folder: Path) -> PromotionHistory:
    """The promotions of a model, empty where only the first version ever was."""
    path = model_folder / ATTESTATIONS_FOLDER / HISTORY_FILE
    return PromotionHistory.read(path) if path.exists() else PromotionHistory()


def _first_promoted(model_folder: Path) -> int | None:
    """The version that was promoted as it came, of a model whose config cannot be parsed; None where there is none.

    A broken config mostly names it still; else it is the lowest, since no other was ever promoted.
    """
    config, numbers = model_folder / CONFIG_FILE, version_numbers(model_folder)
    text = config.read_text(errors="replace") if config.is_file() else ""
    named = [int(number) for number in _NAMED.findall(text)]
    return next((number for number in (*named, *numbers) if number in numbers), None)


def settled_history(model_folder: Path) -> PromotionHistory:
    """The history with what a crash, or a hand, left out: its stack ends with the version that is promoted.

    Where the config does not say which that is, a history without entries begins with the version that came first.
    """
    history = read_history(model_folder)
    number = promoted_version(model_folder)
    if number is None and not history.entries:
        number = _first_promoted(model_folder)
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
