"""Which rates a search tries, and what it claims, with load runs whose outcome is known."""

from dataclasses import replace

import pytest

from deploy.errors import ExitCode
from deploy.evidence import Judgement, Verdict
from deploy.slo.rates import Check, find_rate
from deploy.slo.records import Bound, SloEvidence
from deploy.slo.request import SloRequest
from tests.report.samples import slo as slo_evidence

REQUEST = SloRequest(
    reference="pets:3", url="localhost:1", bounds=(Bound(kind="latency", q=0.99, limit=15.0),), rate=100.0
)


def capacity(limit: float, *, client: float = 1e9, liar: bool = False) -> tuple[Check, list[SloRequest]]:
    """Runs that pass up to `limit` and prove nothing beyond `client`; a liar passes short runs only."""
    asked: list[SloRequest] = []

    def check(request: SloRequest) -> SloEvidence:
        asked.append(request)
        passes = request.rate <= limit and not (liar and request.min_seconds > 10)
        verdict = Verdict.PASS if passes else Verdict.FAIL
        return slo_evidence().model_copy(
            update={
                "rate": request.rate,
                "judgement": Judgement(verdict=verdict, reason="by decree"),
                "invalid": "the client could not keep its schedule" if request.rate > client else None,
            }
        )

    return check, asked


@pytest.mark.parametrize("limit", [15.0, 37.0, 100.0, 101.0, 740.0, 6000.0])
def test_the_limit_is_found_within_five_percent_and_confirmed_in_full(limit: float) -> None:
    check, asked = capacity(limit)
    found = find_rate(REQUEST, check=check)
    assert found.judgement.verdict is Verdict.PASS
    assert found.highest is not None
    assert limit / 1.05 <= found.highest <= limit
    assert found.next_rate is not None
    assert limit < found.next_rate <= found.highest * 1.05
    assert asked[-1] == replace(REQUEST, rate=found.highest), "the last run has its full length"
    assert {request.min_seconds for request in asked[:-1]} == {5.0}
    assert len(asked) <= 16


def test_no_rate_at_all_is_a_fail_soon() -> None:
    check, asked = capacity(0.01)
    found = find_rate(REQUEST, check=check)
    assert (found.judgement.verdict, found.highest, found.final) == (Verdict.FAIL, None, None)
    assert (found.model, found.version) == ("pets", 3)
    assert [request.rate for request in asked] == [100, 50, 25, 12.5], "at 6/s a minute is too short for any pass"


def test_a_client_that_never_keeps_up_says_nothing_of_the_server() -> None:
    check, _ = capacity(1e9, client=0.0)
    found = find_rate(REQUEST, check=check)
    assert (found.judgement.verdict, found.highest) == (Verdict.UNDECIDED, None)
    assert "the client could not keep its schedule" in found.judgement.reason
    assert found.exit_code == ExitCode.UNFINISHED


def test_no_rate_is_claimed_of_runs_that_several_versions_answered() -> None:
    check, _ = capacity(300.0)
    versions = iter(["1"] * 4 + ["2"] * 20)
    found = find_rate(REQUEST, check=lambda one: check(one).model_copy(update={"answered": {next(versions): 9}}))
    assert (found.judgement.verdict, found.highest, found.final) == (Verdict.UNDECIDED, None, None)
    assert "versions 1 and 2 answered by turns" in found.judgement.reason
    assert found.exit_code == ExitCode.UNFINISHED


def test_one_run_that_counts_is_enough_for_an_answer() -> None:
    check, _ = capacity(0.01, client=60.0)
    found = find_rate(REQUEST, check=check)
    assert [step.invalid for step in found.steps] == [True, False, False, False]
    assert found.exit_code == ExitCode.NO


def test_what_only_short_runs_pass_is_not_claimed() -> None:
    check, _ = capacity(300.0, liar=True)
    found = find_rate(REQUEST, check=check)
    assert (found.judgement.verdict, found.highest) == (Verdict.FAIL, None)


def test_a_limit_of_the_client_is_said_to_be_one() -> None:
    check, _ = capacity(1000.0, client=400.0)
    found = find_rate(REQUEST, check=check)
    assert found.highest is not None
    assert found.highest <= 400.0
    assert "the client could not keep its schedule" in found.judgement.reason
