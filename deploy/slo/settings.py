"""What may be said of an SLO, on the command line or in the table `[slo]` of a deploy.toml, before it is a request.

Owns the values and the bounds they mean; the keys are the options of the command `slo`. Called by it and by monitoring.
"""

from pathlib import Path
from typing import Literal

from pydantic import Field

from deploy.records import Record
from deploy.serve.client import Protocol
from deploy.settings import LEAST_SHARE, LocalPath, Milliseconds, Seconds, SecondsOrZero, read_table
from deploy.slo.records import Bound

PERCENTILES = {"p50_ms": 0.5, "p90_ms": 0.9, "p95_ms": 0.95, "p99_ms": 0.99, "p999_ms": 0.999}
STREAM_PERCENTILES: dict[str, tuple[Literal["ttft", "itl"], float]] = {
    "ttft_p50_ms": ("ttft", 0.5),
    "ttft_p99_ms": ("ttft", 0.99),
    "itl_p50_ms": ("itl", 0.5),
    "itl_p99_ms": ("itl", 0.99),
}


class SloSettings(Record):
    """What may be said of an SLO, None where nothing is: bounds in milliseconds, times of the run in seconds."""

    p50_ms: Milliseconds | None = None
    p90_ms: Milliseconds | None = None
    p95_ms: Milliseconds | None = None
    p99_ms: Milliseconds | None = None
    p999_ms: Milliseconds | None = None
    ttft_p50_ms: Milliseconds | None = None
    ttft_p99_ms: Milliseconds | None = None
    itl_p50_ms: Milliseconds | None = None
    itl_p99_ms: Milliseconds | None = None
    llm: bool | None = None
    tokens: int | None = Field(default=None, gt=1)
    prompts: LocalPath | None = None
    error_rate: float | None = Field(default=None, ge=LEAST_SHARE, lt=1)
    rate: float | None = Field(default=None, gt=0, allow_inf_nan=False)
    url: str | None = None
    protocol: Protocol | None = None
    duration: Seconds | None = None
    min_duration: SecondsOrZero | None = None
    warm_up: SecondsOrZero | None = None
    max_queries: int | None = Field(default=None, gt=0)
    timeout_ms: Milliseconds | None = None
    confidence: float | None = Field(default=None, gt=0.5, lt=1)
    seed: int | None = Field(default=None, ge=0)
    repository: LocalPath | None = None
    samples: LocalPath | None = None
    junit: LocalPath | None = None
    markdown: LocalPath | None = None

    @property
    def bounds(self) -> tuple[Bound, ...]:
        """The promises, in the order of the percentiles, the error rate last."""
        limits = {q: getattr(self, name) for name, q in PERCENTILES.items()}
        found = [Bound(kind="latency", q=q, limit=limit) for q, limit in limits.items() if limit is not None]
        for name, (kind, q) in STREAM_PERCENTILES.items():
            if (limit := getattr(self, name)) is not None:
                found.append(Bound(kind=kind, q=q, limit=limit))
        if self.error_rate is not None:
            found.append(Bound(kind="errors", q=1.0 - self.error_rate, limit=self.error_rate))
        return tuple(found)


def read_settings(path: Path) -> SloSettings:
    """The `[slo]` table of a deploy.toml. Raises UsageError if there is none, or it says what nobody can mean."""
    return read_table(path, "slo", SloSettings)
