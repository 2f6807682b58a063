"""Load runs against a real gRPC server whose latency law is known: verdicts, faults, and the client's own limits."""

import itertools
import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest

from deploy.errors import ExitCode, UnfinishedError, UsageError
from deploy.evidence import Verdict
from deploy.slo.load import Observed
from deploy.slo.records import Bound, SloEvidence
from deploy.slo.request import SloRequest
from deploy.slo.run import check_slo
from tests.slo.law import Law, closed_loop, served

P99 = Bound(kind="latency", q=0.99, limit=300.0)


@pytest.fixture
def request_(tmp_path: Path) -> SloRequest:
    """A short run at a rate that this machine's client keeps; the bound is far above what the client itself adds."""
    samples = tmp_path / "samples.npz"
    np.savez(samples, allow_pickle=False, INPUT__0=np.zeros((3, 4), np.float32))
    return SloRequest(
        reference="law",
        url="",
        bounds=(P99,),
        rate=200,
        samples=samples,
        seconds=20,
        min_seconds=0,
        warm_up_seconds=0.25,
        max_queries=1200,
        deadline=1.0,
    )


def run(request: SloRequest, law: Law, **changes: object) -> SloEvidence:
    with served(law) as (url, _):
        return check_slo(replace(request, url=url, **changes))  # type: ignore[arg-type]


@pytest.mark.alone
def test_a_server_well_within_the_bound_passes(request_: SloRequest) -> None:
    found = run(request_, Law(p99=0.1))
    assert (found.judgement.verdict, found.exit_code, found.invalid) == (Verdict.PASS, ExitCode.OK, None)
    assert found.bounds[0].n == found.queries
    assert found.queries < 1200, "it ends as soon as it is decided"
    assert found.warm_up_queries == 50
    p50 = found.quantiles[0].value
    assert 30 < p50 < 100, "half of the law's answers take 50 ms"
    assert found.server is None
    assert "no counters" in " ".join(found.remarks)


@pytest.mark.parametrize(
    ("law", "answered"),
    [
        (Law(p99=0.01, swaps_after=90), {"1": 40, "2": 10}),
        # There and back: neither the metadata nor any counter shows it afterwards.
        (Law(p99=0.01, swaps_after=100, back_after=120), {"1": 55, "2": 20}),
    ],
)
def test_a_run_that_two_versions_answered_proves_nothing(
    request_: SloRequest, law: Law, answered: dict[str, int]
) -> None:
    found = run(request_, law, max_queries=100, bounds=(P99.model_copy(update={"q": 0.9}),))
    # Requests over several connections come in about the order of their schedule; the look after the swap is the last.
    assert found.answered == pytest.approx(answered, abs=4)
    assert found.exit_code is ExitCode.UNFINISHED
    assert found.invalid is not None and "no verdict is made of two versions" in found.invalid


def test_a_run_ends_soon_after_another_version_answered(request_: SloRequest) -> None:
    found = run(request_, Law(p99=0.01, swaps_after=100), min_seconds=20, max_queries=4000)
    assert found.exit_code is ExitCode.UNFINISHED
    assert found.queries < 300


@pytest.mark.parametrize(
    ("reference", "law", "said"),
    [
        ("law", Law(p99=0.01), "version 1 gave the answers that count"),
        ("law", Law(p99=0.01, swaps_after=10), "version 2 gave the answers that count, although version 2 took the"),
        ("law", Law(p99=0.01, versions=()), "does not say which version answers"),
        ("law:1", Law(p99=0.01), ""),
    ],
)
def test_the_version_that_answered_is_said(request_: SloRequest, reference: str, law: Law, said: str) -> None:
    found = run(request_, law, reference=reference, max_queries=100)
    about = [remark for remark in found.remarks if "version" in remark]
    assert found.server is None
    # A busy machine's client may be late, which makes it no run of two versions.
    assert "two versions" not in (found.invalid or "")
    assert len(about) == bool(said) and said in "".join(about)


def test_where_no_answer_says_its_version_the_metadata_tells_of_another(request_: SloRequest) -> None:
    found = run(request_, Law(p99=0.01, swaps_after=60, silent=True), max_queries=100)
    assert found.answered == {}
    assert found.invalid is not None and "version 2 took the place of version 1 during the run" in found.invalid


def test_answers_of_another_version_than_was_asked_are_failures_of_the_one(request_: SloRequest) -> None:
    found = run(request_, Law(p99=0.01, swaps_after=60), reference="law:1", max_queries=100)
    assert "two versions" not in (found.invalid or "")
    assert any("by version 2, and 1 was asked" in why for why in found.errors)
    assert found.answered.keys() == {"1"}


