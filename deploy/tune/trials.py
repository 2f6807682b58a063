"""One trial after the other, until the number, the time or the settings are used up.

Owns what becomes of a trial: measured, ended early, or failed, and a server that died with it. Called by run and the
benchmark.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass, field

from deploy.progress import Progress
from deploy.slo.tune_records import Setting, TuneTrial
from deploy.tune.bed import ServerGone, SettingRefused, TestBed
from deploy.tune.hopeless import all_hopeless, deciding_setting, why_none_can
from deploy.tune.search import Search
from deploy.tune.value import Goal, Value, measure

# Poisson arrivals at the rate of one patient client are already close to what one instance can do.
_START_OF_PACE = 0.7
# Where every setting so far was hopeless the next one is asked at such shares of that only, the last the lowest rate.
_HOPELESS_START, _LOWEST = 1 / 16, 1 / 64
# A rate at which a probe has fewer queries than this is not worth its time; the first is to have a few more.
_FEWEST_QUERIES, _FEW_QUERIES = 2, 6


@dataclass(frozen=True, slots=True, kw_only=True)
class Budget:
    """How many trials in all, those of an earlier go included, and for how many seconds; None for no limit."""

    trials: int
    seconds: float | None = None
    clock: Callable[[], float] = field(default=time.monotonic)


@dataclass(slots=True)
class Trials:
    """Runs a search on a test bed. `start` is the first rate, found with the first setting that answers.

    `probe_seconds` is the length of a probe, below whose reach no rate is tried; 0 for no such limit.
    """

    search: Search
    bed: TestBed
    limit_ms: float
    start: float | None = None
    probe_seconds: float = 0.0

    def run(self, budget: Budget, progress: Progress) -> None:
        """Try settings until the budget is spent, or plainly none can keep the bound.

        Each is kept at once; whoever interrupts loses the running one.
        """
        until = None if budget.seconds is None else budget.clock() + budget.seconds
        begun = budget.clock()
        while len(self.search.trials) < budget.trials and not self.search.exhausted:
            if until is not None and budget.clock() >= until:
                progress.note(f"the time is used up after {len(self.search.trials)} of {budget.trials} trials")
                return
            if why := why_none_can(self.search.trials, self.search.plan.knobs):
                progress.note(f"{why}; the search ends after {len(self.search.trials)} of {budget.trials} trials")
                return
            asked = self.search.ask(self._deciding())
            name = f"trial {asked.number + 1}/{budget.trials}: {asked.setting}"
            with progress.stage(name):
                trial = self.attempt(asked.number, asked.setting)
                self.search.tell(asked, trial)
            progress.note(f"{name}: {_outcome(trial)}; {self._standing()}, {budget.clock() - begun:.0f} s")

    def attempt(self, number: int, setting: Setting) -> TuneTrial:
        """What became of one setting. A server that died is started again, and the setting counts as failed."""
        begun = time.monotonic()
        best = best_of(self.search.trials)
        try:
            value = self._value(setting, best.rate if best else None)
        except (SettingRefused, ServerGone) as error:
            self.bed.revive()
            return TuneTrial(
                number=number,
                setting=setting,
                status="failed",
                rate=None,
                score=0.0,
                reason=error.found,
                seconds=time.monotonic() - begun,
            )
        return TuneTrial(
            number=number,
            setting=setting,
            status="ended early" if value.ended_early else "measured",
            rate=value.rate,
            score=value.score,
            reason=value.probes[-1].reason if value.probes else "",
            client_limited=value.client_limited,
            probes=tuple(value.probes),
            seconds=time.monotonic() - begun,
        )

    def _value(self, setting: Setting, best: float | None) -> Value:
        self.bed.load(setting)
        if self.start is None:
            self.start = best or _START_OF_PACE * self.bed.pace()
        fewest, few = (
            count / self.probe_seconds if self.probe_seconds else 0.0 for count in (_FEWEST_QUERIES, _FEW_QUERIES)
        )
        start, lowest = self.start, max(self.start * _LOWEST, fewest)
        if all_hopeless(self.search.trials):
            start = min(start, max(start * _HOPELESS_START, few))
        return measure(self.bed.probe, Goal(start=start, best=best, limit_ms=self.limit_ms, lowest=lowest))

    def _deciding(self) -> Setting | None:
        """What would show soonest that no setting can keep the bound, once the first settings were tried."""
        tried = {trial.setting for trial in self.search.trials}
        if not tried.issuperset(self.search.plan.first):
            return None
        return deciding_setting(self.search.trials, self.search.plan.knobs)

    def _standing(self) -> str:
        best = best_of(self.search.trials)
        return f"best {best.rate:.4g}/s by trial {best.number + 1}" if best else "none keeps the bound yet"


def best_of(trials: tuple[TuneTrial, ...]) -> TuneTrial | None:
    """The trial that sustained the highest rate, the earlier of two equals; None where none kept the bound."""
    rated = [trial for trial in trials if trial.rate]
    return max(rated, key=lambda trial: (trial.rate, -trial.number), default=None)


def _outcome(trial: TuneTrial) -> str:
    if trial.status == "failed":
        return f"failed: {trial.reason}"
    found = "no rate kept" if trial.rate is None else f"{trial.rate:.4g}/s"
    found += ", ended early" if trial.status == "ended early" else ""
    return f"{found} (limited by the client)" if trial.client_limited else found
