"""The words for a search that the terminal and the page share: a trial and a round of the confirmation as a line each.

Owns no layout. Called by `tune_terminal` and `tune_sections`.
"""

from dataclasses import dataclass

from deploy.latency_evidence import short
from deploy.report import words
from deploy.slo.tune_records import Confirmation, Probe, TuneEvidence, TuneTrial


@dataclass(frozen=True, slots=True, kw_only=True)
class TrialRow:
    """A trial as a line of a table. `mark`: `*` the best, `=` the version's own configuration, else empty."""

    mark: str
    setting: str
    rate: str
    p99: str
    batch: str
    seconds: str
    outcome: str


def trial_rows(evidence: TuneEvidence) -> tuple[TrialRow, ...]:
    """Every trial in order."""
    return tuple(_trial_row(evidence, trial) for trial in evidence.trials)


def confirmation_rows(confirmation: Confirmation) -> tuple[tuple[str, ...], ...]:
    """Per round: rate, share over the bound and p99 of the version's own configuration, then of the winner's."""
    return tuple(
        (f"{one.rate:.4g}", _over(one.own), _p99(one.own), _over(one.new), _p99(one.new)) for one in confirmation.rounds
    )


def tried_line(evidence: TuneEvidence) -> str:
    """How much of the space was tried, in which time, on what."""
    tried = f"{len(evidence.trials)} of {evidence.space} settings tried in {evidence.seconds:.0f} s"
    return f"{tried}; {words.printable(evidence.engine)}"


def _trial_row(evidence: TuneEvidence, trial: TuneTrial) -> TrialRow:
    own = "=" if trial.setting == evidence.own else ""
    kept = max((probe for probe in trial.probes if probe.kept), key=lambda probe: probe.rate, default=None)
    return TrialRow(
        mark="*" if trial.number == evidence.best else own,
        setting=str(trial.setting),
        rate=words.DASH if trial.rate is None else short(trial.rate),
        p99=words.DASH if kept is None else _p99(kept),
        batch=words.DASH if kept is None or kept.batch_reached is None else f"{kept.batch_reached:.1f}",
        seconds=f"{trial.seconds:.0f}",
        outcome=_outcome(trial),
    )


def _outcome(trial: TuneTrial) -> str:
    if trial.status == "failed":
        return words.printable(f"failed: {trial.reason}")
    return f"{trial.status}, client-limited" if trial.client_limited else trial.status


def _over(probe: Probe) -> str:
    return words.percent(probe.over / probe.queries) if probe.queries else words.DASH


def _p99(probe: Probe) -> str:
    return words.DASH if probe.p99 is None else short(probe.p99)
