"""A promise as monitoring keeps it: a bound, the share of requests within it, and what is left to break.

Owns the values and where they come from: an SLO attestation, a `[slo]` table, or a caller. Called by rules, dashboard
and whatever renders them.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from deploy.errors import UsageError
from deploy.evidence import Verdict
from deploy.repository.attest import attestations
from deploy.repository.layout import Version
from deploy.slo.records import Bound, SloEvidence
from deploy.slo.settings import read_settings


@dataclass(frozen=True, slots=True, kw_only=True)
class Objective:
    """Of all requests for `model` a share of `quantile` is answered without failure, and within `bound_ms`.

    `bound_ms` is milliseconds inside the server; None promises answers of any latency. A failed request breaks the
    promise, however fast it failed.
    """

    model: str
    bound_ms: float | None
    quantile: float

    def __post_init__(self) -> None:
        if not self.model:
            raise UsageError("an objective names no model", expected="the name of the model that it is about")
        if not 0.0 < self.quantile < 1.0:
            raise UsageError(
                f"the share of an objective is {self.quantile:g}", expected="between 0 and 1, such as 0.99"
            )
        if self.bound_ms is not None and self.bound_ms <= 0:
            raise UsageError(f"the bound of an objective is {self.bound_ms:g} ms", expected="a bound above 0")

    @property
    def budget(self) -> float:
        """The share of requests that may break the promise."""
        return round(1.0 - self.quantile, 12)

    @property
    def name(self) -> str:
        """`p99-15ms`, or `answered-99.9` where no latency is promised: the value of the label `slo`."""
        percent = f"{self.quantile * 100:.6g}"
        return f"answered-{percent}" if self.bound_ms is None else f"p{percent}-{self.bound_ms:g}ms"

    @property
    def wanted(self) -> str:
        """The promise in words."""
        percent = f"{self.quantile * 100:.6g} %"
        return f"{percent} answered" if self.bound_ms is None else f"{percent} answered within {self.bound_ms:g} ms"


def objectives_of(model: str, bounds: Iterable[Bound]) -> tuple[Objective, ...]:
    """One objective per bound: a latency percentile with its limit, an error rate without one.

    None for a bound on tokens, of which the server's metrics say nothing.
    """
    return tuple(
        Objective(model=model, bound_ms=bound.limit if bound.kind == "latency" else None, quantile=bound.q)
        for bound in bounds
        if bound.kind in ("latency", "errors")
    )


def objectives_for(version: Version, *, p99_ms: float | None = None, slo: Path | None = None) -> tuple[Objective, ...]:
    """The objectives of a version: a bound for 99 %, the bounds of a deploy.toml, or else those it was shown to keep.

    Raises UsageError if both are given, or the file promises nothing.
    """
    if p99_ms is not None and slo is not None:
        raise UsageError("a bound and a file of bounds were given", expected="--p99-ms or --slo, one of them")
    if p99_ms is not None:
        return (Objective(model=version.name, bound_ms=p99_ms, quantile=0.99),)
    return attested_objectives(version) if slo is None else configured_objectives(version.name, slo)


def configured_objectives(model: str, path: Path) -> tuple[Objective, ...]:
    """The objectives of the `[slo]` table of a deploy.toml. Raises UsageError if it promises nothing."""
    bounds = read_settings(path).bounds
    if not bounds:
        raise UsageError(f"[slo] of {path} holds no bound", expected="at least one, such as p99_ms = 15.0")
    return objectives_of(model, bounds)


def attested_objectives(version: Version) -> tuple[Objective, ...]:
    """The bounds that this version was last shown to keep under load; empty where no run passed."""
    for attestation in reversed(attestations(version)):
        if attestation.kind == "slo":
            evidence = SloEvidence.read(attestation.path)
            if evidence.invalid is None and evidence.judgement.verdict is Verdict.PASS:
                return objectives_of(version.name, (result.bound for result in evidence.bounds))
    return ()
