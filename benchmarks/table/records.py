"""What the table is made from: one record per model, written as it ends and read back.

Owns the form on disk, no arithmetic. Called by every module here.
"""

from typing import Any

from pydantic import Field

from deploy.latency_evidence import ContenderStart, LostContender, Quantile
from deploy.records import Record

EAGER = "eager"
COMPILED = "torch.compile"
AOTI, ORT = "AOTInductor by hand", "ONNX Runtime by hand"
OUR_AOTI, OUR_ORT = "deployctl aoti", "deployctl onnx"
NAVIGATOR = "Model Navigator"
BY_HAND = (EAGER, COMPILED, AOTI, ORT)
OURS = {"aoti": OUR_AOTI, "onnx": OUR_ORT}


class Settings(Record):
    """All that a model's figures depend on beside the machine; records of other settings are measured again."""

    batches: tuple[int, ...]
    seconds: float
    threads: int
    block_seconds: float = 0.05
    confidence: float = 0.95
    seed: int = 0
    package: tuple[str, ...]
    compiled: bool = True
    peers: bool = False
    wait_policy: str | None = None


class Place(Record):
    """Where and with what it was measured."""

    date: str
    commit: str
    changed: bool
    processor: str
    cpus: str
    memory_gb: float
    versions: dict[str, str]


class Stage(Record):
    """One part of a cold run: seconds from and to, counted from the start of the process, and the peak PSS in it."""

    start: float
    end: float
    peak: int

    @property
    def seconds(self) -> float:
        """How long it took."""
        return self.end - self.start


class Cold(Record):
    """A new process from start to end, with empty caches: what it took, and the peak PSS (bytes) of its tree."""

    who: str
    command: str
    seconds: float
    peak: int
    stages: dict[str, Stage]

    def until(self, *names: str) -> float:
        """Seconds from the start of the process to the end of the last of these stages."""
        return max(self.stages[name].end for name in names)

    def peak_of(self, *names: str) -> int:
        """The peak of these stages."""
        return max(self.stages[name].peak for name in names)


class Cell(Record):
    """One contender at one batch size: `n` calls; milliseconds; the median of each round, in the order of the rounds.

    A quantile is None where n gives it no interval.
    """

    contender: str
    batch: int
    n: int
    p50: Quantile | None
    p90: Quantile | None
    p99: Quantile | None
    rounds: tuple[float, ...]


class Accuracy(Record):
    """How far a contender is from float64, as multiples of the error that eager itself makes."""

    contender: str
    verdict: str
    max_multiple: float | None
    l2_multiple: float | None
    rows: int
    reason: str = ""


class ModelRecord(Record):
    """All that was measured of one model. `chosen` is the format that `package` chose by its own measurement.

    `artifacts` holds what the manifests say of ours: how they were compiled.
    """

    model: str
    settings: Settings
    place: Place
    cold: tuple[Cold, ...]
    accuracy: tuple[Accuracy, ...]
    cells: tuple[Cell, ...]
    starts: tuple[ContenderStart, ...]
    lost: tuple[LostContender, ...]
    chosen: str | None
    artifacts: dict[str, dict[str, str]] = Field(default_factory=dict)
    notes: tuple[str, ...] = ()

    def cell(self, contender: str, batch: int) -> Cell | None:
        """The cell, None where it was not measured."""
        return next((one for one in self.cells if (one.contender, one.batch) == (contender, batch)), None)

    def run(self, who: str) -> Cold | None:
        """The cold run of that name, None where there was none."""
        return next((one for one in self.cold if one.who == who), None)


class Table(Record):
    """The whole result as it lies on disk; everything above `models` follows from them."""

    what: str
    command: str
    date: str
    commit: dict[str, Any]
    hardware: dict[str, Any]
    versions: dict[str, str]
    settings: dict[str, Any]
    control: dict[str, Any]
    aims: tuple[dict[str, Any], ...]
    rows: tuple[dict[str, Any], ...]
    models: tuple[ModelRecord, ...]
