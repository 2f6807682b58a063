"""Single queries on the wire: an answer that is none is a failed query, whatever a server puts in its place."""

import json
import socket
import threading
from typing import Any

import numpy as np
import pytest

from deploy.errors import UnfinishedError, UsageError
from deploy.slo import wire
from deploy.slo.counters import ServerTalk, compare
from deploy.slo.wire import Ended, GrpcWire, HttpWire, Query, Wire, WireOutput, unreachable
from tests.slo.gateway import answering
from tests.slo.law import Law, served

OUTPUT = WireOutput(name="OUTPUT__0", datatype="FP32", shape=(1, 3))


def query(version: str = "") -> Query:
    rows = ({"INPUT__0": np.zeros((1, 4), np.float32)},)
    return Query(model="law", version=version, inputs=rows, outputs=(OUTPUT,))


def end(way: Wire) -> Ended:
    """What became of one query. Its end is told, or the test ends."""
    told: list[Ended] = []
    over = threading.Event()

    def done(ended: Ended) -> None:
        told.append(ended)
        over.set()

    way.send(0, done)
    assert over.wait(10), "the query has no end"
    way.close()
    return told[0]


def outcome(way: Wire) -> str | None:
    """What was wrong with the answer to one query, None if nothing was."""
    return end(way).problem


def said(**changes: Any) -> dict[str, Any]:
    output = {"name": "OUTPUT__0", "datatype": "FP32", "shape": [1, 3], "data": [0.0, 0.5, 1.0]}
    return {"model_name": "law", "model_version": "1", "outputs": [output | changes]}


@pytest.mark.parametrize(
    ("law", "words"),
    [
        (Law(p99=0.01), None),
        (Law(p99=0.01, rubbish_after=0), "wrong answer: DecodeError"),
        (Law(p99=0.01, hollow_after=0), "wrong answer: OUTPUT__0 [1, 3] FP32 in 0 bytes"),
    ],
)
def test_an_answer_over_grpc_is_read_to_its_bytes(law: Law, words: str | None) -> None:
    with served(law) as (url, _):
        found = outcome(GrpcWire(url, query(), deadline=5))
    assert found == words if words is None else words in (found or "")


def test_a_server_that_takes_no_connection_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wire, "_CONNECT_SECONDS", 0.3)
    with (
        socket.create_server(("127.0.0.1", 0)) as mute,
        pytest.raises(UnfinishedError, match=r"took no connection within 0\.3 s, before any query was sent"),
    ):
        GrpcWire(f"127.0.0.1:{mute.getsockname()[1]}", query(), deadline=5)


def test_a_proxy_for_the_web_takes_no_part(monkeypatch: pytest.MonkeyPatch) -> None:
    """gRPC alone would send what goes to this very machine through it."""
    for name in ("http_proxy", "https_proxy", "grpc_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")
    for name in ("no_proxy", "no_grpc_proxy"):
        monkeypatch.delenv(name, raising=False)
    with served(Law(p99=0.01)) as (url, _):
        with ServerTalk(url, "grpc") as talk:
            assert talk.metadata("law", "").versions == ("1",)
        assert outcome(GrpcWire(url, query(), deadline=5)) is None


def test_an_answer_by_another_version_is_none() -> None:
    with served(Law(p99=0.01)) as (url, _):
        assert outcome(GrpcWire(url, query("1"), deadline=5)) is None
        assert outcome(GrpcWire(url, query("2"), deadline=5)) == "wrong answer: by version 1, and 2 was asked"


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (said(), None),
        (said(data=[[0.0, 0.5, 1.0]]), None),
        (said(data=[0.0]), "[1, 3] FP32 in 4 bytes"),
        (said(data=None), "in 4 bytes"),
        (said(shape=[1, 2]), "OUTPUT__0 is FP32 [1, 2]"),
        (said(name="other"), "no output OUTPUT__0"),
        (said(parameters={"binary_data_size": 12}), "0 bytes of tensors, and 12 are announced"),
        ({"outputs": None}, "TypeError"),
        ({"outputs": ["OUTPUT__0"]}, "AttributeError"),
        ({"outputs": [{"datatype": "FP32"}]}, "KeyError"),
        ([], "AttributeError"),
        ({"model_version": 7, "outputs": []}, "by version 7, and 1 was asked"),
    ],
)
def test_an_answer_over_http_is_read_to_its_bytes(answer: Any, words: str | None) -> None:
    with answering(json.dumps(answer).encode()) as address:
        found = outcome(HttpWire(address, query("1"), deadline=5))
    assert found == words if words is None else words in (found or "")