@pytest.mark.alone
def test_a_server_beyond_the_bound_fails(request_: SloRequest) -> None:
    found = run(request_, Law(p99=0.6))
    assert (found.judgement.verdict, found.exit_code) == (Verdict.FAIL, ExitCode.NO)
    assert "p99 <= 300 ms" in found.judgement.reason


@pytest.mark.alone
def test_one_bound_that_fails_is_enough(request_: SloRequest) -> None:
    tight = Bound(kind="latency", q=0.5, limit=20.0)
    found = run(request_, Law(p99=0.1), bounds=(tight, P99))
    assert found.judgement.verdict is Verdict.FAIL
    assert found.bounds[0].judgement.verdict is Verdict.FAIL


@pytest.mark.alone
def test_too_few_queries_are_undecided_and_say_how_many_more(request_: SloRequest) -> None:
    found = run(request_, Law(p99=0.1), max_queries=100)
    assert (found.judgement.verdict, found.exit_code) == (Verdict.UNDECIDED, ExitCode.NO)
    assert found.bounds[0].more_queries is not None
    assert request_.cannot_pass() == ()
    assert "at least 459" in replace(request_, max_queries=30).cannot_pass()[0]


@pytest.mark.alone
def test_the_same_seed_asks_at_the_same_times(request_: SloRequest) -> None:
    runs = [run(request_, Law(p99=0.05), seed=7, max_queries=60) for _ in range(2)]
    other = run(request_, Law(p99=0.05), seed=8, max_queries=60)
    rates = [found.client.offered_rate for found in (*runs, other)]
    assert rates[0] == pytest.approx(rates[1], rel=1e-6)
    assert rates[0] != pytest.approx(rates[2], rel=1e-3)


@pytest.mark.alone
def test_refused_queries_count_as_over_every_bound(request_: SloRequest) -> None:
    errors = Bound(kind="errors", q=0.9, limit=0.1)
    found = run(request_, Law(p99=0.02, failing=0.3), bounds=(P99, errors))
    assert [result.judgement.verdict for result in found.bounds] == [Verdict.FAIL, Verdict.FAIL]
    assert found.bounds[0].over == found.bounds[1].over == sum(found.errors.values()) > 0
    assert list(found.errors) == ["INTERNAL: refused by law"]
    assert max(found.distribution) >= 1000, "a refusal is completed at the deadline"


@pytest.mark.alone
@pytest.mark.parametrize(
    ("fault", "said"),
    [
        ({"dies_after": 200}, "UNAVAILABLE"),
        ({"hangs_after": 200}, "DEADLINE_EXCEEDED"),
        ({"wrong_after": 200}, "wrong answer: OUTPUT__0 is FP32 [1, 2], not FP32 [1, 3]"),
        ({"unloads_after": 200}, "unknown model"),
    ],
)
def test_a_server_that_breaks_in_the_middle_fails_in_time(
    request_: SloRequest, fault: dict[str, Any], said: str
) -> None:
    began = time.monotonic()
    found = run(request_, Law(p99=0.02, **fault))
    assert found.judgement.verdict is Verdict.FAIL
    assert any(said in why for why in found.errors), found.errors
    assert found.answered.keys() == {"1"}
    assert "version 1 gave the answers that count" in found.remarks
    assert time.monotonic() - began < request_.seconds + request_.warm_up_seconds + request_.patience + 20


@pytest.mark.alone
def test_a_server_that_is_stopped_and_goes_on_is_seen(request_: SloRequest) -> None:
    def go_on_after_a_second(pid: int) -> None:
        os.waitid(os.P_PID, pid, os.WSTOPPED | os.WEXITED | os.WNOWAIT)
        time.sleep(1)
        os.kill(pid, signal.SIGCONT)

    with served(Law(p99=0.02, stops_after=400)) as (url, process):
        keeper = threading.Thread(target=go_on_after_a_second, args=(process.pid,))
        keeper.start()
        found = check_slo(replace(request_, url=url, max_queries=900, min_seconds=4))
    keeper.join(timeout=10)
    slow = [moment for moment in found.timeline if moment.maximum > 300]
    assert slow, "the queries that came during the stop waited for its end"
    assert found.bounds[0].design_effect > 1


