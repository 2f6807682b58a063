"""A load run as seen from outside its child: started, read while it goes on, ended whenever enough is known.

Owns the child and the files it writes; judges nothing. Called by run.
"""

import json
import math
import threading
import time
from bisect import bisect_right
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np

from deploy.errors import DeployError
from deploy.processes import Limits, Worker
from deploy.slo.generator import NEWS, SENT, SENT_RECORD, TRACE, LoadPlan, generate
from deploy.slo.records import Bound
from deploy.slo.stream import STREAMS, Streamed, parse_streams

_SAMPLE = b'{"name":"Sample"'
_BEGIN = b'"ph":"b"'
# Standard deviations of a Poisson number: so few arrivals come by chance once in a billion runs.
_FEWER = 6.0
# Longer than the news of a query's end is on its way.
NEWS_SECONDS = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Observed:
    """Queries in the order of their schedule, the first so many of which all are known. Seconds throughout.

    `scheduled` counts from the first arrival; `latency` and `lag` count from the scheduled time. `stalls` are the
    stretches, on the same clock, in which the client did not run. `latency` of a failed query is at least the deadline.
    Where answers came token by token, `first` is the first token's time from the schedule, `gap` the mean time per
    token after it, and `tokens` how many came; all are 0 for a failed query, and empty arrays elsewhere.
    """

    scheduled: np.ndarray
    latency: np.ndarray
    lag: np.ndarray
    failed: np.ndarray
    stalls: np.ndarray
    first: np.ndarray = field(default_factory=lambda: np.zeros(0))
    gap: np.ndarray = field(default_factory=lambda: np.zeros(0))
    tokens: np.ndarray = field(default_factory=lambda: np.zeros(0))

    def __len__(self) -> int:
        return len(self.scheduled)

    def between(self, first: int, last: int) -> "Observed":
        """The queries `first` up to, not including, `last`."""
        return self.where(slice(first, last))

    def where(self, part: slice | np.ndarray) -> "Observed":
        """The queries that a slice or a mask chooses."""
        streamed = {name: values[part] for name in ("first", "gap", "tokens") if len(values := getattr(self, name))}
        return Observed(
            scheduled=self.scheduled[part],
            latency=self.latency[part],
            lag=self.lag[part],
            failed=self.failed[part],
            stalls=self.stalls,
            **streamed,
        )

    def measured(self, bound: Bound) -> np.ndarray:
        """The time that a bound is about, of each query."""
        return {"ttft": self.first, "itl": self.gap}.get(bound.kind, self.latency)

    def without_client(self) -> np.ndarray:
        """The latencies less what the client itself added: the late sending, and its stalls while it waited."""
        begin, end = self.scheduled + self.lag, self.scheduled + self.latency
        return np.asarray(self.latency - self.lag - _overlaps(begin, end, self.stalls))


