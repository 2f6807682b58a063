"""What is asked of the main job, what it reads, and what comes of it: values only.

Owns no work. Made by the command `package` and by whoever packages from Python; filled in by `deploy.package`.
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from deploy.checkpoint.model import Checkpoint, CheckpointRequest
from deploy.convert.model import FORMATS, Device, Format, Precision
from deploy.convert.run import Conversion
from deploy.convert.tactics import Effort
from deploy.ensemble.inputs import Kind
from deploy.ensemble.whole import EnsemblePlan
from deploy.errors import ExitCode
from deploy.evidence import BehaviourEvidence, Judgement, ParityEvidence, ServedEvidence
from deploy.gpu import GpuStack
from deploy.latency_evidence import LatencyEvidence, PrecisionEvidence
from deploy.repository.manifest import Manifest
from deploy.repository.publish import PublishedVersion
from deploy.serve.engines import Engine
from deploy.targets import Target
from deploy.validate.machine import default_threads
from deploy.validate.metric import Metric
from deploy.validate.samples import Samples

AskedPrecision = Precision | Literal["auto"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Resources:
    """What the work may use. `jobs`: conversions side by side; `seconds`: per child call; `memory`: bytes per child.

    `seconds_per_cell` is how long latency is measured per contender and batch size. `cache`: compiled code of before
    may be taken, and is kept. `measure_again`: latency is measured even where it was before, for the same code here.
    """

    jobs: int | None = None
    seconds: float | None = None
    memory: int | None = None
    threads: int = field(default_factory=default_threads)
    seconds_per_cell: float = 2.5
    cache: bool = True
    measure_again: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class PackageRequest:
    """What the user asked for. `by_name`: the formats were named, so each must be built and pass.

    `ensemble` is what goes in round the version, `images` a folder and `texts` a file of real ones for its proof;
    `exif_orientation` says that training turned photographs as their EXIF says. `precision` is what artifacts compute
    in, `auto` the fastest that passes; `calibration` holds rows for int8's static scales, `max_drop` is in percentage
    points of the `metric`. `device` is where all is compiled, proven and measured; `gpu` what is there of it, filled in
    before any work.
    """

    checkpoint: CheckpointRequest
    repository: Path
    target: Target
    name: str | None = None
    samples: Path | None = None
    labels: Path | None = None
    formats: tuple[Format, ...] = FORMATS
    by_name: bool = False
    all_formats: bool = False
    max_batch: int = 8
    ensemble: Kind | None = None
    images: Path | None = None
    texts: Path | None = None
    exif_orientation: bool = False
    slo_p99_ms: float | None = None
    thorough: bool = False
    effort: Effort = "low"
    promote: bool = False
    new_contract: bool = False
    serve_check: bool = True
    allow_constant_output: bool = False
    accept_parity_failure: bool = False
    keep_failed: Path | None = None
    precision: AskedPrecision = "fp32"
    calibration: Path | None = None
    metric: Metric | None = None
    max_drop: float | None = None
    resources: Resources = field(default_factory=Resources)
    command: tuple[str, ...] = ()
    device: Device = "cpu"
    gpu: GpuStack | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Inputs:
    """What step 2 found. `bound` is the manifest that binds the name, None for a new name.

    `ensemble` is the plan of the ensemble round it, None where none was asked for.
    """

    checkpoint: Checkpoint
    name: str
    classes: tuple[str, ...] | None
    samples: Samples | None
    bound: Manifest | None
    ensemble: EnsemblePlan | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What was published, or why nothing was. `lost` says why a format is missing."""

    judgement: Judgement
    published: tuple[PublishedVersion, ...]
    served: tuple[ServedEvidence, ...]
    lost: dict[Format, str]


@dataclass(frozen=True, slots=True, kw_only=True)
class PackageResult:
    """All that was found out on the way, and the outcome."""

    checkpoint: Checkpoint
    conversion: Conversion
    parity: tuple[ParityEvidence, ...]
    behaviour: BehaviourEvidence
    latency: LatencyEvidence | None
    outcome: Outcome
    precision: PrecisionEvidence | None = None

    @property
    def exit_code(self) -> ExitCode:
        """0 where the verdict is pass, else 1."""
        return ExitCode.OK if self.outcome.judgement.passed else ExitCode.NO


@dataclass(frozen=True, slots=True, kw_only=True)
class PackagePlan:
    """What `package` would do, for `--dry-run`. `next_versions` holds the number per model name.

    `left_out` says why a default format is not built.
    """

    inputs: Inputs
    formats: tuple[Format, ...]
    left_out: dict[Format, str]
    next_versions: dict[str, int]
    engine: Engine | None