@pytest.mark.alone
def test_open_loop_fails_the_stalls_that_a_closed_loop_would_pass(request_: SloRequest) -> None:
    """One tenth of a second in two seconds is stalled: the shape of one second in twenty, ten times as quick."""
    law = Law(p99=0.01, period=2.0, stall=0.1)
    bound = Bound(kind="latency", q=0.99, limit=40.0)
    with served(law) as (url, _):
        closed = closed_loop(url, seconds=4.0)
        found = check_slo(replace(request_, url=url, bounds=(bound,), max_queries=2000, seconds=10, min_seconds=4))
    assert np.quantile(closed, 0.99) < 0.04, "the closed loop waits out each stall, once"
    assert found.judgement.verdict is Verdict.FAIL


@pytest.mark.alone
def test_a_client_that_cannot_keep_the_rate_makes_the_run_invalid(request_: SloRequest) -> None:
    found = run(request_, Law(p99=0.01), rate=60_000, max_queries=60_000, warm_up_seconds=0.05)
    assert found.exit_code is ExitCode.UNFINISHED
    assert found.invalid is not None
    assert "client" in found.invalid


def test_arrivals_that_take_longer_than_planned_prove_what_they_do(
    request_: SloRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Random arrivals of low rates often outlast the schedule; here the clock is told to be ahead of it."""
    monkeypatch.setattr("deploy.slo.run._GRACE_SECONDS", -2.0)
    median = Bound(kind="latency", q=0.5, limit=300.0)
    found = run(request_, Law(p99=0.05), rate=30, seconds=6, deadline=0.5, min_seconds=6, bounds=(median,))
    assert (found.judgement.verdict, found.invalid) == (Verdict.PASS, None)
    assert 10 <= found.queries < 180
    assert f"the time was up after {found.queries} of 180 queries" in " ".join(found.remarks)


def test_a_generator_that_stands_still_proves_nothing(request_: SloRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Stopped like a machine that sleeps: far fewer queries than any luck explains."""
    monkeypatch.setattr("deploy.slo.run._GRACE_SECONDS", 0.0)
    with served(Law(p99=0.01)) as (url, _), stopped_generator(after=2.0):
        found = check_slo(replace(request_, url=url, seconds=4, max_queries=None, min_seconds=30, deadline=0.5))
    assert found.exit_code is ExitCode.UNFINISHED
    assert "the load generator did not come to its end" in (found.invalid or "")


@contextmanager
def stopped_generator(*, after: float) -> Iterator[None]:
    """A block during which the load generator's process stops for good once it has run for so long."""

    def stop() -> None:
        time.sleep(after)
        for child in psutil.Process().children(recursive=True):
            with suppress(psutil.Error):
                if any("mlperf" in one.path for one in child.memory_maps()):
                    child.suspend()

    thread = threading.Thread(target=stop)
    thread.start()
    yield
    thread.join()


def test_nobody_there_is_said_before_any_load(request_: SloRequest) -> None:
    with pytest.raises(UnfinishedError, match="nobody listens at"):
        check_slo(replace(request_, url="127.0.0.1:1"))


def test_another_model_than_is_served_is_refused(request_: SloRequest, tmp_path: Path) -> None:
    np.savez(tmp_path / "other.npz", allow_pickle=False, INPUT__0=np.zeros((3, 5), np.float32))
    with served(Law(p99=0.01)) as (url, _), pytest.raises(UsageError, match="INPUT__0"):
        check_slo(replace(request_, url=url, samples=tmp_path / "other.npz"))


def test_a_deadline_below_the_bound_is_refused(request_: SloRequest) -> None:
    with pytest.raises(UsageError, match=r"would wait 0\.2 s"):
        check_slo(replace(request_, deadline=0.2))


def test_the_clients_part_is_what_it_sent_late_and_slept_through() -> None:
    seen = Observed(
        scheduled=np.array([0.0, 1.0, 2.0]),
        latency=np.array([0.5, 0.5, 0.5]),
        lag=np.array([0.0, 0.1, 0.0]),
        failed=np.zeros(3, dtype=bool),
        stalls=np.array([[0.2, 0.3], [0.45, 0.9], [2.4, 3.0]]),
    )
    assert seen.without_client() == pytest.approx([0.35, 0.4, 0.4])


@pytest.mark.alone
def test_stretches_of_the_run_add_up(request_: SloRequest) -> None:
    found = run(request_, Law(p99=0.05), min_seconds=3)
    assert sum(moment.queries for moment in found.timeline) == found.queries
    assert all(before.second < after.second for before, after in itertools.pairwise(found.timeline))