class LoadRun:
    """A running load. Use it as a context manager: leaving it ends the child, whatever it is doing.

    `now` is the clock by which queries are sent, in seconds.
    """

    def __init__(self, plan: LoadPlan, folder: Path, *, now: Callable[[], float] = time.monotonic) -> None:
        self.now = now
        self._folder = folder
        self._plan = plan
        self._error: DeployError | None = None
        self._done = threading.Event()
        self._positions = {TRACE: 0, SENT: 0, NEWS: 0, STREAMS: 0}
        self._streams: dict[int, Streamed] = {}
        self._early: dict[int, tuple[float, float, float]] = {}
        self._scheduled: list[float] = []
        self._latency: list[float] = []
        self._sent: list[float] = []
        self._issued: list[float] = []
        self._failed: dict[int, str] = {}
        self._by: dict[int, str] = {}
        self._first_version = ""
        self._stalls: list[tuple[float, float]] = []
        self.cpu_seconds = 0.0

    def __enter__(self) -> Self:
        self._worker = Worker("the load generator", log=self._folder / "generator.log", limits=Limits())
        self._thread = threading.Thread(target=self._generate, name="load", daemon=True)
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._worker.kill()
        self._thread.join()
        self._worker.close()

    @property
    def ended(self) -> bool:
        """Whether the child has come to its end. Raises what ended it before its time."""
        if self._done.is_set() and self._error is not None:
            raise self._error
        return self._done.is_set()

    @property
    def known(self) -> int:
        """How many queries, from the first on, have all come to an end."""
        return min(len(self._latency), len(self._sent))

    @property
    def sent(self) -> int:
        """How many queries were sent so far."""
        return len(self._sent)

    def keeps_pace(self) -> bool:
        """Whether so many queries were sent by now as random arrivals may bring, and not plainly fewer."""
        if not self._sent:
            return False
        expected = self._plan.rate * (self.now() - self._sent[0])
        return len(self._sent) >= expected - _FEWER * math.sqrt(expected)

    @property
    def complete(self) -> bool:
        """Whether the end of every query of the plan is known."""
        return self.known >= self._plan.queries

    def known_of(self, closing: float) -> int:
        """How many queries, from the first on, have ended of those that were sent by `closing`, in seconds of `now`."""
        return min(self.known, bisect_right(self._sent, closing))

    @property
    def failures(self) -> dict[int, str]:
        """What was said of the failed queries, by number."""
        return self._failed

    def read(self, *, to_the_end: bool = False) -> None:
        """Take in what the child has written since the last call."""
        new = self._new_bytes(SENT)
        whole = len(new) - len(new) % SENT_RECORD.size
        self._positions[SENT] -= len(new) - whole
        self._sent += [sent for _, sent in SENT_RECORD.iter_unpack(new[:whole])]
        for line in self._lines(TRACE, to_the_end=to_the_end):
            if line.startswith(_SAMPLE) and _BEGIN in line:
                self._take_sample(json.loads(line.rstrip(b",")))
        # Last: of every query that is known to have ended the record is there by now.
        for line in self._lines(NEWS, to_the_end=to_the_end):
            self._take_news(json.loads(line))
        if self._plan.stream is not None:
            found = parse_streams(self._lines(STREAMS, to_the_end=to_the_end))
            self._streams.update((one.number, one) for one in found)

    def observed(self) -> Observed:
        """Everything that is known so far."""
        count = self.known
        scheduled = np.array(self._scheduled[:count])
        origin = scheduled[0] if count else 0.0
        issued, sent = np.array(self._issued[:count]), np.array(self._sent[:count])
        # Two clocks of one machine: at best a query was handed over the moment LoadGen issued it.
        offset = float(np.min(sent - issued)) if count else 0.0
        failed = np.zeros(count, dtype=bool)
        failed[[number for number in self._failed if number < count]] = True
        stalls = np.array(self._stalls).reshape(-1, 2) - offset - origin
        lag = sent - scheduled - offset
        return Observed(
            scheduled=scheduled - origin,
            latency=np.array(self._latency[:count]),
            lag=lag,
            failed=failed,
            stalls=stalls,
            **self._streamed(count, lag),
        )

    def versions(self, first: int, last: int) -> dict[str, int]:
        """How many answers each version gave to queries `first` up to, not including, `last`; empty if none says so."""
        if not self._first_version:
            return {}
        numbers = range(first, min(last, self.known))
        told = (self._by.get(number, "" if number in self._failed else self._first_version) for number in numbers)
        return dict(Counter(version for version in told if version).most_common())

    def gaps(self, first: int, last: int) -> np.ndarray:
        """The time of each single token but the first, in seconds of queries `first` up to, not including, `last`."""
        numbers = range(first, last)
        return np.array([gap for number in numbers if (one := self._streams.get(number)) for gap in one.gaps])

    def _streamed(self, count: int, lag: np.ndarray) -> dict[str, np.ndarray]:
        if self._plan.stream is None:
            return {}
        found = [self._streams.get(number) for number in range(count)]
        return {
            "first": np.array([one.first + late if one else 0.0 for one, late in zip(found, lag, strict=True)]),
            "gap": np.array([one.gap if one else 0.0 for one in found]),
            "tokens": np.array([one.tokens if one else 0 for one in found], dtype=np.int64),
        }

    def _generate(self) -> None:
        try:
            self._worker.run(generate, self._plan, self._folder)
        except DeployError as error:
            self._error = error
        finally:
            self._done.set()

    def _new_bytes(self, name: str) -> bytes:
        with suppress(FileNotFoundError), (self._folder / name).open("rb") as stream:
            stream.seek(self._positions[name])
            found = stream.read()
            self._positions[name] += len(found)
            return found
        return b""

    def _lines(self, name: str, *, to_the_end: bool) -> list[bytes]:
        """The lines that are whole; the rest is left for the next call, unless there is none."""
        found = self._new_bytes(name)
        *whole, rest = found.split(b"\n")
        if rest and to_the_end:
            return [*whole, rest]
        self._positions[name] -= len(rest)
        return [line for line in whole if line]

    def _take_news(self, news: dict[str, Any]) -> None:
        if "failed" in news:
            self._failed[news["failed"]] = news["why"]
            if news["by"]:
                self._by[news["failed"]] = news["by"]
        elif "answered" in news:
            self._first_version = self._first_version or news["by"]
            self._by[news["answered"]] = news["by"]
        elif "stalled" in news:
            begin, end = news["stalled"]
            self._stalls.append((begin, end))
        else:
            self.cpu_seconds = news["cpu"]

    def _take_sample(self, entry: dict[str, Any]) -> None:
        """One query of LoadGen's trace: its scheduled time in microseconds, and what came after it in nanoseconds."""
        facts = entry["args"]
        scheduled = entry["ts"] / 1e6
        self._early[facts["query_seq"]] = (
            scheduled,
            scheduled + facts["issue_start_ns"] / 1e9,
            facts["complete_ns"] / 1e9,
        )
        # Only a run of queries without a gap is judged: those that are still under way are the slow ones.
        while (known := self._early.pop(len(self._latency), None)) is not None:
            self._scheduled.append(known[0])
            self._issued.append(known[1])
            self._latency.append(known[2])


def _overlaps(begin: np.ndarray, end: np.ndarray, stretches: np.ndarray) -> np.ndarray:
    """How much of each [begin, end] lies in the stretches, which are disjoint and in order."""
    if not len(stretches):
        return np.zeros_like(begin)
    edges = stretches.ravel()
    # The stretch time that has passed by each edge: flat outside, rising inside.
    passed = np.concatenate([[0.0], np.cumsum(np.diff(edges) * (np.arange(len(edges) - 1) % 2 == 0))])
    return np.asarray(np.interp(end, edges, passed) - np.interp(begin, edges, passed))
