"""Whose doing a run's figures were, from made-up queries: the client's, or two versions'."""

from dataclasses import replace

import numpy as np
import pytest

from deploy.evidence import Judgement
from deploy.slo.blame import client_side, invalid
from deploy.slo.finding import Finding
from deploy.slo.load import Observed
from deploy.slo.question import Subject
from deploy.slo.records import Bound, BoundResult
from deploy.slo.request import SloRequest
from deploy.slo.summary import SubjectFacts, summarise

BOUND = Bound(kind="latency", q=0.99, limit=300.0)
REQUEST = SloRequest(reference="law", url="127.0.0.1:1", bounds=(BOUND,), rate=100, protocol="grpc")
UNDECIDED = Judgement.undecided("a few queries more would decide")


def finding(lag: np.ndarray, *, judgement: Judgement = UNDECIDED) -> Finding:
    """A hundred queries a second, each sent so many seconds late."""
    count = len(lag)
    seen = Observed(
        scheduled=np.arange(count) / 100, latency=np.full(count, 0.01) + lag, lag=lag,
        failed=np.zeros(count, dtype=bool), stalls=np.zeros((0, 2)),
    )  # fmt: skip
    result = BoundResult(bound=BOUND, judgement=judgement, n=count, over=0, allowed=0.01, low=0.0, high=0.1)
    return Finding(
        results=(result,), seen=seen, warm_up=0, sent=count, looks=1, errors={}, versions={}, cpu_seconds=1.0,
        gaps=np.zeros(0),
    )  # fmt: skip


@pytest.mark.parametrize(
    ("lag", "kept"),
    [
        (np.zeros(50), True),
        # 25 ms at the end of half a second are 5 % of it, and no other rate.
        (np.append(np.zeros(49), 0.029), True),
        (np.linspace(0.0, 0.06, 50), False),
        (np.linspace(0.0, 0.029, 8), False),
        (np.linspace(0.0, 0.029, 50), True),
        # Ten seconds in eleven: never late by much at once, and a tenth less load than was asked for.
        (np.linspace(0.0, 1.0, 1000), False),
        (np.append(np.zeros(499), 0.2), True),
        (np.append(np.zeros(490), np.full(10, 0.04)), False),
    ],
    ids=["in time", "a pause", "behind at once", "behind in a few", "a little late", "behind", "one late", "ten late"],
)
def test_a_client_keeps_its_schedule_or_the_run_proves_nothing(lag: np.ndarray, kept: bool) -> None:
    found = finding(lag)
    side = client_side(found, REQUEST)
    assert side.kept_schedule == kept
    assert (invalid(found, REQUEST, side) is None) == kept


def test_a_gateway_that_lets_nobody_in_is_no_slow_server() -> None:
    refused = replace(finding(np.zeros(50)), errors={"UNAUTHENTICATED: Jwt is missing": 50})
    refused = replace(refused, seen=replace(refused.seen, failed=np.ones(50, dtype=bool)))
    said = invalid(refused, REQUEST, client_side(refused, REQUEST))
    assert "every query was refused" in (said or "")
    assert "Jwt is missing" in (said or "")
    crashed = replace(refused, errors={"UNAUTHENTICATED: Jwt is missing": 1, "INTERNAL: boom": 49})
    assert invalid(crashed, REQUEST, client_side(crashed, REQUEST)) is None


def test_a_run_in_which_nothing_came_says_so_and_blames_no_client() -> None:
    nothing = replace(finding(np.zeros(0)), by_clock=True, warm_up=1)
    assert "raise --duration" in (invalid(nothing, REQUEST, client_side(nothing, REQUEST)) or "")


def test_a_pass_stands_although_queries_were_late_but_not_at_another_rate() -> None:
    late = finding(np.append(np.zeros(490), np.full(10, 0.04)), judgement=Judgement.yes("well within it"))
    assert invalid(late, REQUEST, client_side(late, REQUEST)) is None

    behind = finding(np.linspace(0.0, 1.0, 1000), judgement=Judgement.yes("well within it"))
    said = invalid(behind, REQUEST, client_side(behind, REQUEST))
    assert said is not None and said.startswith("the client could not keep its schedule")


def test_two_versions_are_said_before_a_client_that_was_late() -> None:
    mixed = replace(finding(np.linspace(0.0, 1.0, 1000)), versions={"1": 900, "2": 100})
    subject = Subject(name="law", number=None, version=None)
    facts = SubjectFacts(
        subject=subject,
        digest=None,
        rows="3",
        started="2026-01-01T00:00:00Z",
        seconds=11.0,
        server=None,
        answering=("1", "2"),
    )
    said = summarise(mixed, REQUEST, facts).invalid
    assert said is not None and said.startswith("version 1 answered 900 and version 2 answered 100 of the queries")
