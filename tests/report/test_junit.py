"""JUnit XML as CI systems read it: one case per promise and one for the run."""

from xml.etree import ElementTree

import pytest

from deploy.errors import UnfinishedError
from deploy.evidence import Verdict
from deploy.report.junit import junit_xml, unfinished_xml
from deploy.slo.records import RateEvidence, RateStep, SloEvidence
from tests.report.samples import FAILED, HOSTILE, slo


def suite(evidence: SloEvidence) -> ElementTree.Element:
    found = ElementTree.fromstring(junit_xml(evidence)).find("testsuite")
    assert found is not None
    return found


def outcomes(evidence: SloEvidence) -> dict[str, tuple[str, str] | None]:
    """Tag and type of what each case ended in, None for a pass."""
    return {
        case.attrib["name"]: next(((child.tag, child.attrib["type"]) for child in case), None)
        for case in suite(evidence).iter("testcase")
    }


def test_a_pass_is_three_cases_without_a_word() -> None:
    assert outcomes(slo()) == {"the run": None, "p99 <= 15 ms": None, "error rate <= 0.001": None}
    assert {name: suite(slo()).attrib[name] for name in ("name", "tests", "failures", "errors", "time")} == {
        "name": "slo pets:1", "tests": "3", "failures": "0", "errors": "0", "time": "61.300",
    }  # fmt: skip


@pytest.mark.parametrize("verdict", [Verdict.FAIL, Verdict.UNDECIDED])
def test_a_promise_that_did_not_pass_is_a_failure_of_that_type(verdict: Verdict) -> None:
    expected = {"the run": None, "p99 <= 15 ms": ("failure", verdict.value), "error rate <= 0.001": None}
    assert outcomes(slo(verdict)) == expected
    assert suite(slo(verdict)).attrib["failures"] == "1"


def test_an_invalid_run_is_an_error_in_every_case() -> None:
    evidence = slo(invalid="the server went away")
    assert set(outcomes(evidence).values()) == {("error", "invalid")}
    assert (suite(evidence).attrib["errors"], suite(evidence).attrib["failures"]) == ("3", "0")


def test_a_run_without_a_record_is_an_error() -> None:
    text = unfinished_xml("pets:2", UnfinishedError(HOSTILE, fix="start it"))
    found = ElementTree.fromstring(text).find("testsuite")
    assert found is not None
    assert {name: found.attrib[name] for name in ("name", "tests", "failures", "errors")} == {
        "name": "slo pets:2", "tests": "1", "failures": "0", "errors": "1",
    }  # fmt: skip


def test_a_search_in_which_every_run_was_invalid_is_an_error() -> None:
    step = RateStep(rate=50.0, verdict=Verdict.UNDECIDED, reason="late", queries=900, p99=None, invalid=True)
    found = RateEvidence(
        model="pets", version=None, judgement=FAILED, highest=None, next_rate=50.0, steps=(step,), final=None
    )
    document = ElementTree.fromstring(junit_xml(found)).find("testsuite")
    assert document is not None
    assert (document.attrib["failures"], document.attrib["errors"]) == ("0", "1")


def test_a_failure_that_no_promise_explains_is_the_runs_own() -> None:
    evidence = slo().model_copy(update={"judgement": FAILED})
    assert outcomes(evidence)["the run"] == ("failure", "fail")


def test_a_search_in_which_no_rate_passed_is_a_failure() -> None:
    step = RateStep(rate=50.0, verdict=Verdict.FAIL, reason=HOSTILE, queries=900, p99=None)
    found = RateEvidence(
        model="pets", version=None, judgement=FAILED, highest=None, next_rate=50.0, steps=(step,), final=None
    )
    document = ElementTree.fromstring(junit_xml(found)).find("testsuite")
    assert document is not None
    assert {name: document.attrib[name] for name in ("name", "tests", "failures", "errors")} == {
        "name": "slo pets", "tests": "1", "failures": "1", "errors": "0",
    }  # fmt: skip
    assert "50 900 - FAIL" in (document.findtext("system-out") or "")


def test_hostile_text_leaves_the_document_whole() -> None:
    evidence = slo(invalid=HOSTILE, model=HOSTILE, errors={HOSTILE: 3})
    message = suite(evidence).find("testcase/error")
    assert message is not None
    assert message.attrib["message"].startswith("<script>alert('x')</script>|$")
