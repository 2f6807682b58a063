"""When an error budget burns fast enough to wake somebody: windows, factors and what each costs.

Owns the table of multi-window, multi-burn-rate alerting, as in chapter 5 of Google's Site Reliability Workbook
(sre.google/workbook/alerting-on-slos), and durations as PromQL writes them. Called by slo_queries and rules.
"""

from dataclasses import dataclass, replace
from typing import Literal

from deploy.errors import UsageError

Severity = Literal["page", "ticket"]

_UNITS = (("d", 86_400_000), ("h", 3_600_000), ("m", 60_000), ("s", 1000), ("ms", 1))


@dataclass(frozen=True, slots=True, kw_only=True)
class Burn:
    """An alarm: both windows burn at `factor` times the rate that would just use up the budget. Times are seconds.

    The long window says that it matters, the short one that it still goes on; `hold` is how long both must stay so.
    """

    factor: float
    long: float
    short: float
    hold: float
    severity: Severity

    def scaled(self, scale: float) -> "Burn":
        """The same alarm on windows `scale` times as long: a test cannot wait for days."""
        return replace(self, long=self.long * scale, short=self.short * scale, hold=self.hold * scale)

    def can_fire(self, budget: float) -> bool:
        """Whether there can be so many bad requests: a budget of half of them never burns three times as fast."""
        return self.factor * budget < 1.0


BURNS = (
    Burn(factor=14.4, long=3600, short=300, hold=120, severity="page"),
    Burn(factor=6.0, long=21_600, short=1800, hold=900, severity="page"),
    Burn(factor=1.0, long=259_200, short=21_600, hold=3600, severity="ticket"),
)
"""2 % of a 30-day budget in an hour, 5 % in six hours, 10 % in three days."""


def duration(seconds: float) -> str:
    """Seconds as PromQL writes them: `1h30m`, `250ms`. Raises UsageError below a millisecond."""
    left = round(seconds * 1000)
    if left < 1:
        raise UsageError(f"{seconds:g} s is no duration for PromQL", expected="a millisecond or more")
    parts = []
    for unit, size in _UNITS:
        count, left = divmod(left, size)
        if count:
            parts.append(f"{count}{unit}")
    return "".join(parts)
