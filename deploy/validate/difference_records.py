"""What two versions of one model differ in: decisions, numbers, time, size, and what they were made of.

Owns the records that are kept as attestations of the newer one; `deploy.release` fills them, `report` prints them.
"""

from typing import Literal

from pydantic import Field

from deploy.errors import ExitCode
from deploy.evidence import Judgement, Verdict
from deploy.latency_evidence import LatencyEvidence
from deploy.records import Record

REAL = "real samples"
SEEDED = "seeded inputs"


class SampleSource(Record):
    """Rows that both versions were asked. `real` is False for seeded inputs; `digest` is that of the arrays.

    `counted` are the rows in which decisions are counted: one that a source before this one holds counts there.
    """

    name: str
    rows: int
    counted: int
    real: bool
    digest: str


class Decision(Record):
    """What one version decided: the class by index, by label where labels are known, and its score."""

    index: int
    label: str | None
    score: float

    def __str__(self) -> str:
        return f"{self.index if self.label is None else self.label} ({self.score:.4g})"


class Flip(Record):
    """One decision that differs. `row` is the sample's number in its source, `place` where in a dense output.

    `margin` is how far the older version's first score was from its second: a small one is easily turned by rounding.
    """

    source: str
    row: int
    output: str
    place: tuple[int, ...] = ()
    before: Decision
    after: Decision
    margin: float
    truth: str | None = None


class ClassFlips(Record):
    """Of the `decisions` for one class by the older version, how many differ, and what they became."""

    label: str
    decisions: int
    flipped: int
    became: dict[str, int]


class DecisionDifference(Record):
    """The decisions of one output that differ, over all counted rows of one kind.

    `share` is the mean over rows of the share of a row's decisions that differ; `low` and `high` enclose it at
    `confidence` (Clopper and Pearson; exact where a row has one decision, wider than exact where it has many).
    `flips` are the first of them, `left_out` how many more there are.
    """

    rows: int
    decisions: int
    flipped: int
    share: float
    low: float
    high: float
    confidence: float
    by_class: tuple[ClassFlips, ...]
    flips: tuple[Flip, ...]
    left_out: int = 0


class OutputDifference(Record):
    """How far one output of the two versions is apart, over every row that was asked.

    `relative_l2` is the norm of the difference over that of the older version's values. `eager_multiple` is the largest
    error over what parity allows one unit of, eager's own error and its floor; None where no evidence says what
    that is. `misplaced` counts elements that are finite in one version only. `decisions_lost`: it carried decisions in
    the older version, and nothing of the newer can be held against them.
    """

    output: str
    incomparable: str = ""
    decisions_lost: bool = False
    elements: int = 0
    max_error: float = 0.0
    relative_l2: float = 0.0
    scale: float = 0.0
    eager_multiple: float | None = None
    misplaced: int = 0
    decisions: DecisionDifference | None = None
    seeded_decisions: DecisionDifference | None = None


class AccuracyDifference(Record):
    """Both versions against the true classes. `drop` is before less after, enclosed by `low` and `high`.

    `fixed` rows are right only now, `broken` ones were right only before.
    """

    rows: int
    before: float
    after: float
    fixed: int
    broken: int
    drop: float
    low: float
    high: float
    confidence: float


class AnswerDifference(Record):
    """What both versions answered to the same rows. `judged_on` says which rows the gates look at.

    `flipped_rows` counts the rows among those in which any decision differs.
    """

    sources: tuple[SampleSource, ...]
    judged_on: Literal["real samples", "seeded inputs"]
    rows: int
    flipped_rows: int
    outputs: tuple[OutputDifference, ...]
    accuracy: AccuracyDifference | None = None


class SizeDifference(Record):
    """Bytes of the artifact and of the whole version."""

    artifact_before: int
    artifact_after: int
    total_before: int
    total_after: int

    @property
    def ratio(self) -> float:
        """The artifact's growth; above 1 is larger."""
        return self.artifact_after / max(self.artifact_before, 1)


class Change(Record):
    """One fact that differs: in which part, what, from what to what, and what follows for clients where something does.

    A value that one version does not have is empty.
    """

    part: str
    what: str
    before: str
    after: str
    notice: str = ""

    def __str__(self) -> str:
        said = f"{self.what}: {self.before or 'unset'} -> {self.after or 'unset'}"
        return f"{said}; {self.notice}" if self.notice else said


class Gate(Record):
    """One limit that was asked for, and whether the newer version keeps it."""

    name: str
    limit: float
    judgement: Judgement


class DiffEvidence(Record):
    """A version held against another one of the same model.

    `version` and `compared` are `name:N`, each with the digest of its manifest; `compared` is the older. The judgement
    is that of the gates; without one it is a pass that says so. `answers` and `latency` are None where they were
    not compared, for the reason in `left_out`.
    """

    schema_version: Literal[1] = 1
    version: str
    digest: str
    compared: str
    compared_digest: str
    created: str
    command: tuple[str, ...]
    judgement: Judgement
    gates: tuple[Gate, ...] = ()
    changes: tuple[Change, ...]
    size: SizeDifference
    answers: AnswerDifference | None
    latency: LatencyEvidence | None
    left_out: dict[str, str] = Field(default_factory=dict)

    @property
    def exit_code(self) -> ExitCode:
        """1 where a gate failed or stayed undecided, else 0."""
        return ExitCode.OK if self.judgement.verdict is Verdict.PASS else ExitCode.NO
