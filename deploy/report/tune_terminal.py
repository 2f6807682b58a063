"""A search for a terminal: its verdict, its trials, what confirmed the winner, and the change of the config.

Owns the layout. Called by the command `tune`. Imports rich on use.
"""

from typing import TYPE_CHECKING

from deploy.evidence import short
from deploy.report import words
from deploy.report.tables import styled_verdict, table_of, title
from deploy.slo.tune_records import Confirmation, Probe, TuneEvidence, TuneTrial

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.table import Table


def tune_table(evidence: TuneEvidence, difference: str) -> "RenderableType":
    """The outcome of a search and how it was got. `difference` is the change of the config, empty for none."""
    from rich.console import Group
    from rich.text import Text

    verdict = styled_verdict(evidence.judgement.verdict.upper())
    about = f"  {words.subject(evidence.model, evidence.version)} tuned for {evidence.bound.wanted}"
    parts: list[RenderableType] = [
        Text.assemble(verdict, about),
        Text(words.printable(evidence.judgement.reason)),
        Text(
            f"{len(evidence.trials)} of {evidence.space} settings tried in {evidence.seconds:.0f} s; {evidence.engine}"
        ),
        Text(evidence.machine),
        Text(""),
        _trials(evidence),
    ]
    if evidence.confirmation is not None and evidence.confirmation.rounds:
        parts += [Text(""), title("The winner beside the version's own configuration"), _rounds(evidence.confirmation)]
    if difference:
        parts += [Text(""), title("Change of the configuration"), Text(difference)]
    parts += [Text(f"remark: {words.printable(remark)}") for remark in evidence.remarks]
    return Group(*parts)


def _trials(evidence: TuneEvidence) -> "Table":
    from rich.text import Text

    table = table_of("", "setting", numbers=("rate/s", "p99 ms", "batch", "s"))
    table.add_column("what became of it", overflow="fold")
    for trial in evidence.trials:
        mark = "*" if trial.number == evidence.best else "="
        kept = _highest_kept(trial)
        table.add_row(
            mark if trial.number == evidence.best or trial.setting == evidence.own else "",
            Text(str(trial.setting)),
            words.DASH if trial.rate is None else short(trial.rate),
            words.DASH if kept is None or kept.p99 is None else short(kept.p99),
            words.DASH if kept is None or kept.batch_reached is None else f"{kept.batch_reached:.1f}",
            f"{trial.seconds:.0f}",
            Text(words.printable(_status(trial), 60)),
        )
    return table


def _status(trial: TuneTrial) -> str:
    if trial.status == "failed":
        return f"failed: {trial.reason}"
    return f"{trial.status}, client-limited" if trial.client_limited else trial.status


def _highest_kept(trial: TuneTrial) -> Probe | None:
    return max((probe for probe in trial.probes if probe.kept), key=lambda probe: probe.rate, default=None)


def _rounds(confirmation: Confirmation) -> "Table":
    table = table_of(numbers=("rate/s", "own over", "own p99 ms", "tuned over", "tuned p99 ms"))
    for one in confirmation.rounds:
        table.add_row(f"{one.rate:.4g}", _over(one.own), _p99(one.own), _over(one.new), _p99(one.new))
    return table


def _over(probe: Probe) -> str:
    return words.percent(probe.over / probe.queries) if probe.queries else words.DASH


def _p99(probe: Probe) -> str:
    return words.DASH if probe.p99 is None else short(probe.p99)
