"""Which format the latency figures speak for, and what they say against an SLO or another version.

Owns the rules; measures nothing and knows no process. Called by latency and bench.
"""

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass

from deploy.evidence import Judgement, Verdict
from deploy.latency_evidence import EAGER, LatencyCell, LatencyRatio, control_of, is_control
from deploy.validate.statistics import TOO_NOISY, span

_QUIETER = "measure again when nothing else runs on this machine"


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
    incumbent: str | None = None,
    lost: Collection[str] = (),
) -> Outcome:
    """Who wins among the formats at batch 1, and the verdict. Who is among the `lost` wins nothing.

    With an SLO only formats that are shown to meet it can win. Among those that can, the lowest p50 wins, but an
    incumbent gives way only to one that is shown to be faster. Without an SLO latency is information: it passes.

    Where eager against itself shows a machine too noisy to compare, or nothing shows how noisy it was, nobody wins by
    p50 and the verdict is undecided. An SLO that is met stays met, since noise only adds to a latency; one that is
    missed by less than the noise is undecided.
    """
    formats = [
        cell
        for cell in cells
        if cell.batch == 1 and cell.contender != EAGER and not is_control(cell.contender) and cell.contender not in lost
    ]
    if not formats:
        reason = "not measured: there was no artifact to measure"
        return Outcome(winner=None, rule="none", judgement=Judgement(verdict=Verdict.UNDECIDED, reason=reason))
    doubt = _doubt(ratios, EAGER, lost)
    if slo_p99_ms is not None:
        return _with_slo(formats, ratios, slo_p99_ms, incumbent=incumbent, doubt=doubt)
    if doubt:
        judgement = Judgement(verdict=Verdict.UNDECIDED, reason="; ".join([doubt, *remarks(ratios)]))
        return Outcome(winner=None, rule="nothing is called faster by these figures", judgement=judgement)
    winner, rule = _fastest(formats, ratios, incumbent)
    reason = "; ".join([f"{winner.contender} is chosen, p50 {winner.p50} ms at batch 1", *remarks(ratios)])
    return Outcome(winner=winner.contender, rule=rule, judgement=Judgement(verdict=Verdict.PASS, reason=reason))


def judge_slowdown(
    ratios: Sequence[LatencyRatio], contender: str, base: str, limit: float, *, lost: Collection[str] = ()
) -> Judgement:
    """Whether the median of `contender` is at most `limit` times that of `base`, at every batch size measured.

    Each ratio's interval is widened by what the control of `base` shows first: another start of the same model could
    land anywhere in there. Pass if all of it is within the limit, fail if all of it is over at one batch size. Nothing
    passes where one of the three was lost on the way.
    """
    pairs = [ratio for ratio in ratios if (ratio.contender, ratio.base) == (contender, base)]
    pairs = [ratio for ratio in pairs if _control(ratios, ratio.batch, base)]
    verdicts = [_slower(ratio, noise_factor(ratios, ratio.batch, base), limit) for ratio in pairs]
    figures = "; ".join(_compared(ratio, ratios) for ratio in pairs)
    if Verdict.FAIL in verdicts:
        return Judgement(verdict=Verdict.FAIL, reason=f"more than {limit:g}x of {base}'s time: {figures}")
    if not pairs or any(name in lost for name in (contender, base, control_of(base))):
        reason = f"{contender} was not compared with {base} beside a control at every batch size"
        return Judgement(verdict=Verdict.UNDECIDED, reason=reason)
    if Verdict.UNDECIDED in verdicts:
        ways = f"measure longer with --seconds-per-cell, {_QUIETER.removeprefix('measure again ')}, or allow more"
        reason = f"chance or noise can put it on either side of {limit:g}x of {base}'s time: {figures}; {ways}"
        return Judgement(verdict=Verdict.UNDECIDED, reason=reason)
    return Judgement(verdict=Verdict.PASS, reason=f"at most {limit:g}x of {base}'s time: {figures}")


def inform(ratios: Sequence[LatencyRatio], bases: Sequence[str], *, lost: Collection[str] = ()) -> Judgement:
    """What the figures say of everyone against each of `bases` where nothing was asked: pass, or undecided in doubt."""
    doubts = [doubt for base in bases if (doubt := _doubt(ratios, base, lost))]
    said = [remark for base in bases for remark in remarks(ratios, base)]
    verdict = Verdict.UNDECIDED if doubts else Verdict.PASS
    return Judgement(verdict=verdict, reason="; ".join([*doubts, *said]) or "measured beside nothing but itself")


def remarks(ratios: Sequence[LatencyRatio], base: str = EAGER) -> list[str]:
    """Each contender against `base`: at batch 1 always, at other sizes where it is slower."""
    said = []
    for ratio in ratios:
        if ratio.base != base or is_control(ratio.contender):
            continue
        noise = noise_factor(ratios, ratio.batch, base)
        if ratio.low > noise:
            said.append(f"{ratio.contender} is slower than {base} at batch {ratio.batch} ({ratio})")
        elif ratio.batch == 1:
            word = "faster than" if ratio.high < 1.0 / noise else "not told apart from"
            said.append(f"{ratio.contender} is {word} {base} at batch 1 ({ratio})")
    return said


