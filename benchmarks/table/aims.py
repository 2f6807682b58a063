"""Whether what the project aims at is met by the figures: met, missed, or open.

Owns the aims. Called by page and assemble.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from benchmarks.table import sums
from benchmarks.table.records import ModelRecord
from deploy.validate.statistics import Estimate

MET, MISSED, OPEN = "met", "missed", "open"
# On so many models ours is to be clearly above the best route by hand.
_CLEARLY = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class Aim:
    """One aim: what is wanted of which figure, what was found over `n` models, and whether that is met."""

    name: str
    wanted: str
    found: str
    verdict: str
    n: int


@dataclass(frozen=True, slots=True, kw_only=True)
class _Bound:
    """A figure is to be at least, or at most, so much."""

    limit: float
    least: bool

    def __str__(self) -> str:
        return f"at {'least' if self.least else 'most'} {self.limit:g}"

    def judge(self, low: float, high: float) -> str:
        """Met or missed where the whole interval lies on one side."""
        if self.least:
            return MET if low >= self.limit else MISSED if high < self.limit else OPEN
        return MET if high <= self.limit else MISSED if low > self.limit else OPEN


def aims(models: Sequence[ModelRecord]) -> list[Aim]:
    """Every aim, judged by these models; those of speed are open where the control of one shows too noisy a machine."""
    n, places = len(models), [sums.standing(model) for model in models]
    doubt = sums.NOISY in places
    eager = sums.geometric_mean(map(sums.against_eager, models))
    best = sums.geometric_mean(map(sums.against_best, models))
    formats = sums.geometric_mean(map(sums.aoti_time_over_ort, models))
    speeds = [
        ("ours over eager, batch 1, geometric mean", eager, _Bound(limit=2.2, least=True)),
        ("ours over the best route by hand, batch 1, geometric mean", best, _Bound(limit=1.0, least=True)),
        (
            "our AOTInductor's time over our ONNX Runtime's, batch 1, geometric mean",
            formats,
            _Bound(limit=1.2, least=False),
        ),
    ]
    found = [
        Aim(name=name, wanted=str(bound), found=shown(mean), verdict=_verdict(mean, bound, doubt=doubt), n=n)
        for name, mean, bound in speeds
    ]
    return [*found[:1], *_places(models, places), *found[1:], *_cold(models)]


def shown(found: Estimate | None) -> str:
    """The value with its interval."""
    return "—" if found is None else f"{found.value:.2f} [{found.low:.2f}, {found.high:.2f}]"


def _verdict(found: Estimate | None, bound: _Bound, *, doubt: bool) -> str:
    return OPEN if found is None or doubt else bound.judge(found.low, found.high)


def _places(models: Sequence[ModelRecord], places: Sequence[str]) -> list[Aim]:
    """On how many models ours is below and above the best route by hand."""
    named = {
        place: [model.model for model, one in zip(models, places, strict=True) if one == place]
        for place in (sums.BELOW, sums.ABOVE)
    }
    below, above = named[sums.BELOW], named[sums.ABOVE]
    known = not {sums.UNKNOWN, sums.NOISY} & {*places}
    enough = MISSED if known and len(models) >= _CLEARLY else OPEN
    return [
        Aim(
            name="models on which ours is below the best route by hand",
            wanted="none",
            found=", ".join(below) or "none",
            verdict=MISSED if below else MET if known else OPEN,
            n=len(models),
        ),
        Aim(
            name="models on which ours is clearly above the best route by hand",
            wanted=f"at least {_CLEARLY}",
            found=f"{len(above)}" + (f": {', '.join(above)}" if above else ""),
            verdict=MET if len(above) >= _CLEARLY else enough,
            n=len(models),
        ),
    ]


def _cold(models: Sequence[ModelRecord]) -> list[Aim]:
    """Wall times of single runs: the geometric mean alone decides, and the range over the models stands beside it."""
    wanted = [
        (
            "conversion to both formats, cold, default effort, over the script by hand",
            sums.conversion_ratio,
            _Bound(limit=0.9, least=False),
        ),
        (
            "Model Navigator's optimize() over the same stages of ours",
            sums.navigator_ratio,
            _Bound(limit=5.0, least=True),
        ),
    ]
    judged = []
    for name, ratio, bound in wanted:
        found = [*filter(None, map(ratio, models))]
        mean = sums.mean_and_range(found)
        if mean:
            text = f"{mean.value:.2f} ({mean.low:.2f} to {mean.high:.2f})"
            verdict = bound.judge(mean.value, mean.value)
            judged.append(Aim(name=name, wanted=str(bound), found=text, verdict=verdict, n=len(found)))
    return judged
