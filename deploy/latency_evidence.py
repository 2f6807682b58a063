"""What was measured while packaging or later: latency of each format and precision, with its noise.

Owns those records; `validate` fills them, `choose` decides by them, `report` prints them.
"""

from pydantic import Field

from deploy.evidence import Judgement
from deploy.records import Record


def short(milliseconds: float) -> str:
    """Three significant digits, never an exponent: how every latency is written."""
    return f"{milliseconds:#.3g}" if milliseconds < 99.95 else f"{milliseconds:.0f}"


class Quantile(Record):
    """A percentile in milliseconds with its distribution-free confidence interval (order statistics)."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{short(self.value)} [{short(self.low)}, {short(self.high)}]"


_AGAIN = " (A/A)"


def control_of(contender: str) -> str:
    """What the latency tables call a contender that runs once more, in a second process: the control of its ratios."""
    return contender + _AGAIN


def is_control(contender: str) -> bool:
    """Whether the name is that of a control."""
    return contender.endswith(_AGAIN)


# What the latency tables call the checkpoint run eagerly, and its control.
EAGER = "eager"
CONTROL = control_of(EAGER)


class LatencyCell(Record):
    """One contender at one batch size: `n` timed calls in `rounds` interleaved blocks.

    A quantile is None where n does not give it an interval. `distribution` holds the latency at 0, 5, ... 100 % of the
    calls, in milliseconds; it is empty in versions that were packaged before it was recorded.
    """

    contender: str
    batch: int
    n: int
    rounds: int = 0
    p50: Quantile | None
    p90: Quantile | None
    p95: Quantile | None
    p99: Quantile | None
    distribution: tuple[float, ...] = ()


class LatencyRatio(Record):
    """p50 of a contender over p50 of `base`, paired within rounds, with its confidence interval; below 1 is faster."""

    contender: str
    base: str
    batch: int
    ratio: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.ratio:.2f}x [{self.low:.2f}, {self.high:.2f}]"


class ContenderStart(Record):
    """What a contender costs before steady state, and the memory of its process in bytes.

    `peak_memory` is the peak resident set over the whole run; `base_memory` is the part that was there before the
    model was loaded: the interpreter and the libraries that all children share.
    """

    contender: str
    load_seconds: float
    first_call_ms: float
    peak_memory: int
    base_memory: int = 0


class LostContender(Record):
    """Who fell out of a race: at what (`loading`, `batch 8`), and why. The others went on without it."""

    contender: str
    doing: str
    reason: str

    def __str__(self) -> str:
        return f"{self.contender} was lost at {self.doing}: {self.reason}"


class CarriedLatency(Record):
    """Where figures come from that were not measured in this run: the same compiled code, with other weights.

    `measured` is when, in UTC; `name` and `checkpoint` (its digest) are what ran; `key` is the digest of all that was
    the same: code, inputs, versions, machine.
    """

    measured: str
    name: str
    checkpoint: str
    key: str

    def __str__(self) -> str:
        return (
            f"carried over, not measured in this run: measured {self.measured} with the weights of {self.name} "
            f"(sha256 {self.checkpoint[:12]}), the same compiled code on this machine"
        )


class LatencyEvidence(Record):
    """Artifacts and eager measured interleaved in one run on one device.

    The control is eager against itself (A/A): its ratio shows what this machine's noise alone produces. What a
    contender in `lost` measured before it fell out is kept; it wins nothing. With `carried` that run was not this one.
    """

    judgement: Judgement
    device: str
    threads: int
    versions: dict[str, str] = Field(default_factory=dict)
    seed: int = 0
    method: str
    confidence: float
    cells: tuple[LatencyCell, ...]
    ratios: tuple[LatencyRatio, ...]
    starts: tuple[ContenderStart, ...]
    winner: str | None
    winner_rule: str
    slo_p99_ms: float | None = None
    lost: tuple[LostContender, ...] = ()
    carried: CarriedLatency | None = None


class PrecisionTrial(Record):
    """One format in one precision: its parity, its bytes, and its time in multiples of fp32's at batch 1.

    `ratio` is None where it was not raced: it was lost, failed, or had no rival. `scheme` is how it came to int8.
    """

    format: str
    precision: str
    judgement: Judgement
    scheme: str = ""
    ratio: LatencyRatio | None = None
    size: int | None = None


class PrecisionEvidence(Record):
    """Every precision that was tried for a version, and by format the one that was taken.

    `left_out` says why others were not tried.
    """

    chosen: dict[str, str]
    trials: tuple[PrecisionTrial, ...]
    left_out: dict[str, str] = Field(default_factory=dict)


class BenchEvidence(Record):
    """A published version measured again, against eager where its checkpoint was at hand, or against another version.

    `version` and `compared` are `name:N`, each with the digest of its manifest. `checkpoint` is the digest of the file
    that ran eagerly, None where eager took no part. The verdict is that of `latency`: with `max_slowdown`, whether
    the version takes at most so many times the time of `compared`.
    """

    version: str
    digest: str
    compared: str | None
    compared_digest: str | None
    checkpoint: str | None
    max_slowdown: float | None
    created: str
    command: tuple[str, ...]
    latency: LatencyEvidence