def noise_factor(ratios: Sequence[LatencyRatio], batch: int, base: str = EAGER) -> float:
    """How far from 1, as a factor of at least 1, a ratio to `base` may lie by noise alone at this batch size.

    An interval within rounds knows nothing of how two processes of the same model differ; the control shows it, that
    of `base` where there is one, else eager's. Infinite where there is no control at all: then nothing is known.
    """
    control = _control(ratios, batch, base) or _control(ratios, batch, EAGER)
    return math.inf if control is None else max(1.0, control.high, 1.0 / control.low)


def _control(ratios: Sequence[LatencyRatio], batch: int, base: str) -> LatencyRatio | None:
    wanted = (control_of(base), base, batch)
    return next((ratio for ratio in ratios if (ratio.contender, ratio.base, ratio.batch) == wanted), None)


def _doubt(ratios: Sequence[LatencyRatio], base: str, lost: Collection[str]) -> str | None:
    """Why nothing is to be compared with `base` by these figures, and what to do; None if it may be.

    The smallest batch decides, where calls are shortest and winners are chosen.
    """
    control = next((ratio for ratio in ratios if (ratio.contender, ratio.base) == (control_of(base), base)), None)
    if control is None:
        who = " and ".join(name for name in (base, control_of(base)) if name in lost)
        return f"nothing shows how noisy the machine was, {f'since {who} was lost' if who else 'without a control'}"
    if span(control.low, control.high) <= TOO_NOISY:
        return None
    return f"the machine was too noisy: {base} took {control} of its own time at batch {control.batch}; {_QUIETER}"


def _with_slo(
    formats: Sequence[LatencyCell],
    ratios: Sequence[LatencyRatio],
    bound: float,
    *,
    incumbent: str | None,
    doubt: str | None,
) -> Outcome:
    noise = noise_factor(ratios, 1) if doubt else 1.0
    verdict, meeting = _against_slo(formats, bound, noise if math.isfinite(noise) else 1.0)
    reason = "; ".join(
        [_slo_sentence(verdict, meeting or formats, bound), *([doubt] if doubt else []), *remarks(ratios)]
    )
    judgement = Judgement(verdict=verdict, reason=reason)
    asked = f"p99 at most {bound:g} ms at batch 1"
    if not meeting:
        return Outcome(winner=None, rule=f"{asked}, which no format is shown to meet", judgement=judgement)
    if doubt:
        first = next((cell for cell in meeting if cell.contender == incumbent), meeting[0])
        return Outcome(
            winner=first.contender,
            rule=f"{asked}, then the fixed order, since the figures are in doubt",
            judgement=judgement,
        )
    winner, rule = _fastest(meeting, ratios, incumbent)
    return Outcome(winner=winner.contender, rule=f"{asked}, then {rule}", judgement=judgement)


def _fastest(
    formats: Sequence[LatencyCell], ratios: Sequence[LatencyRatio], incumbent: str | None
) -> tuple[LatencyCell, str]:
    """The cell that wins by p50, and the rule in words."""
    fastest = min(formats, key=lambda cell: cell.p50.value if cell.p50 else math.inf)
    holder = next((cell for cell in formats if cell.contender == incumbent), None)
    if holder is None or holder is fastest:
        return fastest, "the lowest p50 at batch 1"
    ratio = next(r for r in ratios if (r.contender, r.base, r.batch) == (fastest.contender, incumbent, 1))
    compared = f"{fastest.contender} takes {ratio} of the incumbent {incumbent}'s time at batch 1"
    if ratio.high < 1.0 / noise_factor(ratios, 1):
        return fastest, f"{compared}, beyond chance and noise"
    return holder, f"the incumbent stays: {compared}, which chance or noise can explain"


def _slower(ratio: LatencyRatio, noise: float, limit: float) -> Verdict:
    if ratio.low / noise > limit:
        return Verdict.FAIL
    return Verdict.PASS if ratio.high * noise <= limit else Verdict.UNDECIDED


def _compared(ratio: LatencyRatio, ratios: Sequence[LatencyRatio]) -> str:
    control = _control(ratios, ratio.batch, ratio.base)
    return f"{ratio} at batch {ratio.batch}, where {ratio.base} took {control} of its own"


def _against_slo(formats: Sequence[LatencyCell], bound: float, noise: float) -> tuple[Verdict, list[LatencyCell]]:
    """Pass if a format meets the bound, fail if every one is over it by more than noise; and those that meet it."""
    verdicts = [_meets(cell, bound, noise) for cell in formats]
    meeting = [cell for cell, verdict in zip(formats, verdicts, strict=True) if verdict is Verdict.PASS]
    if meeting:
        return Verdict.PASS, meeting
    over = all(verdict is Verdict.FAIL for verdict in verdicts)
    return (Verdict.FAIL if over else Verdict.UNDECIDED), []


def _meets(cell: LatencyCell, bound: float, noise: float) -> Verdict:
    """Whether p99 is under the bound. A lower percentile that is over it already puts p99 over it.

    To be over the bound is to be over it by more than the factor `noise`.
    """
    if cell.p99 is not None and cell.p99.high <= bound:
        return Verdict.PASS
    highest_known = cell.p99 or cell.p95 or cell.p90 or cell.p50
    return Verdict.FAIL if highest_known is not None and highest_known.low > bound * noise else Verdict.UNDECIDED


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
