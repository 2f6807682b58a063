"""Which tactic the figures speak for, and choices that are kept for the next fine-tune.

Owns the rule and the record; measures nothing. Called by fastest.
"""

import tempfile
from collections.abc import Sequence
from pathlib import Path

from deploy.cache import Store
from deploy.convert.tactics import DEFAULT, Tactic
from deploy.latency_evidence import LatencyRatio, control_of
from deploy.records import Record
from deploy.validate.statistics import TOO_NOISY, span
from deploy.validate.winner import noise_factor

CHOICE_FILE = "choice.json"
# What the default may take of its own time, as a factor between both ends of the interval, for a choice to be kept.
_QUIET = 1.2


class Choice(Record):
    """What was chosen for one format, and the figures in words that it was chosen by: what is kept."""

    tactic: Tactic
    measured: str


def recall(store: Store | None, key: str, *, work: Path) -> Choice | None:
    """What was chosen before under that key, if anything. `work` is an existing folder for temporary files."""
    if store is None:
        return None
    with tempfile.TemporaryDirectory(dir=work) as folder:
        entry = Path(folder) / "entry"
        return Choice.read(entry / CHOICE_FILE) if store.take(key, entry) else None


def keep(choice: Choice, store: Store | None, key: str, *, work: Path) -> None:
    """Keep the choice under that key, where there is a store."""
    if store is None:
        return
    with tempfile.TemporaryDirectory(dir=work) as folder:
        choice.write(Path(folder) / CHOICE_FILE)
        store.keep(key, Path(folder), about=f"the fastest tactic for {choice.tactic.format}: {choice.tactic.name}")


def pick(ratios: Sequence[LatencyRatio], names: Sequence[str]) -> tuple[str, str, bool]:
    """The tactic to take, the figures in words, and whether they are worth keeping.

    The default stays unless another one's whole interval at batch 1 lies below what the default takes of its own time,
    and no other batch size shows it slower. Nothing is taken where that control shows a machine too noisy to compare,
    and nothing is kept where a quieter machine could choose otherwise.
    """
    control = _of(ratios, control_of(DEFAULT), 1)
    if control is None:
        return DEFAULT, "nothing shows how noisy the machine was", False
    noise = span(control.low, control.high)
    if noise > TOO_NOISY:
        return DEFAULT, f"the machine was too noisy: the default took {control} of its own time at batch 1", False
    faster = {name: ratio for name in names if (ratio := _of(ratios, name, 1)) and _takes(name, ratio, ratios)}
    said = ", ".join(f"{ratio.contender} {ratio}" for ratio in ratios if ratio.batch == 1)
    best = min(faster, key=lambda name: faster[name].ratio, default=DEFAULT)
    return best, f"of the default's time at batch 1: {said}", noise <= _QUIET


def _takes(name: str, ratio: LatencyRatio, ratios: Sequence[LatencyRatio]) -> bool:
    if ratio.high >= 1.0 / noise_factor(ratios, 1, DEFAULT):
        return False
    others = [one for one in ratios if one.contender == name and one.batch != 1]
    return all(one.low <= noise_factor(ratios, one.batch, DEFAULT) for one in others)


def _of(ratios: Sequence[LatencyRatio], contender: str, batch: int) -> LatencyRatio | None:
    wanted = (contender, DEFAULT, batch)
    return next((one for one in ratios if (one.contender, one.base, one.batch) == wanted), None)
