"""What is asked of a search, and what came of it.

Owns the values only. Called by run, subject and the command `tune`.
"""

from dataclasses import dataclass, field
from pathlib import Path

from deploy.errors import DeployError, ExitCode, UsageError
from deploy.repository.publish import PublishedVersion
from deploy.serve.client import Protocol
from deploy.serve.engines import Engine
from deploy.slo.records import Bound
from deploy.slo.request import LONGEST_WAIT_SECONDS, default_deadline
from deploy.slo.tune_records import TuneEvidence
from deploy.validate.machine import default_threads

_LONGEST_PROBE_SECONDS = 3600.0


@dataclass(frozen=True, slots=True, kw_only=True)
class TuneRequest:
    """Which version, for which bound, on which engine, and how much may be spent.

    `timeout` is in seconds for all trials together, None for no limit. `probe_seconds` is the length of one load; a
    trial makes three to ten of them. `storage` is where the trials are kept, None for a place in the user's cache.
    """

    repository: Path
    reference: str
    bound: Bound
    engine: Engine
    trials: int = 20
    timeout: float | None = None
    probe_seconds: float = 4.0
    rounds: int = 4
    protocol: Protocol = "grpc"
    samples: Path | None = None
    storage: Path | None = None
    resume: bool = False
    seed: int = 0
    cores: int = field(default_factory=default_threads)
    dry_run: bool = False
    promote: bool = False
    command: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.trials < 1 or self.probe_seconds <= 0 or self.rounds < 3:
            raise UsageError(
                "a search needs a trial, some time for each, and three rounds to confirm it",
                expected="--trials of 1 or more and a positive --seconds-per-probe",
            )
        # Else each probe would refuse it, after a server was started.
        if self.probe_seconds > _LONGEST_PROBE_SECONDS or default_deadline((self.bound,)) > LONGEST_WAIT_SECONDS:
            raise UsageError(
                f"probes of {self.probe_seconds:g} s for {self.bound.wanted}",
                expected=f"a bound of at most {LONGEST_WAIT_SECONDS * 100:g} ms, in probes of at most "
                f"{_LONGEST_PROBE_SECONDS:g} s",
                fix="lower --p99-ms or --seconds-per-probe",
            )
        if self.dry_run and self.promote:
            raise UsageError(
                "--dry-run publishes nothing, so there is nothing to promote",
                expected="one of --dry-run and --promote",
                fix="leave one out",
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class TuneResult:
    """What was found, the change of the config (empty for none), and the version that has it, if one was published.

    `problem` is why it was not published, promoted or kept as was asked; None where nothing stood in the way.
    """

    evidence: TuneEvidence
    difference: str
    storage: Path
    published: PublishedVersion | None = None
    attestation: Path | None = None
    problem: DeployError | None = None

    @property
    def exit_code(self) -> ExitCode:
        """1 where no configuration keeps the bound at any rate; a config that stays is an answer, not a failure.

        A result that could not be published, promoted or kept ends as that error does.
        """
        if self.problem is not None:
            return self.problem.exit_code
        return ExitCode.NO if self.evidence.outcome == "none" else ExitCode.OK
