"""Markdown for a CI job's page: verdict first, tables whole, nothing read as markup, short enough."""

import re

import pytest

from deploy.evidence import Verdict
from deploy.report.markdown import slo_markdown
from tests.report.samples import HOSTILE, slo


@pytest.mark.parametrize(("verdict", "symbol"), [(Verdict.PASS, "✅"), (Verdict.FAIL, "❌"), (Verdict.UNDECIDED, "⚠️")])
def test_the_verdict_comes_first(verdict: Verdict, symbol: str) -> None:
    lines = slo_markdown(slo(verdict)).splitlines()
    assert lines[0] == f"## {symbol} {verdict.upper()}: pets:1 at 200 queries/s"


def test_the_promises_are_a_table() -> None:
    lines = slo_markdown(slo(Verdict.FAIL, rate=260)).splitlines()
    start = next(number for number, line in enumerate(lines) if line.startswith("| promise"))
    row = [cell.strip() for cell in lines[start + 2].strip("|").split("|")]
    assert row[0] == r"p99 \<= 15 ms"
    assert row[1:3] == ["105", "4,000"]
    assert row[-1] == "FAIL"


def test_undecided_says_what_would_decide() -> None:
    assert "6,200 more, about 31 s" in slo_markdown(slo(Verdict.UNDECIDED))


def test_an_invalid_run_passes_nothing() -> None:
    page = slo_markdown(slo(invalid="the client could not keep its schedule"))
    assert page.startswith("## ⛔ INVALID")
    assert "PASS" not in page


def test_hostile_text_breaks_no_table_and_becomes_no_markup() -> None:
    page = slo_markdown(slo(Verdict.FAIL, model=HOSTILE, errors={f"{HOSTILE}\n| x | y |": 3}))
    assert not re.search(r"(?<!\\)<", page)
    lines = page.splitlines()
    start = next(number for number, line in enumerate(lines) if line.startswith("| queries"))
    assert len(re.findall(r"(?<!\\)\|", lines[start + 2])) == 3


def test_it_stays_below_what_a_job_summary_takes() -> None:
    errors = {f"{'|' * 3000} error number {number}": number for number in range(1, 3000)}
    evidence = slo(Verdict.FAIL, errors=errors)
    evidence = evidence.model_copy(update={"remarks": ("|" * 5000,) * 3000, "samples": "|" * 90_000})
    page = slo_markdown(evidence)
    assert len(page.encode()) < 60_000
    assert "2979 other errors" in page
