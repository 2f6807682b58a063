"""How far a proof is, for whoever waits for it.

Owns the count of rows and how it is said. Run tells it what was asked; the steps read it, from another thread.
"""

import time
from dataclasses import dataclass, field

from deploy.validate.baseline import Question
from deploy.validate.cases import calls_of

IN_FLOAT64 = 2
"""What a row in float64 counts for: it takes a processor about twice as long as one in float32."""
_EAGERLY = 3  # times that each row is asked eagerly
_MINUTE = 60.0


@dataclass(slots=True, kw_only=True)
class Pace:
    """The rows that a proof of so many artifacts asks, and those that it has asked."""

    artifacts: int = 0
    rows: int = 0
    done: int = 0
    _since: float = field(default_factory=time.monotonic)

    def begin(self, question: Question) -> None:
        """The clock starts, now that it is known what will be asked."""
        each = sum(pool.rows for pool in question.pools)
        answers = sum(call.size * (2 if call.repeat else 1) for call in calls_of(question.cases))
        self.rows, self.done = each * (IN_FLOAT64 + _EAGERLY) + self.artifacts * answers, 0
        self._since = time.monotonic()

    def asked(self, rows: int) -> None:
        """So many rows were answered."""
        self.done += rows

    def said(self, seconds: float | None = None) -> str:
        """`6 min so far, 40 % done, some 9 min more at this pace`, less what cannot be told.

        `seconds` are those since the beginning, by default the clock's.
        """
        passed = time.monotonic() - self._since if seconds is None else seconds
        text = f"{passed / _MINUTE:.0f} min so far"
        if not 0 < self.done < self.rows:
            return text
        left = passed * (self.rows - self.done) / self.done
        more = f"some {left / _MINUTE:.0f} min" if left >= _MINUTE else "less than a minute"
        return f"{text}, {100 * self.done // self.rows} % done, {more} more at this pace"
