"""Whether the winner is better than the version's own configuration beyond noise.

Owns the interleaved comparison at equal rates. The best of many noisy trials is lucky as well as good, so nothing is
published on its word alone. Called by run.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

from deploy.slo.records import Bound
from deploy.slo.tune_records import Confirmation, ConfirmRound, Probe, Setting
from deploy.tune.bed import TestBed
from deploy.tune.value import RESOLUTION

_CHANCE = 0.05
# How often the winner's claim is taken down by one step of the resolution before it is given up.
_CLAIMS = 3
# A claim that breaks the bound in this many first rounds is not worth the others.
_ROUNDS_TO_DOUBT = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class Duel:
    """Who is compared with whom, and from which rate on: `own_rate` is what the version's own setting sustained."""

    own: Setting
    new: Setting
    own_rate: float | None
    new_rate: float
    bound: Bound
    rounds: int


def confirm(bed: TestBed, duel: Duel) -> Confirmation:
    """Better if, at one rate, the winner keeps the bound over all rounds together and the own setting has more over it.

    Begins at the winner's rate and goes down 5 % at a time where it does not keep the bound. "More" is an exact
    permutation test over rounds, since the queries of one round resemble each other. Raises what the bed raises.
    """
    rate, found = duel.new_rate, tuple[ConfirmRound, ...]()
    for _ in range(_CLAIMS):
        if duel.own_rate is not None and rate <= duel.own_rate:
            break
        rounds = _compare(bed, duel, rate)
        found += rounds
        if len(rounds) == duel.rounds and _share([one.new for one in rounds]) <= 1.0 - duel.bound.q:
            return _judged(rounds, found, rate)
        rate /= RESOLUTION
    reason = f"its {duel.new_rate:.4g}/s did not hold when it was measured again"
    return Confirmation(better=False, reason=reason, rate=None, chance=None, rounds=found)


def chance_of(own: Sequence[float], new: Sequence[float]) -> float:
    """How likely chance alone gives `new` so much less than `own`: the exact one-sided permutation test of the sums."""
    together = [*own, *new]
    seen = sum(new)
    sums = [sum(together[place] for place in chosen) for chosen in combinations(range(len(together)), len(new))]
    return sum(one <= seen + 1e-12 for one in sums) / len(sums)


def _compare(bed: TestBed, duel: Duel, rate: float) -> tuple[ConfirmRound, ...]:
    """Rounds at one rate, each side first in turn; fewer than asked for where the winner plainly does not keep it."""
    rounds: list[ConfirmRound] = []
    for number in range(duel.rounds):
        own_first = number % 2 == 0
        probes = {}
        for side in ("own", "new") if own_first else ("new", "own"):
            bed.load(duel.own if side == "own" else duel.new)
            probes[side] = bed.probe(rate)
        rounds.append(ConfirmRound(rate=rate, own=probes["own"], new=probes["new"], own_first=own_first))
        if len(rounds) == _ROUNDS_TO_DOUBT and not any(one.new.kept for one in rounds):
            break
    return tuple(rounds)


def _judged(rounds: tuple[ConfirmRound, ...], found: tuple[ConfirmRound, ...], rate: float) -> Confirmation:
    own, new = [one.own for one in rounds], [one.new for one in rounds]
    told = [one for one in rounds if one.own.kept is not None and one.new.kept is not None]
    chance = chance_of([_share([one.own]) for one in told], [_share([one.new]) for one in told]) if told else 1.0
    better = chance <= _CHANCE
    words = f"at {rate:.4g}/s {_percent(new)} of the queries were over the bound, and {_percent(own)} with its own"
    if not better and told:
        words += f"; luck alone divides {len(told)} rounds like that with a chance of {chance:.2g}"
    if not better and (mute := len(rounds) - len(told)):
        words += f"; in {mute} of {len(rounds)} rounds the client was the limit, so they tell nothing"
    return Confirmation(better=better, reason=words, rate=rate, chance=chance, rounds=found)


def _share(probes: Sequence[Probe]) -> float:
    """The share of queries over the bound in these probes together; all of them where nothing was counted."""
    queries = sum(probe.queries for probe in probes)
    return sum(probe.over for probe in probes) / queries if queries else 1.0


def _percent(probes: Sequence[Probe]) -> str:
    return f"{_share(probes) * 100:.2g} %"
