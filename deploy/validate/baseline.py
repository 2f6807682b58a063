"""What every artifact of a checkpoint is judged by: reference values, and budgets taken from eager's own errors.

Owns how a budget is formed and what makes a reference worthless. Numpy only; the models ran elsewhere. Called by run,
and by serve through `RowSet`.

Budgets are per output and per family, over all of that family's calls. Per call would be too tight: in one row of
ten logits eager may be right by luck. Over all families would be too wide: the errors of large inputs would excuse
errors a thousand times too large on real ones.

One run of eager can be right by luck too, where errors hang on few roundings: an ill-conditioned model, or a constant
image, every pixel of which rounds alike. So eager's error is the largest of several runs, in all but the first of
which every weight is off by two epsilons. Against one run alone, clean ways to run a model came to 13.9 times (max) and
10.0 times (L2) eager's error for mobilenet_v3_small, 10.1 and 7.6 for efficientnet_b0; against all, to 1.4 times.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from deploy.errors import UnfinishedError
from deploy.evidence import OutputBudget, ParityFailure
from deploy.spec import BATCH, Spec, TensorSpec
from deploy.validate.cases import Case
from deploy.validate.compare import Comparison, Errors, as_rows, compare, same_kind, spread
from deploy.validate.families import CONSTANT, Pool

Arrays = list[np.ndarray]
Budgets = Mapping[tuple[str, str], OutputBudget]
FLOAT64 = "float64"
_VACUOUS = 1000.0
# A thousand times eager's own error is in half precision the output itself. There this share of the output's scale
# tells that it follows the input, where it is so many times that error too.
_TELLING_SHARE = 0.05
_TELLING_MULTIPLE = 20.0
# Equal addends round alike, so over a constant image a plain sum is off by n rounding errors where others have sqrt(n)
# (Higham, Accuracy and Stability of Numerical Algorithms, 2nd ed. 2002, section 4.2). Eager sums in pairs, AOTInductor
# in lanes: a clean mobilenet_v3_small came to 15.7 times eager's error there, some 50 epsilons of the scale.
_COHERENT = 8.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """How many units of eager's own error pass, and the floor in epsilons of the output's scale."""

    max_multiple: float
    l2_multiple: float
    floor_epsilons: float = 8.0


# Half precisions are judged against eager in that same dtype, which rounds where the artifact does.
LIMITS = {
    "fp32": Limits(max_multiple=10.0, l2_multiple=5.0),
    "fp16": Limits(max_multiple=2.0, l2_multiple=2.0),
    "bf16": Limits(max_multiple=2.0, l2_multiple=2.0),
    # A unit is then the most noise that passes: `precision` says how much that is.
    "int8": Limits(max_multiple=1.0, l2_multiple=1.0),
}
_UNITS = {"fp32": "eager's own", "int8": "the noise that passes"}
# Of the output's scale; used only where the checkpoint cannot run in float64.
DECLARED_TOLERANCE = {"float64": 1e-10, "float32": 1e-4, "float16": 1e-2}


@dataclass(frozen=True, slots=True, kw_only=True)
class RowSet:
    """The rows of one family, the reference's values for them, and which values eager itself can reproduce."""

    pool: Pool
    reference: tuple[np.ndarray, ...]
    judged: tuple[np.ndarray, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """What is asked of the reference and of eager: the contract, the rows and the calls."""

    spec: Spec
    pools: tuple[Pool, ...]
    cases: tuple[Case, ...]
    seed: int
    precision: str = "fp32"
    allow_constant_output: bool = False

    @property
    def limits(self) -> Limits:
        """The limits of the precision asked for."""
        return LIMITS[self.precision]

    @property
    def unit(self) -> str:
        """What errors are counted in, in words."""
        return _UNITS.get(self.precision, f"eager's own in {self.precision}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Baseline:
    """What artifacts are judged by. `failures` are what no artifact could make good, e.g. a vacuous reference.

    `rows` is keyed by family, `budgets` by output and family; `reference` says how the values were got.
    """

    question: Question
    rows: Mapping[str, RowSet]
    budgets: Budgets
    reference: str
    failures: tuple[ParityFailure, ...] = ()


def make_baseline(
    question: Question, reference: Mapping[str, Arrays], eager: Iterable[tuple[Case, Arrays]], *, mixed: Sequence[str]
) -> Baseline:
    """The baseline from the reference's rows by family and eager's outputs call by call; a run's calls share a name.

    `mixed` names the families in which the reference gave another answer to a row alone than in a batch.
    Raises UnfinishedError if eager's outputs do not fit the spec.
    """
    judged = _all_judged(reference)
    runs: dict[tuple[str, str], dict[str, list[Comparison]]] = {}
    pools = {pool.family: pool for pool in question.pools}
    for case, found in eager:
        check_outputs(question.spec, case, found, pool=pools[case.family])
        for index, output in enumerate(question.spec.outputs):
            comparison = _compare_eager(output, reference[case.family][index], case, found[index])
            runs.setdefault((output.name, case.family), {}).setdefault(case.name, []).append(comparison)
            _narrow(judged[case.family][index], reference[case.family][index], case, as_rows(found[index], output))
    budgets = {
        (output.name, family): _budget(question, output, family, rows=rows, runs=runs[output.name, family].values())
        for family, outputs in reference.items()
        for output, rows in zip(question.spec.outputs, outputs, strict=True)
    }
    failures = [_mixed_failure(family) for family in mixed]
    return _assemble(question, reference, budgets, judged=judged, kind=FLOAT64, failures=failures)


def declared_baseline(question: Question, eager: Iterable[tuple[Case, Arrays]], *, reason: str) -> Baseline:
    """The baseline where float64 cannot run: eager's own outputs, and a declared tolerance per dtype."""
    reference: dict[str, Arrays] = {}
    pools = {pool.family: pool for pool in question.pools}
    for case, found in eager:
        check_outputs(question.spec, case, found, pool=pools[case.family])
        held = reference.setdefault(case.family, [])
        for index, output in enumerate(question.spec.outputs):
            rows = as_rows(found[index], output)
            if len(held) <= index:
                held.append(np.zeros((pools[case.family].rows, *rows.shape[1:])))
            held[index][list(case.rows)] = rows
    budgets = {
        (output.name, family): _declared_budget(question, output, family, rows)
        for family, outputs in reference.items()
        for output, rows in zip(question.spec.outputs, outputs, strict=True)
    }
    kind = f"declared tolerance (float64 cannot run: {reason})"
    return _assemble(question, reference, budgets, judged=_all_judged(reference), kind=kind, failures=[])


def check_outputs(spec: Spec, case: Case, outputs: Sequence[np.ndarray], *, pool: Pool) -> None:
    """Raises UnfinishedError if eager's outputs are not those the exported program declares."""
    problem = structure_problem(spec, case, outputs, pool=pool)
    if problem:
        raise UnfinishedError(
            f"the checkpoint's own outputs do not fit the exported program: {problem} ({case.name})",
            expected="the same outputs from both",
        )


def structure_problem(spec: Spec, case: Case, outputs: Sequence[np.ndarray], *, pool: Pool) -> str:
    """What is wrong with the number, dtypes or shapes of the outputs of one call; empty if nothing is."""
    if len(outputs) != len(spec.outputs):
        return f"{len(outputs)} outputs instead of {len(spec.outputs)}"
    sizes = {**spec.sizes_of(pool.inputs), BATCH: len(case.rows)}
    for tensor, array in zip(spec.outputs, outputs, strict=True):
        if array.dtype.name != tensor.dtype:
            return f"output {tensor.name!r} is {array.dtype} instead of {tensor.dtype}"
        wanted = [sizes.get(size, size) if isinstance(size, str) else size for size in tensor.shape]
        fits = len(wanted) == array.ndim and all(
            isinstance(size, str) or size == actual for size, actual in zip(wanted, array.shape, strict=True)
        )
        if not fits:
            return f"output {tensor.name!r} has the shape {list(array.shape)} instead of {wanted}"
        if spec.batch is not None and tensor.shape[:1] != (BATCH,):
            return f"output {tensor.name!r} has no batch dimension, so that a batch cannot be split again"
    return ""


def vacuous_outputs(question: Question, reference: Mapping[str, Arrays], budgets: Budgets) -> list[ParityFailure]:
    """One failure for each output that hardly depends on the input in any family, as with a zero head."""
    failures = []
    for index, output in enumerate(question.spec.outputs):
        telling = [
            _tells(spread(rows[index]), output, budgets[output.name, family]) for family, rows in reference.items()
        ]
        if not any(telling):
            failures.append(_vacuous_failure(output, max(spread(rows[index]) for rows in reference.values())))
    return failures


def _tells(width: float, output: TensorSpec, budget: OutputBudget) -> bool:
    """Whether an output with this spread over the rows follows the input, as far as eager can tell."""
    resolution = _resolution(output, budget)
    return width > min(_VACUOUS * resolution, max(_TELLING_SHARE * budget.scale, _TELLING_MULTIPLE * resolution))


def _vacuous_failure(output: TensorSpec, widest: float) -> ParityFailure:
    return ParityFailure(
        check="vacuous",
        output=output.name,
        case="all",
        message=(
            f"output {output.name!r} hardly changes with the input (spread {widest:.3g}): parity would prove nothing, "
            "whatever the layers before compute. Is its last layer untrained (all zeros)? "
            "If it is meant to be constant, pass --allow-constant-output"
        ),
    )


def _mixed_failure(family: str) -> ParityFailure:
    return ParityFailure(
        check="rows",
        output="",
        case=family,
        message=(
            "the checkpoint itself answers a row differently alone than in a batch: "
            "a server that merges requests would change answers. Use --max-batch 1"
        ),
    )


def _assemble(
    question: Question,
    reference: Mapping[str, Arrays],
    budgets: Budgets,
    *,
    judged: Mapping[str, Arrays],
    kind: str,
    failures: list[ParityFailure],
) -> Baseline:
    if not question.allow_constant_output:
        failures = failures + vacuous_outputs(question, reference, budgets)
    rows = {
        pool.family: RowSet(pool=pool, reference=tuple(reference[pool.family]), judged=tuple(judged[pool.family]))
        for pool in question.pools
    }
    return Baseline(question=question, rows=rows, budgets=budgets, reference=kind, failures=tuple(failures))


def _all_judged(reference: Mapping[str, Arrays]) -> dict[str, Arrays]:
    return {family: [np.ones(rows.shape, bool) for rows in outputs] for family, outputs in reference.items()}


def _narrow(judged: np.ndarray, reference: np.ndarray, case: Case, found: np.ndarray) -> None:
    """Leave out what eager itself cannot reproduce: an overflow, or an integer decided by a near tie."""
    for position, row in enumerate(case.rows):
        agrees = same_kind(reference[row], found[position])
        judged[row] &= agrees if found.dtype.kind == "f" else agrees & (reference[row] == found[position])


def _compare_eager(output: TensorSpec, reference: np.ndarray, case: Case, found: np.ndarray) -> Comparison:
    wanted = reference[list(case.rows)]
    return compare(wanted, as_rows(found, output), judged=np.full(wanted.shape, is_floating(output)))


def _budget(
    question: Question, output: TensorSpec, family: str, *, rows: np.ndarray, runs: Iterable[Sequence[Comparison]]
) -> OutputBudget:
    limits, errors = question.limits, [Errors.of(run) for run in runs]
    max_error = max(run.max_error for run in errors)
    rms_error = max(run.rms_error for run in errors)
    floor = limits.floor_epsilons * epsilon(output) * (_COHERENT if family == CONSTANT else 1.0)
    return OutputBudget(
        output=output.name,
        family=family,
        max_unit=max_error + floor * _scale(rows) / limits.max_multiple,
        l2_unit=rms_error + floor * _root_mean_square(rows) / limits.l2_multiple,
        max_limit=limits.max_multiple,
        l2_limit=limits.l2_multiple,
        scale=_scale(rows),
        eager_max_error=max_error,
    )


def _declared_budget(question: Question, output: TensorSpec, family: str, rows: np.ndarray) -> OutputBudget:
    limits, tolerance = question.limits, DECLARED_TOLERANCE.get(output.dtype, 0.0)
    return OutputBudget(
        output=output.name,
        family=family,
        max_unit=tolerance * _scale(rows) / limits.max_multiple,
        l2_unit=tolerance * _root_mean_square(rows) / limits.l2_multiple,
        max_limit=limits.max_multiple,
        l2_limit=limits.l2_multiple,
        scale=_scale(rows),
        eager_max_error=0.0,
    )


def is_floating(output: TensorSpec) -> bool:
    """True where an output has rounding errors; the others must be equal."""
    return "float" in output.dtype


def epsilon(output: TensorSpec) -> float:
    """The machine epsilon of the output's dtype; 0 for integers."""
    return float(np.finfo(output.dtype).eps) if is_floating(output) else 0.0


def _resolution(output: TensorSpec, budget: OutputBudget) -> float:
    """The least difference that eager can resolve, even where it happens to be exact."""
    return max(budget.eager_max_error, epsilon(output) * budget.scale)


def _scale(rows: np.ndarray) -> float:
    return float(np.abs(rows[np.isfinite(rows)]).max(initial=0.0))


def _root_mean_square(rows: np.ndarray) -> float:
    finite = rows[np.isfinite(rows)]
    return math.sqrt(float(np.square(finite, dtype=np.float64).mean())) if finite.size else 0.0