def test_an_answer_says_by_which_version_it_is() -> None:
    with served(Law(p99=0.01, versions=("7",))) as (url, _):
        assert end(GrpcWire(url, query(), deadline=5)) == Ended(None, "7")
    with served(Law(p99=0.01, silent=True)) as (url, _):
        assert end(GrpcWire(url, query(), deadline=5)) == Ended(None)
    with answering(json.dumps(said()).encode()) as address:
        assert end(HttpWire(address, query(), deadline=5)) == Ended(None, "1")
    with answering(json.dumps({"model_version": "7", "outputs": []}).encode()) as address:
        assert end(HttpWire(address, query(), deadline=5)) == Ended("wrong answer: no output OUTPUT__0", "7")


@pytest.mark.parametrize("length", ["0", "-1", "many", "999"])
def test_a_wrong_length_of_the_head_is_a_wrong_answer(length: str) -> None:
    with answering(json.dumps(said()).encode(), {"Inference-Header-Content-Length": length}) as address:
        found = outcome(HttpWire(address, query(), deadline=5))
    assert "wrong answer" in (found or "")


@pytest.mark.parametrize("metadata", [b"null", b"{}", b'{"inputs": [{"name": "x"}], "outputs": []}', b'{"inputs": 3}'])
def test_what_describes_no_model_is_said_to_be_that(metadata: bytes) -> None:
    with (
        answering(metadata) as address,
        ServerTalk(address, "http") as talk,
        pytest.raises(UnfinishedError, match="does not describe a model"),
    ):
        talk.metadata("law", "")


@pytest.mark.parametrize(
    "statistics", [b"<html>", b"[]", b"{}", b'{"model_stats": [{"batch_stats": [1]}]}', b'{"model_stats": 5}']
)
def test_counters_that_cannot_be_read_are_none(statistics: bytes) -> None:
    with answering(statistics) as address, ServerTalk(address, "http") as talk:
        assert talk.counters("law", "") is None


def stats(*versions: tuple[str, int]) -> bytes:
    counted = [
        {"name": "law", "version": version, "inference_stats": {"success": {"count": count, "ns": 5}}}
        for version, count in versions
    ]
    return json.dumps({"model_stats": counted}).encode()


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ({"model_transaction_policy": {"decoupled": True}}, "sends several answers to a request"),
        ({"sequence_batching": {"max_sequence_idle_microseconds": 1}}, "takes requests that belong to sequences"),
        ({"model_transaction_policy": {"decoupled": False}, "dynamic_batching": {}}, None),
        (["no", "config"], None),
    ],
)
def test_a_model_that_answers_no_single_request_is_refused(config: Any, said: str | None) -> None:
    """Every query of a load would fail, and the server be blamed."""
    with answering(json.dumps(config).encode()) as address, ServerTalk(address, "http") as talk:
        if said is None:
            talk.require_single("law", "")
        else:
            with pytest.raises(UsageError, match=said):
                talk.require_single("law", "")


def test_the_counters_are_those_of_the_version_that_answers() -> None:
    """Triton lists every loaded version, in no order, and answers with the latest where none is named."""
    with answering(stats(("9", 5), ("10", 7), ("2", 100))) as address, ServerTalk(address, "http") as talk:
        first = talk.counters("law", "")
    assert first is not None
    assert (first.version, first.requests) == ("10", 7)
    with answering(stats(("10", 50), ("11", 8))) as address, ServerTalk(address, "http") as talk:
        second = talk.counters("law", "")
    found = compare(first, second)
    assert found is not None
    assert (found.requests, found.replaced, found.restarted) == (8, ("10", "11"), False)


def test_who_cannot_be_reached_is_said_why() -> None:
    assert "refused" in str(unreachable("127.0.0.1:1", 0.1))
    assert "not known" in str(unreachable("nobody.invalid:8001", 0.1))
    assert "no name of a host" in str(unreachable(f"{'x' * 70}.org:8001", 0.1))
    with answering(b"") as address:
        assert unreachable(address, 1) is None
