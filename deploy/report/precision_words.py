"""What each precision came to, as a table for a terminal, and how an int8 artifact's noise is written.

Owns the wording; judges nothing. Called by terminal and by the command `package`.
"""

from typing import TYPE_CHECKING

from deploy.evidence import OutputParity, ParityEvidence
from deploy.latency_evidence import PrecisionEvidence
from deploy.report.tables import styled_verdict, table_of, title

if TYPE_CHECKING:
    from rich.console import RenderableType

_DASH = "-"


def named(evidence: ParityEvidence) -> str:
    """The format, with its precision where that is not fp32."""
    return evidence.format if evidence.precision == "fp32" else f"{evidence.format} {evidence.precision}"


def noise(output: OutputParity) -> str | None:
    """The signal over the error, None where errors are counted in multiples of eager's own."""
    return None if output.sqnr_db is None else f"{output.sqnr_db:.1f} dB"


def precision_table(evidence: PrecisionEvidence) -> "RenderableType":
    """Every precision that was tried: its verdict, its time beside fp32's, its bytes; the taken ones are marked."""
    from rich.console import Group
    from rich.text import Text

    table = table_of("format", "precision", numbers=("to fp32", "MB"))
    table.add_column("verdict")
    table.add_column("parity", overflow="fold")
    for one in evidence.trials:
        taken = " (taken)" if evidence.chosen.get(one.format) == one.precision else ""
        table.add_row(
            one.format,
            f"{one.precision}{taken}",
            str(one.ratio or _DASH),
            _DASH if one.size is None else f"{one.size / 1e6:.1f}",
            styled_verdict(one.judgement.verdict.upper()),
            Text(f"{one.judgement.reason}{f'; {one.scheme}' if one.scheme else ''}"),
        )
    left_out = [Text(f"{name} was not tried: {why}") for name, why in evidence.left_out.items()]
    return Group(title("Precisions: time at batch 1 in multiples of fp32's"), table, *left_out)
