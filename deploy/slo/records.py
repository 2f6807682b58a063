"""What was learnt of a served version under load: each bound's verdict, where the time went, who was to blame.

Owns the records that are kept as attestations; `run` fills them, `report` prints them. All times are milliseconds
unless a name says otherwise.
"""

from collections.abc import Sequence
from typing import Literal

from pydantic import Field

from deploy.errors import ExitCode
from deploy.evidence import Judgement, Verdict
from deploy.records import Record
from deploy.serve.client import Protocol


class Bound(Record):
    """What is promised: `limit` is milliseconds for a percentile `q` of latency, a share of queries for errors.

    `q` is the share of queries that must lie within `limit`, 0.99 for p99. For the error rate it is 1 - limit. `ttft`
    is the time to the first token, `itl` a query's mean time per token after it.
    """

    kind: Literal["latency", "errors", "ttft", "itl"]
    q: float = Field(gt=0.0, lt=1.0)
    limit: float = Field(gt=0.0)

    @property
    def name(self) -> str:
        """`p99`, `first token p99`, `inter-token p99` or `error rate`."""
        what = {"ttft": "first token ", "itl": "inter-token "}.get(self.kind, "")
        return "error rate" if self.kind == "errors" else f"{what}p{self.q * 100:g}"

    @property
    def wanted(self) -> str:
        """The promise in words: `p99 <= 15 ms`."""
        amount = f"{self.limit:.3g}" if self.kind == "errors" else f"{self.limit:g} ms"
        return f"{self.name} <= {amount}"


class BoundResult(Record):
    """What became of one bound: `over` of `n` queries broke it, `allowed` is the share that may.

    `low` and `high` enclose the true share at the confidence of the decision. `design_effect` is the factor by which
    slow queries that come in clusters count for fewer than their number. `more_queries` would decide if the share
    stays as it was found; None where the verdict is decided, or no number of queries that anybody has would do.
    """

    bound: Bound
    judgement: Judgement
    n: int
    over: int
    allowed: float
    low: float
    high: float
    design_effect: float = 1.0
    more_queries: int | None = None


class LatencyQuantile(Record):
    """A percentile of the latency from the scheduled time; its interval is None where none exists at that n.

    The interval has the confidence of the run, and takes queries of one second to resemble each other.
    """

    q: float
    value: float
    low: float | None
    high: float | None


class Moment(Record):
    """One stretch of the run: when it began (seconds after the warm-up), how many queries, how slow."""

    second: float
    queries: int
    p50: float
    p99: float
    maximum: float
    failed: int


class ClientSide(Record):
    """Whether the load was what was asked for. Lag is how long after its scheduled time a query was really sent.

    `stalled_seconds` is the time in which the client itself did not run, seen by a clock of its own.
    """

    protocol: Protocol
    offered_rate: float
    sent_rate: float
    lag_p50: float
    lag_p99: float
    lag_max: float
    stalled_seconds: float
    cpu_seconds: float
    kept_schedule: bool
    remark: str


class ServerSide(Record):
    """The server's own counters over the run, per request in milliseconds; `batch_reached` is rows per execution.

    `replaced` are the version that answered at the beginning and the one at the end, None where it was one.
    """

    requests: int
    failures: int
    executions: int
    queue: float
    compute_input: float
    compute_infer: float
    compute_output: float
    batch_reached: float
    batches: dict[int, int] = Field(default_factory=dict)
    restarted: bool = False
    replaced: tuple[str, str] | None = None


class StreamSide(Record):
    """What came token by token. `itl` is of each query's mean time per token, `gaps` of every single one.

    `gaps` holds p50, p90, p99 and the maximum, and has no interval: the gaps of one answer resemble each other.
    """

    prompts: int
    tokens_per_query: int
    tokens: int
    tokens_per_second: float
    ttft: tuple[LatencyQuantile, ...]
    itl: tuple[LatencyQuantile, ...]
    gaps: dict[str, float]


class SloEvidence(Record):
    """One load run and its verdict. `invalid` says why the run proves nothing, None where it does.

    `distribution` holds the latency at 0, 1, ... 100 % of the queries. `errors` counts failed queries by what was
    said, `answered` the answers of each version, where they say by which they are. `version_digest` is None where no
    repository was at hand.
    """

    schema_version: Literal[1] = 1
    model: str
    version: int | None
    version_digest: str | None
    url: str
    rate: float
    seed: int
    samples: str
    rows_per_query: int = 1
    seconds_asked: float
    seconds_taken: float
    started: str
    judgement: Judgement
    invalid: str | None = None
    bounds: tuple[BoundResult, ...]
    queries: int
    warm_up_queries: int
    looks: int
    confidence: float
    deadline: float
    quantiles: tuple[LatencyQuantile, ...]
    distribution: tuple[float, ...]
    timeline: tuple[Moment, ...]
    errors: dict[str, int]
    answered: dict[str, int] = Field(default_factory=dict)
    client: ClientSide
    server: ServerSide | None
    method: str
    load_generator: str
    remarks: tuple[str, ...] = ()
    stream: StreamSide | None = None

    @property
    def exit_code(self) -> ExitCode:
        """0 for a pass, 1 for fail and undecided, 4 for a run that proves nothing."""
        if self.invalid is not None:
            return ExitCode.UNFINISHED
        return ExitCode.OK if self.judgement.verdict is Verdict.PASS else ExitCode.NO


class RateStep(Record):
    """One rate that was tried, and the versions that answered; by an `invalid` run nothing is said of the server."""

    rate: float
    verdict: Verdict
    reason: str
    queries: int
    p99: float | None
    invalid: bool = False
    answered: tuple[str, ...] = ()


def versions_of(steps: Sequence[RateStep]) -> list[str]:
    """The versions that answered, in the order in which they came; empty where no answer says its version."""
    return list(dict.fromkeys(version for step in steps for version in step.answered))


class RateEvidence(Record):
    """The search for the highest rate that meets the bounds; `highest` is None where none did.

    `next_rate` is the lowest rate that was tried and did not pass. `final` is the confirming run at `highest`.
    """

    schema_version: Literal[1] = 1
    model: str
    version: int | None
    judgement: Judgement
    highest: float | None
    next_rate: float | None
    version_digest: str | None = None
    steps: tuple[RateStep, ...]
    final: SloEvidence | None

    @property
    def exit_code(self) -> ExitCode:
        """0 where some rate passed, 4 where every run was invalid or they were of several versions, else 1."""
        if len(versions_of(self.steps)) > 1 or all(step.invalid for step in self.steps):
            return ExitCode.UNFINISHED
        return ExitCode.OK if self.judgement.verdict is Verdict.PASS else ExitCode.NO
