"""Which format the latency figures speak for, and what they say against an SLO.

Owns the rules; measures nothing and knows no process. Called by latency.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from deploy.convert.model import Format
from deploy.evidence import CONTROL, EAGER, Judgement, LatencyCell, LatencyRatio, Verdict


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """The winning format, or None where nothing may be called one; the rule it won by; and the judgement."""

    winner: str | None
    rule: str
    judgement: Judgement


def find_winner(
    cells: Sequence[LatencyCell],
    ratios: Sequence[LatencyRatio],
    *,
    slo_p99_ms: float | None = None,
    incumbent: Format | None = None,
) -> Outcome:
    """Who wins among the formats at batch 1, and the verdict.

    With an SLO only formats that are shown to meet it can win. Among those that can, the lowest p50 wins, but an
    incumbent gives way only to one that is shown to be faster. Without an SLO latency is information: it passes.
    """
    formats = [cell for cell in cells if cell.batch == 1 and cell.contender not in (EAGER, CONTROL)]
    if not formats:
        reason = "not measured: there was no artifact to measure"
        return Outcome(winner=None, rule="none", judgement=Judgement(verdict=Verdict.UNDECIDED, reason=reason))
    remarks = _remarks(ratios)
    if slo_p99_ms is None:
        winner, rule = _fastest(formats, ratios, incumbent)
        reason = "; ".join([f"{winner.contender} is chosen, p50 {winner.p50} ms at batch 1", *remarks])
        return Outcome(winner=winner.contender, rule=rule, judgement=Judgement(verdict=Verdict.PASS, reason=reason))
    verdict, meeting = _against_slo(formats, slo_p99_ms)
    reason = "; ".join([_slo_sentence(verdict, meeting or formats, slo_p99_ms), *remarks])
    judgement = Judgement(verdict=verdict, reason=reason)
    bound = f"p99 at most {slo_p99_ms:g} ms at batch 1"
    if not meeting:
        return Outcome(winner=None, rule=f"{bound}, which no format is shown to meet", judgement=judgement)
    winner, rule = _fastest(meeting, ratios, incumbent)
    return Outcome(winner=winner.contender, rule=f"{bound}, then {rule}", judgement=judgement)


def _fastest(
    formats: Sequence[LatencyCell], ratios: Sequence[LatencyRatio], incumbent: Format | None
) -> tuple[LatencyCell, str]:
    """The cell that wins by p50, and the rule in words."""
    fastest = min(formats, key=lambda cell: cell.p50.value if cell.p50 else math.inf)
    holder = next((cell for cell in formats if cell.contender == incumbent), None)
    if holder is None or holder is fastest:
        return fastest, "the lowest p50 at batch 1"
    ratio = next(r for r in ratios if (r.contender, r.base, r.batch) == (fastest.contender, incumbent, 1))
    compared = f"{fastest.contender} takes {ratio} of the incumbent {incumbent}'s time at batch 1"
    if ratio.high < 1.0 / _noise(ratios, 1):
        return fastest, f"{compared}, beyond chance and noise"
    return holder, f"the incumbent stays: {compared}, which chance or noise can explain"


def _against_slo(formats: Sequence[LatencyCell], bound: float) -> tuple[Verdict, list[LatencyCell]]:
    """Pass if a format meets the bound, fail if every one is over it; and the formats that meet it."""
    verdicts = [_meets(cell, bound) for cell in formats]
    meeting = [cell for cell, verdict in zip(formats, verdicts, strict=True) if verdict is Verdict.PASS]
    if meeting:
        return Verdict.PASS, meeting
    over = all(verdict is Verdict.FAIL for verdict in verdicts)
    return (Verdict.FAIL if over else Verdict.UNDECIDED), []


def _meets(cell: LatencyCell, bound: float) -> Verdict:
    """Whether p99 is under the bound. A lower percentile that is over it already puts p99 over it."""
    if cell.p99 is not None and cell.p99.high <= bound:
        return Verdict.PASS
    highest_known = cell.p99 or cell.p95 or cell.p90 or cell.p50
    return Verdict.FAIL if highest_known is not None and highest_known.low > bound else Verdict.UNDECIDED


def _slo_sentence(verdict: Verdict, cells: Sequence[LatencyCell], bound: float) -> str:
    figures = ", ".join(f"{cell.contender} {_tail(cell)}" for cell in cells)
    said = {
        Verdict.PASS: "is met",
        Verdict.FAIL: "is missed by every format",
        Verdict.UNDECIDED: "is not settled",
    }[verdict]
    return f"p99 at most {bound:g} ms at batch 1 {said}: {figures}"


def _tail(cell: LatencyCell) -> str:
    if cell.p99 is not None:
        return f"p99 {cell.p99} ms, n={cell.n}"
    return f"has no p99 interval from {cell.n} calls in {cell.rounds} rounds, p50 {cell.p50} ms"


def _remarks(ratios: Sequence[LatencyRatio]) -> list[str]:
    """Each format against eager: at batch 1 always, at other sizes where it is slower."""
    said = []
    for ratio in ratios:
        if ratio.base != EAGER or ratio.contender == CONTROL:
            continue
        noise = _noise(ratios, ratio.batch)
        if ratio.low > noise:
            said.append(f"{ratio.contender} is slower than eager at batch {ratio.batch} ({ratio})")
        elif ratio.batch == 1:
            word = "faster than" if ratio.high < 1.0 / noise else "not told apart from"
            said.append(f"{ratio.contender} is {word} eager at batch 1 ({ratio})")
    return said


def _noise(ratios: Sequence[LatencyRatio], batch: int) -> float:
    """How far from 1, as a factor of at least 1, eager's ratio to itself may lie at this batch size.

    An interval within rounds knows nothing of how two processes of the same model differ; the control shows it.
    """
    control = next((r for r in ratios if r.contender == CONTROL and r.batch == batch), None)
    return 1.0 if control is None else max(1.0, control.high, 1.0 / control.low)
