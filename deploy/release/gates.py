"""The limits a newer version may be held to, and whether it keeps them: pass, fail or undecided.

Owns the rules; measures nothing. Called by diff.
"""

from collections.abc import Iterator
from dataclasses import dataclass, fields

from deploy.errors import UsageError
from deploy.evidence import Judgement, Verdict
from deploy.validate.difference_records import (
    AnswerDifference,
    DecisionDifference,
    Gate,
    SizeDifference,
)

_FEWEST = "no decision was compared: no output of both versions carries one"


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What was asked for, None where nothing was.

    `max_flips` and `max_accuracy_drop` are shares of traffic like the samples, decided where the whole interval lies on
    one side; `max_flipped_rows` counts these samples and no others. `max_error` is in units of eager's own error,
    `max_slowdown` and `max_growth` are ratios to the older version.
    """

    max_flips: float | None = None
    max_flipped_rows: int | None = None
    max_accuracy_drop: float | None = None
    max_error: float | None = None
    max_slowdown: float | None = None
    max_growth: float | None = None

    @property
    def any(self) -> bool:
        """Whether anything was asked for."""
        return any(getattr(self, one.name) is not None for one in fields(self))

    def check(self, *, latency: bool) -> None:
        """Raises UsageError if a limit cannot be kept by anything, or nothing would be measured that it is about."""
        if self.max_slowdown is not None and not latency:
            raise UsageError(
                "a slowdown was limited and latency left out",
                expected="--max-slowdown without --no-latency",
                fix="leave out one of the two",
            )
        if self.max_flips == 0:
            raise UsageError(
                "no number of samples shows that nothing at all flips",
                expected="a share above 0 for --max-flips",
                fix="use --max-flipped-rows 0 to allow no flip in these samples",
            )


def judge_gates(
    limits: Limits, *, answers: AnswerDifference | None, size: SizeDifference, slowdown: Judgement | None
) -> tuple[Gate, ...]:
    """Each limit that was asked for, with its verdict."""
    return tuple(_gates(limits, answers, size, slowdown))


def overall(gates: tuple[Gate, ...]) -> Judgement:
    """Fail where a gate failed, undecided where one is, else pass; without a gate a pass that says so."""
    if not gates:
        return Judgement.yes("no limit was asked for: this is information")
    for verdict in (Verdict.FAIL, Verdict.UNDECIDED):
        found = [gate for gate in gates if gate.judgement.verdict is verdict]
        if found:
            reason = "; ".join(f"{gate.name}: {gate.judgement.reason}" for gate in found)
            return Judgement(verdict=verdict, reason=reason)
    return Judgement.yes("; ".join(gate.judgement.reason for gate in gates))


def _gates(
    limits: Limits, answers: AnswerDifference | None, size: SizeDifference, slowdown: Judgement | None
) -> Iterator[Gate]:
    about_answers = {
        "max_flips": _flips,
        "max_flipped_rows": _flipped_rows,
        "max_accuracy_drop": _accuracy_drop,
        "max_error": _error,
    }
    for name, judge in about_answers.items():
        limit = getattr(limits, name)
        if limit is not None:
            unasked = Judgement.undecided("the two versions were asked nothing in common")
            yield Gate(name=name, limit=limit, judgement=judge(answers, limit) if answers else unasked)
    if limits.max_slowdown is not None:
        judgement = slowdown or Judgement.undecided("the two versions could not be raced: they take other inputs")
        yield Gate(name="max_slowdown", limit=limits.max_slowdown, judgement=judgement)
    if limits.max_growth is not None:
        yield Gate(name="max_growth", limit=limits.max_growth, judgement=_growth(size, limits.max_growth))


def _flips(answers: AnswerDifference, limit: float) -> Judgement:
    found = _decisions(answers)
    if not found:
        return Judgement.undecided(_FEWEST)
    worst = max(found, key=lambda one: one.high)
    said = (
        f"{worst.share:.2%} of decisions flip, {worst.low:.2%} to {worst.high:.2%} of traffic like these "
        f"{worst.rows} {answers.judged_on}"
    )
    if any(one.low > limit for one in found):
        return Judgement.no(f"{said}; {limit:.2%} may")
    if all(one.high <= limit for one in found):
        return _lost(answers) or Judgement.yes(f"{said}; {limit:.2%} may")
    return Judgement.undecided(f"{said}; {limit:.2%} may: give more samples with --samples, or allow more")


def _flipped_rows(answers: AnswerDifference, limit: float) -> Judgement:
    if not _decisions(answers):
        return Judgement.undecided(_FEWEST)
    said = f"{answers.flipped_rows} of {answers.rows} {answers.judged_on} flip, {limit:g} may"
    return Judgement.no(said) if answers.flipped_rows > limit else _lost(answers) or Judgement.yes(said)


def _lost(answers: AnswerDifference) -> Judgement | None:
    """That nothing was seen of an output's decisions; None where all were compared."""
    lost = [one.output for one in answers.outputs if one.decisions_lost]
    return Judgement.undecided(f"the decisions of {', '.join(lost)} cannot be compared") if lost else None


def _accuracy_drop(answers: AnswerDifference, limit: float) -> Judgement:
    found = answers.accuracy
    if found is None:
        return Judgement.undecided("nothing says what is true: give --samples with an array `labels`")
    said = (
        f"accuracy goes from {found.before:.2%} to {found.after:.2%} on {found.rows} rows ({found.fixed} fixed, "
        f"{found.broken} broken), a drop of {found.low:+.2%} to {found.high:+.2%} of traffic; {limit:.2%} may"
    )
    if found.low > limit:
        return Judgement.no(said)
    if found.high <= limit:
        return Judgement.yes(said)
    return Judgement.undecided(f"{said}: give more labelled samples, or allow more")


def _error(answers: AnswerDifference, limit: float) -> Judgement:
    multiples = {one.output: one.eager_multiple for one in answers.outputs}
    misplaced = [one.output for one in answers.outputs if one.misplaced]
    if misplaced:
        return Judgement.no(f"{', '.join(misplaced)} is not finite in one version only")
    known = {output: multiple for output, multiple in multiples.items() if multiple is not None}
    if not known or len(known) < len(multiples):
        return Judgement.undecided("no evidence says what eager's own error is for every output")
    output, worst = max(known.items(), key=lambda pair: pair[1])
    verdict = Verdict.PASS if worst <= limit else Verdict.FAIL
    return Judgement(verdict=verdict, reason=f"{output} is {worst:.3g} times eager's own error apart, {limit:g} may be")


def _growth(size: SizeDifference, limit: float) -> Judgement:
    verdict = Verdict.PASS if size.ratio <= limit else Verdict.FAIL
    said = f"the artifact has {size.ratio:.3g} times the {size.artifact_before:,} bytes it had, {limit:g} may be"
    return Judgement(verdict=verdict, reason=said)


def _decisions(answers: AnswerDifference) -> list[DecisionDifference]:
    return [one.decisions for one in answers.outputs if one.decisions is not None]
