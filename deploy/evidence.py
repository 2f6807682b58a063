"""What was proven while packaging: verdicts, parity and served parity.

Owns the records of it that lie in a version's `evidence/`; the rooms `validate` and `serve` fill them, `repository`
embeds their verdicts, `report` prints them. What was measured is in `latency_evidence`.
"""

from enum import StrEnum
from typing import Literal, Self

from deploy.records import Record


class Verdict(StrEnum):
    """What a check decided; it alone decides an exit code."""

    PASS = "pass"  # noqa: S105 - not a password
    FAIL = "fail"
    UNDECIDED = "undecided"


class Judgement(Record):
    """A verdict with its reason, one sentence a release engineer can act on."""

    verdict: Verdict
    reason: str

    @property
    def passed(self) -> bool:
        """True for pass only: undecided does not release anything."""
        return self.verdict is Verdict.PASS

    @classmethod
    def yes(cls, reason: str) -> Self:
        """A pass."""
        return cls(verdict=Verdict.PASS, reason=reason)

    @classmethod
    def no(cls, reason: str) -> Self:
        """A fail."""
        return cls(verdict=Verdict.FAIL, reason=reason)

    @classmethod
    def undecided(cls, reason: str) -> Self:
        """What could not be told, which releases nothing either."""
        return cls(verdict=Verdict.UNDECIDED, reason=reason)


class WorstElement(Record):
    """Where one output came nearest to, or went farthest over, its budget."""

    case: str
    sample: int
    index: tuple[int, ...]
    reference: float
    found: float


class OutputParity(Record):
    """The errors of one output over all cases, against float64, as multiples of eager's own error.

    `max_multiple` and `l2_multiple` are error / budget-unit; the limits are in `ParityEvidence`.
    `decisions_compared` counts the rows whose margin exceeds the allowed error. `sqnr_db` is the signal over the
    error in dB, of int8 only.
    """

    output: str
    max_multiple: float
    l2_multiple: float
    max_error: float
    eager_max_error: float
    reference_scale: float
    worst: WorstElement | None
    decisions_compared: int = 0
    decisions_flipped: int = 0
    sqnr_db: float | None = None


class OutputBudget(Record):
    """What one output may be off by in one family of inputs: a unit of error, and how many of it are allowed.

    A unit is eager's own error against the reference plus its share of the floor: `max_unit` of the largest absolute
    error, `l2_unit` of the root mean square. `scale` is the largest magnitude of the reference.
    """

    output: str
    family: str
    max_unit: float
    l2_unit: float
    max_limit: float
    l2_limit: float
    scale: float
    eager_max_error: float

    @property
    def allowed(self) -> float:
        """The largest absolute error that passes."""
        return self.max_unit * self.max_limit


class ParityFailure(Record):
    """One thing that did not hold, named so that its cause can be found."""

    check: str
    output: str
    case: str
    message: str
    sample: int | None = None
    index: tuple[int, ...] = ()
    reference: float | None = None
    found: float | None = None


class FaultPlace(Record):
    """Where a failure begins: a packaged constant, an ONNX node, or a prefix of the program."""

    kind: str
    name: str
    message: str
    reproduced: bool


class MetricEvidence(Record):
    """A task's own measure of an artifact beside the fp32 checkpoint's, on the same labelled rows.

    `before` and `after` are shares of right answers; `worsened` counts the rows that only the checkpoint has right,
    `improved` those that only the artifact has. `drop` and its interval are in percentage points.
    """

    metric: Literal["accuracy"] = "accuracy"
    rows: int
    before: float
    after: float
    worsened: int
    improved: int
    drop: float
    low: float
    high: float
    confidence: float
    max_drop: float
    judgement: Judgement


class ParityEvidence(Record):
    """The parity of one artifact with the float64 reference.

    `reference` says how the reference was got: `float64`, or `declared tolerance` where float64 cannot run. In another
    `precision` than fp32 the multiples are of eager's errors in that precision, and for int8 of the noise that passes;
    with `metric` the task's own measure decided instead.
    """

    format: str
    judgement: Judgement
    reference: str
    max_limit: float
    l2_limit: float
    cases: tuple[str, ...]
    rows: int
    outputs: tuple[OutputParity, ...]
    failures: tuple[ParityFailure, ...] = ()
    place: FaultPlace | None = None
    bitwise_repeatable: bool | None = None
    bitwise_batch_invariant: bool | None = None
    seed: int
    precision: str = "fp32"
    metric: MetricEvidence | None = None


class BehaviourEvidence(Record):
    """Whose model it is: eager against what the training side computed for the same samples.

    `status` is `confirmed`, `refuted` (not the architecture that was trained) or `unconfirmed` (nothing to go by).
    `relative_error` is the worst output's L2 error over the L2 norm of the expected values. Accuracy is eager's.
    """

    status: Literal["confirmed", "refuted", "unconfirmed"]
    statement: str
    rows: int = 0
    relative_error: float | None = None
    relative_limit: float | None = None
    labelled_rows: int = 0
    accuracy: float | None = None

    @property
    def judgement(self) -> Judgement:
        """Pass where confirmed, fail where refuted, undecided where there is nothing to go by."""
        verdicts = {"confirmed": Verdict.PASS, "refuted": Verdict.FAIL, "unconfirmed": Verdict.UNDECIDED}
        return Judgement(verdict=verdicts[self.status], reason=self.statement)


class ServedCheck(Record):
    """One way the model was asked, and what came of it."""

    name: str
    protocol: str
    requests: int
    rows: int
    judgement: Judgement


class ServedEvidence(Record):
    """The artifact's answers from a real tritonserver, and what exactly served them.

    `mode` is `served (native)` or `served (adapted)`; `config_difference` lists what the adapted view changed.
    `executions` and `inferences` are the server's own counters over the concurrent check. `ready_seconds` is from start
    to ready, warm-up included; `peak_memory` the most that the server's processes took, in bytes, 0 in versions that
    were packaged before it was recorded.
    """

    judgement: Judgement
    mode: str
    engine: str
    release: str
    backend: str
    config_difference: tuple[str, ...]
    checks: tuple[ServedCheck, ...]
    executions: int
    inferences: int
    ready_seconds: float
    peak_memory: int = 0
