"""Time to first token and between tokens: by hand, and on a real server whose tokens come at known times."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from deploy.errors import ExitCode, UsageError
from deploy.evidence import Verdict
from deploy.serve.engines import Engine
from deploy.slo.records import Bound, SloEvidence
from deploy.slo.request import SloRequest
from deploy.slo.run import check_slo
from deploy.slo.stream import StreamQuestion, _Arrivals, parse_streams
from tests.slo.tokens import FIRST_SECONDS, GAP_SECONDS, TOKENS, Version, clock, served_clock

QUESTION = StreamQuestion(prompts=("one", "two"), tokens=TOKENS)
TTFT = Bound(kind="ttft", q=0.5, limit=2000.0)
ITL = Bound(kind="itl", q=0.5, limit=1000.0)


def arrived(*lines: tuple[float, str]) -> _Arrivals:
    found = _Arrivals()
    for second, text in lines:
        found.read(f"data: {text}\n".encode(), second)
    return found


def test_first_token_and_gaps_count_from_the_sending() -> None:
    found = arrived(
        (10.3, '{"num_output_tokens": 1}'), (10.4, '{"num_output_tokens": [1]}'), (10.7, '{"text_output": "x"}')
    )
    assert found.problem(3) is None
    record = found.record(4, 10.0)
    assert record["first"] == pytest.approx(0.3)
    assert record["gaps"] == pytest.approx([0.1, 0.3])


def test_tokens_that_come_together_share_their_gap() -> None:
    found = arrived((1.0, '{"num_output_tokens": 1}'), (1.6, '{"num_output_tokens": 3}')).record(0, 0.0)
    assert found["gaps"] == pytest.approx([0.2, 0.2, 0.2])
    (one,) = parse_streams([b'{"n": 0, "first": 1.0, "tokens": 4, "gaps": [0.2, 0.2, 0.2]}'])
    assert one.gap == pytest.approx(0.2)


def test_an_error_in_the_stream_and_missing_tokens_are_no_answer() -> None:
    assert arrived((1.0, '{"num_output_tokens": 1}'), (1.1, '{"error": "no"}')).problem(1) == "stream: no"
    assert arrived((1.0, '{"num_output_tokens": 2}')).problem(3) == "stream: 2 tokens came of 3"
    assert arrived((1.0, '{"text_output": ""}')).problem(1) == "stream: 0 tokens came of 1"


def test_bounds_on_tokens_need_a_language_model_and_http() -> None:
    with pytest.raises(UsageError, match="a bound on tokens"):
        SloRequest(reference="m", url="localhost:1", bounds=(TTFT,), rate=1)
    with pytest.raises(UsageError, match="streamed over HTTP"):
        SloRequest(reference="m", url="localhost:1", bounds=(TTFT,), rate=1, stream=QUESTION)


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    with clock() as found:
        yield found


@pytest.fixture
def request_(address: str) -> SloRequest:
    return SloRequest(
        reference="clock",
        url=address,
        protocol="http",
        bounds=(TTFT, ITL),
        rate=15,
        seconds=6,
        min_seconds=0,
        warm_up_seconds=0.2,
        stream=QUESTION,
    )


def test_tokens_of_known_timing_are_measured_as_they_come(request_: SloRequest) -> None:
    judge_clock(check_slo(request_))


@pytest.mark.slow
@pytest.mark.engine
@pytest.mark.alone
def test_a_decoupled_model_in_a_real_triton_is_measured_alike(
    request_: SloRequest, engine: Engine, tmp_path: Path
) -> None:
    with served_clock(tmp_path, engine) as address:
        judge_clock(check_slo(replace(request_, url=address)))


def judge_clock(found: SloEvidence) -> None:
    assert (found.judgement.verdict, found.exit_code, found.errors) == (Verdict.PASS, ExitCode.OK, {})
    stream = found.stream
    assert stream is not None
    assert stream.tokens == found.queries * TOKENS
    # Never sooner than the model sends; how much later is this machine's affair.
    assert stream.ttft[0].value >= 1000 * FIRST_SECONDS
    assert stream.itl[0].value >= 900 * GAP_SECONDS
    # The whole answer is the first token and what follows it.
    whole = stream.ttft[0].value + (TOKENS - 1) * stream.itl[0].value
    assert found.quantiles[0].value == pytest.approx(whole, rel=0.5)
    assert found.bounds[0].bound.wanted == "first token p50 <= 2000 ms"


@pytest.mark.parametrize(
    ("kind", "limit"), [("ttft", 800 * FIRST_SECONDS), ("itl", 500 * GAP_SECONDS)], ids=["first token", "between"]
)
def test_a_bound_that_no_token_can_keep_fails(request_: SloRequest, kind: str, limit: float) -> None:
    tight = Bound(kind=kind, q=0.5, limit=limit)
    other = ITL if kind == "ttft" else TTFT
    found = check_slo(replace(request_, bounds=(tight, other)))
    assert found.judgement.verdict is Verdict.FAIL
    assert found.bounds[0].judgement.verdict is Verdict.FAIL
    assert found.bounds[1].judgement.verdict is not Verdict.FAIL


def test_an_answer_that_is_too_short_is_a_failed_query(request_: SloRequest) -> None:
    asked = replace(request_, stream=StreamQuestion(prompts=("one",), tokens=TOKENS + 1), seconds=2, deadline=2.0)
    found = check_slo(replace(asked, bounds=(replace_limit(TTFT, 1500.0),)))
    assert found.judgement.verdict is Verdict.FAIL
    assert list(found.errors) == [f"stream: {TOKENS} tokens came of {TOKENS + 1}"]
    assert found.stream is None


@pytest.mark.parametrize(
    "whole",
    [
        b'data: {"num_output_tokens":%d}\n\n' % TOKENS,
        b'data: {"num_output_tokens":1}\n\n' * TOKENS,
    ],
    ids=["one event", "held back by a gateway"],
)
def test_tokens_that_come_all_at_once_say_nothing_of_the_time_between(whole: bytes, request_: SloRequest) -> None:
    with clock(whole=whole) as address:
        asked = replace(request_, url=address, seconds=3)
        found = check_slo(asked)
        assert found.exit_code is ExitCode.UNFINISHED
        assert found.invalid is not None and "does not stream" in found.invalid
        assert check_slo(replace(asked, bounds=(TTFT,))).invalid is None, "the first token was seen"


def test_a_line_without_end_is_a_failed_query_and_not_a_client_that_fell_behind(request_: SloRequest) -> None:
    with clock(whole=b"data: " + b"x" * 2_000_000) as address:
        asked = replace(request_, url=address, seconds=2, deadline=1.0, bounds=(replace_limit(TTFT, 800.0),))
        found = check_slo(asked)
    assert found.invalid is None
    assert found.judgement.verdict is Verdict.FAIL
    assert sum(found.errors.values()) == found.queries


@pytest.mark.parametrize(
    "version",
    [lambda count: "1" if count < 40 else "2", lambda count: "2" if 40 <= count < 44 else "1"],
    ids=["another", "there and back"],
)
def test_tokens_of_two_versions_prove_nothing(version: Version, request_: SloRequest) -> None:
    with clock(version) as address:
        found = check_slo(replace(request_, url=address, seconds=6))
    assert found.exit_code is ExitCode.UNFINISHED
    assert found.invalid is not None and "no verdict is made of two" in found.invalid
    assert set(found.answered) == {"1", "2"}


def test_tokens_of_one_version_are_counted_as_its(request_: SloRequest) -> None:
    with clock(lambda _: "7") as address:
        found = check_slo(replace(request_, url=address))
    assert found.answered == {"7": found.queries}
    assert "no verdict is made of two" not in (found.invalid or "")


def replace_limit(bound: Bound, limit: float) -> Bound:
    return bound.model_copy(update={"limit": limit})


def test_a_model_that_is_not_served_is_refused(request_: SloRequest) -> None:
    with pytest.raises(UsageError, match="does not serve other"):
        check_slo(replace(request_, reference="other"))
