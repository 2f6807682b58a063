"""What two versions differ in, for people: on a terminal, as Markdown, and in the report, whatever the labels hold."""

import io
from pathlib import Path

import pytest
from rich.console import Console

from deploy.evidence import Judgement, Verdict
from deploy.report.diff_markdown import diff_markdown
from deploy.report.diff_terminal import diff_table
from deploy.report.findings import read_findings
from deploy.report.html import render_html
from deploy.report.standing import checks
from deploy.repository.attest import attest
from deploy.repository.layout import Version
from deploy.repository.manifest import version_digest
from deploy.validate.difference_records import (
    AccuracyDifference,
    AnswerDifference,
    Change,
    ClassFlips,
    Decision,
    DecisionDifference,
    DiffEvidence,
    Flip,
    Gate,
    OutputDifference,
    SampleSource,
    SizeDifference,
)
from tests.report.samples import HOSTILE
from tests.repository.samples import PETS, put

FAILED = Judgement(verdict=Verdict.FAIL, reason="30 of 400 real samples flip, 0 may")
FLIPS = 30


def decisions(label: str) -> DecisionDifference:
    flip = Flip(
        source="samples.npz", row=7, output="scores", before=Decision(index=0, label=label, score=3.25),
        after=Decision(index=1, label="dog", score=2.5), margin=0.125, truth="dog",
    )  # fmt: skip
    return DecisionDifference(
        rows=400, decisions=400, flipped=FLIPS, share=0.075, low=0.05, high=0.1, confidence=0.95,
        by_class=(ClassFlips(label=label, decisions=200, flipped=FLIPS, became={"dog": FLIPS}),), flips=(flip,) * FLIPS,
    )  # fmt: skip


def difference(version: Version | None = None, *, label: str = "cat", gates: bool = True) -> DiffEvidence:
    output = OutputDifference(
        output="scores", elements=1200, max_error=0.5, relative_l2=0.01, scale=4.0, eager_multiple=5000.0, misplaced=2,
        decisions=decisions(label),
    )  # fmt: skip
    accuracy = AccuracyDifference(
        rows=400, before=0.9, after=0.95, fixed=25, broken=5, drop=-0.05, low=-0.08, high=-0.02, confidence=0.95
    )
    source = SampleSource(name="samples.npz", rows=400, counted=400, real=True, digest="0" * 64)
    gone = OutputDifference(output="mask", incomparable="only the older version has it")
    answers = AnswerDifference(
        sources=(source,), judged_on="real samples", rows=400, flipped_rows=FLIPS, outputs=(output, gone),
        accuracy=accuracy,
    )  # fmt: skip
    information = Judgement(verdict=Verdict.PASS, reason="no limit was asked for: this is information")
    return DiffEvidence(
        version="pets:2", digest=version_digest(version.folder) if version else "1" * 64, compared="pets:1",
        compared_digest="2" * 64, created="now", command=(), judgement=FAILED if gates else information,
        gates=(Gate(name="max_flipped_rows", limit=0, judgement=FAILED),) if gates else (),
        changes=(Change(part="config", what="max_batch_size", before="8", after="16"),),
        size=SizeDifference(artifact_before=100, artifact_after=150, total_before=200, total_after=260),
        answers=answers, latency=None, left_out={"latency": "not asked for"},
    )  # fmt: skip


SAID = (
    "pets:1", "30 of 400 real samples flip, 0 may", "cat (3.25)", "dog (2.5)", "5,000x",
    "only the older version has it",
    "2 elements are finite in one version only", "25 fixed, 5 broken", "100 bytes before, 150 after",
)  # fmt: skip


def in_terminal(evidence: DiffEvidence, width: int = 200) -> str:
    stream = io.StringIO()
    Console(file=stream, width=width).print(diff_table(evidence))
    return stream.getvalue()


def test_the_terminal_says_it_all_and_keeps_to_80_columns() -> None:
    text = in_terminal(difference())
    assert [
        said for said in (*SAID, "FAIL  pets:1 -> pets:2", "10 more flips are in the JSON") if said not in text
    ] == []
    assert max(map(len, in_terminal(difference(label=HOSTILE), 80).splitlines())) <= 80


def test_markdown_says_it_all_and_takes_nothing_for_markup() -> None:
    text = diff_markdown(difference())
    assert text.startswith("## ❌ FAIL: pets:1 → pets:2\n")
    plain = text.replace("\\", "")
    assert [said for said in (*SAID, "--max-flipped-rows", "10 more flips") if said not in plain] == []
    hostile = diff_markdown(difference(label=HOSTILE))
    assert "<script>" not in hostile
    assert (
        len({line.replace("\\|", "").count("|") for line in hostile.splitlines() if line.startswith("| samples")}) == 1
    )
    assert len(hostile) < 60_000


def test_without_a_limit_nothing_is_called_passed() -> None:
    evidence = difference(gates=False)
    assert "PASS" not in in_terminal(evidence)
    assert "COMPARED" in in_terminal(evidence)
    assert diff_markdown(evidence).startswith("## Compared: pets:1 → pets:2\n")


@pytest.mark.parametrize("gates", [True, False], ids=["limits", "none"])
def test_the_report_shows_it_and_counts_it_only_with_a_limit(tmp_path: Path, gates: bool) -> None:
    put(tmp_path / "models", PETS)
    version = put(tmp_path / "models", PETS).version
    attest(version, "diff", difference(version, label=HOSTILE, gates=gates))
    findings = read_findings(version)
    page = render_html(findings).decode()
    assert "Against pets:1" in page
    assert "Decisions that flip: the first 20, 10 more are in its JSON" in page
    assert "<script>alert" not in page
    words = [check.word for check in checks(findings) if check.name.startswith("diff")]
    assert words == (["FAIL"] if gates else [])
