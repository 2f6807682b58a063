"""Waiting until a server has answered what an earlier load left in its queue.

Owns when it is at rest. A server that was asked for more than it can do goes on with it when nobody waits any longer,
and the next load would be blamed for that. Called by run, for a search that loads one server again and again.
"""

import threading
import time
from dataclasses import replace
from pathlib import Path

from deploy.scratch import scratch_folder
from deploy.slo.generator import LoadPlan, open_wire
from deploy.slo.wire import Ended

LONGEST_SECONDS = 60.0
# An answer that is no quicker than this share of the one before it did not wait for others: it takes that long.
_NO_QUICKER = 0.7


def wait_for_rest(plan: LoadPlan, *, longest: float = LONGEST_SECONDS) -> float:
    """Ask one query at a time until nothing stands before it, and give back the seconds that took.

    That is so once an answer comes within the bound, or no quicker than the one before it. Ends at an answer that is
    none, or after `longest` seconds: the load that follows finds out why.
    """
    began, before = time.monotonic(), float("inf")
    with scratch_folder("rest") as folder:
        while (left := began + longest - time.monotonic()) > 0:
            taken = _ask(replace(plan, deadline=left), folder)
            if taken is None or taken <= plan.target_seconds or taken >= _NO_QUICKER * before:
                break
            before = taken
    return time.monotonic() - began


def _ask(plan: LoadPlan, folder: Path) -> float | None:
    """The seconds that one query takes; None where it gets no answer."""
    told: list[str | None] = []
    over = threading.Event()

    def done(ended: Ended) -> None:
        told.append(ended.problem)
        over.set()

    wire = open_wire(plan, folder)
    try:
        began = time.monotonic()
        wire.send(0, done)
        over.wait(plan.deadline + 1.0)
        return time.monotonic() - began if told == [None] else None
    finally:
        wire.close()
