"""The `[slo]` table of a deploy.toml: the same promises as on the command line, kept with the code they bind.

Owns the schema and its refusals. Called by the command `slo`.
"""

import tomllib
from pathlib import Path
from typing import Any

from pydantic import Field, ValidationError

from deploy.errors import UsageError
from deploy.records import Record
from deploy.serve.client import Protocol
from deploy.slo.records import Bound

PERCENTILES = {"p50_ms": 0.5, "p90_ms": 0.9, "p95_ms": 0.95, "p99_ms": 0.99, "p999_ms": 0.999}


class SloSettings(Record):
    """What may be said of an SLO, None where nothing is: bounds in milliseconds, times of the run in seconds."""

    p50_ms: float | None = Field(default=None, gt=0)
    p90_ms: float | None = Field(default=None, gt=0)
    p95_ms: float | None = Field(default=None, gt=0)
    p99_ms: float | None = Field(default=None, gt=0)
    p999_ms: float | None = Field(default=None, gt=0)
    error_rate: float | None = Field(default=None, gt=0, lt=1)
    rate: float | None = Field(default=None, gt=0)
    url: str | None = None
    protocol: Protocol | None = None
    duration: float | None = Field(default=None, gt=0)
    min_duration: float | None = Field(default=None, ge=0)
    warm_up: float | None = Field(default=None, ge=0)
    max_queries: int | None = Field(default=None, gt=0)
    timeout_ms: float | None = Field(default=None, gt=0)
    confidence: float | None = Field(default=None, gt=0.5, lt=1)
    seed: int | None = Field(default=None, ge=0)

    @property
    def bounds(self) -> tuple[Bound, ...]:
        """The promises, in the order of the percentiles, the error rate last."""
        limits = {q: getattr(self, name) for name, q in PERCENTILES.items()}
        found = [Bound(kind="latency", q=q, limit=limit) for q, limit in limits.items() if limit is not None]
        if self.error_rate is not None:
            found.append(Bound(kind="errors", q=1.0 - self.error_rate, limit=self.error_rate))
        return tuple(found)

    def over(self, below: "SloSettings") -> "SloSettings":
        """These settings, and where they say nothing those of `below`."""
        return SloSettings(**(below.model_dump(exclude_none=True) | self.model_dump(exclude_none=True)))


def read_settings(path: Path) -> SloSettings:
    """The `[slo]` table of a TOML file. Raises UsageError if there is none, or it says what nobody can mean."""
    try:
        found: dict[str, Any] = tomllib.loads(path.read_text())
    except FileNotFoundError as error:
        raise UsageError(f"there is no file {path}", expected="a deploy.toml with a table [slo]") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, OSError) as error:
        raise UsageError(f"{path} is not TOML: {error}", expected="a deploy.toml with a table [slo]") from error
    if not isinstance(found.get("slo"), dict):
        raise UsageError(f"{path} has no table [slo]", expected="[slo] with, for example, p99_ms = 15.0 and rate = 200")
    try:
        return SloSettings(**found["slo"])
    except ValidationError as error:
        first = error.errors()[0]
        raise UsageError(
            f"{path}: [slo] {'.'.join(map(str, first['loc']))}: {first['msg']}",
            expected=f"the keys {', '.join(SloSettings.model_fields)}",
        ) from error
