"""What is asked of a load run: the promises, the load, and how much of it may be spent on finding out.

Owns the values and what they imply; `settings` reads them from a file, the command from its options.
"""

import math
import re
from dataclasses import dataclass
from pathlib import Path

from deploy.errors import UsageError
from deploy.serve.client import Protocol
from deploy.slo.decision import Looks, fewest_queries
from deploy.slo.records import Bound
from deploy.slo.stream import StreamQuestion

_DEADLINE_FACTOR = 10.0
_LEAST_STREAM_SECONDS = 30.0
_MOST_QUERIES = 10_000_000
# LoadGen counts nanoseconds in 64 bits: beyond these, arrivals and deadlines would come to anything.
LONGEST_WAIT_SECONDS = 86_400.0
_LOWEST_RATE = 1e-6
# An address of IPv6 has colons of its own, so it stands in brackets.
_ADDRESS = re.compile(r"(?P<host>[^\s:/@\[\]]+|\[[0-9A-Fa-f:.]+(?:%[\w.-]+)?\]):(?P<port>[0-9]{1,5})")
_LAST_PORT = 65_535


@dataclass(frozen=True, slots=True, kw_only=True)
class SloRequest:
    """What is promised, of whom, and how much load may be spent on finding out.

    `seconds` is the longest the load lasts after the warm-up, `min_seconds` the shortest that a pass may rest on.
    `deadline` is how many seconds a client waits for an answer; by default ten times the largest bound, at least 1, or
    30 with `stream`, which asks a language model token by token.
    """

    reference: str
    url: str
    bounds: tuple[Bound, ...]
    rate: float
    protocol: Protocol = "grpc"
    repository: Path | None = None
    samples: Path | None = None
    seconds: float = 60.0
    min_seconds: float = 30.0
    warm_up_seconds: float = 2.0
    max_queries: int | None = None
    deadline: float | None = None
    confidence: float = 0.99
    seed: int = 0
    stream: StreamQuestion | None = None

    def __post_init__(self) -> None:
        if not self.bounds:
            raise UsageError("no bound was given", expected="at least one, such as --p99-ms 15")
        if self.rate <= 0 or self.seconds <= 0 or not 0.5 < self.confidence < 1.0:
            raise UsageError(
                f"a run of {self.seconds:g} s at {self.rate:g} queries/s, with a confidence of {self.confidence:g}",
                expected="a rate and a time above 0, and a confidence between 0.5 and 1",
                fix="correct --rate, --duration or --confidence",
            )
        if self.rate < _LOWEST_RATE:
            raise UsageError(
                f"a rate of {self.rate:g} queries/s", expected=f"at least {_LOWEST_RATE:g}", fix="raise --rate"
            )
        if self.patience > LONGEST_WAIT_SECONDS:
            raise UsageError(
                f"a client would wait {self.patience:g} s for an answer",
                expected=f"at most {LONGEST_WAIT_SECONDS:g} s, which is ten times the largest bound unless it is said",
                fix="lower the bound, or give --timeout-ms",
            )
        if self.rate * self.warm_up_seconds + self._most > _MOST_QUERIES:
            raise UsageError(
                f"a run of {self.seconds:g} s at {self.rate:g} queries/s is of {self._most:,.0f} queries",
                expected=f"at most {_MOST_QUERIES:,}, warm-up included, which a client has memory for",
                fix="lower --rate, --duration, --warm-up or --max-queries",
            )
        if self.stream is None and any(bound.kind in ("ttft", "itl") for bound in self.bounds):
            raise UsageError("a bound on tokens was given", expected="--llm beside it", fix="add --llm")
        if self.stream is not None and self.protocol != "http":
            raise UsageError(
                "tokens are streamed over HTTP", expected="the HTTP port", fix="--url http://HOST:PORT, mostly 8000"
            )

    @property
    def patience(self) -> float:
        """The client's deadline in seconds."""
        return default_deadline(self.bounds, self.stream) if self.deadline is None else self.deadline

    @property
    def total(self) -> int:
        """The most queries that count."""
        return math.ceil(self._most)

    @property
    def _most(self) -> float:
        planned = self.rate * self.seconds
        return planned if self.max_queries is None else min(planned, self.max_queries)

    @property
    def warm_up(self) -> int:
        """The queries that come first and do not count."""
        return math.ceil(self.rate * self.warm_up_seconds)

    def cannot_pass(self) -> tuple[str, ...]:
        """The bounds that this many queries cannot prove even if none breaks them, each with how many it takes."""
        error = Looks(self.total, 1.0 - self.confidence).share(self.total)
        needed = {bound: fewest_queries(1.0 - bound.q, error) for bound in self.bounds}
        return tuple(
            f"{bound.wanted} takes at least {count} queries to pass; {self.total} are allowed"
            for bound, count in needed.items()
            if count > self.total
        )


def default_deadline(bounds: tuple[Bound, ...], stream: StreamQuestion | None = None) -> float:
    """How many seconds a client waits for an answer where nobody says: ten times the largest bound, or more."""
    tokens = stream.tokens if stream else 0
    times = {"latency": 1, "ttft": 1, "itl": tokens}
    largest = max((bound.limit * times.get(bound.kind, 0) for bound in bounds), default=0.0)
    return max(_LEAST_STREAM_SECONDS if stream else 1.0, _DEADLINE_FACTOR * largest / 1000)


def parse_url(url: str, protocol: Protocol | None) -> tuple[str, Protocol]:
    """`host:port` and the protocol that `[grpc://|http://]HOST:PORT` means; gRPC where nothing says otherwise.

    Raises UsageError if it names no port, another scheme, or a scheme that contradicts `protocol`.
    """
    scheme, _, address = url.rpartition("://")
    found = _ADDRESS.fullmatch(address.rstrip("/"))
    if scheme not in ("", "grpc", "http") or not found or not 0 < int(found["port"]) <= _LAST_PORT:
        raise UsageError(
            f"--url is {url!r}",
            expected="HOST:PORT, such as localhost:8001 or [::1]:8001, without encryption",
        )
    if scheme and protocol and scheme != protocol:
        raise UsageError(f"--url is {url!r} and --protocol is {protocol}", expected="one of the two")
    chosen: Protocol = "http" if "http" in (scheme, protocol) else "grpc"
    return found[0], chosen
