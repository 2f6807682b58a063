"""Which of the built artifacts deserve to be published, and why the others do not.

Owns the rule only, on evidence that is already there; a pure function. Called by steps.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from deploy.convert.model import FORMATS, Format
from deploy.evidence import Judgement, ParityEvidence, Verdict
from deploy.latency_evidence import LatencyEvidence


@dataclass(frozen=True, slots=True, kw_only=True)
class Rules:
    """What was asked for. `by_name`: every format asked for must be built and pass. `bound`: the name's own format.

    `slo`: a latency bound was asked for, so the latency verdict decides too.
    """

    formats: tuple[Format, ...]
    by_name: bool = False
    all_formats: bool = False
    bound: Format | None = None
    accept_parity_failure: bool = False
    slo: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """The formats to publish, best first, the reason each other one lost, and the verdict on the whole."""

    publish: tuple[Format, ...]
    lost: dict[Format, str]
    judgement: Judgement


def choose(
    rules: Rules,
    *,
    failures: Mapping[Format, str],
    parity: Mapping[Format, ParityEvidence],
    latency: LatencyEvidence | None,
) -> Choice:
    """What to publish. `publish` is empty unless the verdict is pass.

    `failures` holds why a format could not be built, `parity` the evidence of each that was. Without `all_formats`
    only the first of `publish` is wanted; the rest stand in for it, in order, if it does not serve.
    """
    lost = dict(failures)
    good: list[Format] = []
    for name, evidence in parity.items():
        accepted = name in rules.formats and (evidence.judgement.passed or rules.accept_parity_failure)
        if accepted:
            good.append(name)
        else:
            lost[_format(name)] = f"parity: {evidence.judgement.reason}"
    for gone in latency.lost if latency else ():
        if gone.contender in good:
            good.remove(_format(gone.contender))
            lost[_format(gone.contender)] = f"latency: {gone}"
    if not good or (rules.by_name and lost):
        reason = "; ".join(f"{name}: {why}" for name, why in lost.items()) or "nothing was built"
        return Choice(publish=(), lost=lost, judgement=Judgement(verdict=_verdict(lost, parity), reason=reason))
    if rules.slo and latency is not None and not latency.judgement.passed:
        return Choice(publish=(), lost=lost, judgement=latency.judgement)
    order = _by_preference(good, latency)
    if rules.bound and not rules.all_formats:
        order, lost = _bound_first(rules.bound, order, lost)
        if not order:
            reason = f"the name is bound to {rules.bound}: {lost[rules.bound]}"
            return Choice(publish=(), lost=lost, judgement=Judgement.no(reason))
    names = ", ".join(order) if rules.all_formats else order[0]
    return Choice(publish=tuple(order), lost=lost, judgement=Judgement.yes(f"{names} chosen"))


def _verdict(lost: Mapping[Format, str], parity: Mapping[Format, ParityEvidence]) -> Verdict:
    """Undecided where nothing but that stands against those that were lost, else fail."""
    undecided = [name for name, one in parity.items() if one.judgement.verdict is Verdict.UNDECIDED]
    return Verdict.UNDECIDED if undecided and set(lost) == set(undecided) else Verdict.FAIL


def _format(name: str) -> Format:
    return next(known for known in FORMATS if known == name)


def _by_preference(good: list[Format], latency: LatencyEvidence | None) -> list[Format]:
    """The measured winner first, the others by p50 at batch 1; unmeasured ones keep the fixed order.

    Where the machine was too noisy for a winner the medians still order them: a guess, and said to be one.
    """
    if latency is None:
        return sorted(good, key=FORMATS.index)
    medians = {cell.contender: cell.p50.value for cell in latency.cells if cell.batch == 1 and cell.p50}
    return sorted(good, key=lambda name: (name != latency.winner, medians.get(name, float("inf")), FORMATS.index(name)))


def _bound_first(bound: Format, order: list[Format], lost: dict[Format, str]) -> tuple[list[Format], dict[Format, str]]:
    others = {name: f"the name is bound to {bound}" for name in order if name != bound}
    if bound not in order:
        return [], {bound: "it was not asked for", **lost}
    return [bound], {**lost, **others}
