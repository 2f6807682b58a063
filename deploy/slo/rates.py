"""The highest rate that a server sustains within its bounds, found by bisection of whole load runs.

Owns which rates are tried; each one's verdict is a load run's. Called by the command `slo --find-rate`.
"""

from collections.abc import Callable
from dataclasses import replace

from deploy.evidence import Judgement, Verdict
from deploy.progress import Progress, Silent
from deploy.slo.question import find_subject
from deploy.slo.records import RateEvidence, RateStep, SloEvidence, versions_of
from deploy.slo.request import SloRequest
from deploy.slo.run import measure_slo, prepared

Check = Callable[[SloRequest], SloEvidence]

_RESOLUTION = 1.05
_MOST_STEPS = 24
# A server that is too slow at a 64th of the rate is too slow for reasons other than the rate.
_FACTOR = 64.0
_PROBE_SECONDS = 5.0
# A confirmation that does not pass takes the claim down by one step of the resolution, this often at most.
_CONFIRMATIONS = 3


def find_rate(request: SloRequest, *, progress: Progress = Silent(), check: Check | None = None) -> RateEvidence:
    """The highest rate, within 5 %, at which every bound passes, confirmed by a run of full length.

    The search begins at `request.rate`, doubles or halves until it has passed and not passed, then bisects. Probes
    are short; undecided counts as not passed, so a claim is never better than what was proven. What passes is
    taken to pass at every lower rate too. Each run begins when the server has answered what the one before left behind.
    Nothing is claimed where one run was answered by another version than the next.
    """
    request = prepared(request)
    subject = find_subject(request.reference, request.repository)
    digest = subject.digest()
    run = check or (lambda one: measure_slo(one, progress=progress, rested=True))
    steps: list[RateStep] = []
    probe = replace(request, min_seconds=min(_PROBE_SECONDS, request.min_seconds))
    low, high = _bracket(probe, run, steps)
    while low is not None and high is not None and high / low > _RESOLUTION and len(steps) < _MOST_STEPS:
        middle = (low * high) ** 0.5
        low, high = (middle, high) if _passes(probe, middle, run, steps) else (low, middle)
    final = None
    for _ in range(_CONFIRMATIONS if low is not None else 0):
        assert low is not None
        final = run(replace(request, rate=low))
        steps.append(_step(final))
        if final.judgement.verdict is Verdict.PASS and final.invalid is None:
            break
        high, low, final = low, low / _RESOLUTION, None
    if len(versions_of(steps)) > 1:
        high, final = None, None
    highest = final.rate if final else None
    return RateEvidence(
        model=subject.name,
        version=subject.number,
        version_digest=digest,
        judgement=_judgement(request, highest, high, steps),
        highest=highest,
        next_rate=high,
        steps=tuple(steps),
        final=final,
    )


def _bracket(probe: SloRequest, run: Check, steps: list[RateStep]) -> tuple[float | None, float | None]:
    """A rate that passes and a higher one that does not; None for the side that was not met."""
    rate, low, high = probe.rate, None, None
    while probe.rate / _FACTOR <= rate <= probe.rate * _FACTOR:
        # At a low rate the time may be too short for any pass: halving further would prove nothing.
        if rate < probe.rate and replace(probe, rate=rate).cannot_pass():
            break
        if _passes(probe, rate, run, steps):
            low, rate = rate, rate * 2
            if high is not None:
                return low, high
        else:
            high, rate = rate, rate / 2
            if low is not None:
                return low, high
    return low, high


def _passes(probe: SloRequest, rate: float, run: Check, steps: list[RateStep]) -> bool:
    found = run(replace(probe, rate=rate))
    steps.append(_step(found))
    return found.invalid is None and found.judgement.verdict is Verdict.PASS


def _step(found: SloEvidence) -> RateStep:
    p99 = next((quantile.value for quantile in found.quantiles if quantile.q == 0.99), None)
    return RateStep(
        rate=found.rate,
        verdict=Verdict.UNDECIDED if found.invalid else found.judgement.verdict,
        reason=found.invalid or found.judgement.reason,
        queries=found.queries,
        p99=p99,
        invalid=found.invalid is not None,
        answered=tuple(found.answered),
    )


def _judgement(request: SloRequest, highest: float | None, high: float | None, steps: list[RateStep]) -> Judgement:
    wanted = ", ".join(bound.wanted for bound in request.bounds)
    if len(versions := versions_of(steps)) > 1:
        reason = (
            f"versions {' and '.join(versions)} answered by turns: no rate is found of several; name one, as NAME:N"
        )
        return Judgement(verdict=Verdict.UNDECIDED, reason=reason)
    if highest is None:
        verdict = Verdict.FAIL if any(step.verdict is Verdict.FAIL for step in steps) else Verdict.UNDECIDED
        reason = f"no rate that was tried was shown to keep {wanted}: at {steps[-1].rate:.4g}/s {steps[-1].reason}"
        return Judgement(verdict=verdict, reason=reason)
    refused = next((step for step in reversed(steps) if step.rate == high), None)
    above = f"{refused.rate:.4g}/s did not pass: {refused.reason}" if refused else "no higher rate was tried"
    return Judgement.yes(f"{highest:.4g}/s keeps {wanted}; {above}")
