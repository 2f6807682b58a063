"""The benchmark of serving overhead works end to end on a tiny model, and its client speaks both protocols."""

import struct
from pathlib import Path

import numpy as np
import pytest

from benchmarks.serving_overhead import measure, subject
from benchmarks.serving_overhead_contenders import CONTROL, GRPC, HTTP, IN_PROCESS, OURS
from benchmarks.serving_overhead_rounds import Plan, Sample
from benchmarks.serving_overhead_table import Measured, aims, record, table
from benchmarks.serving_overhead_wire import Grpc, Http1
from deploy.serve.engines import Engine
from tests.repository.samples import Sample as VersionSample
from tests.serve.tiny import Linear, publish

PLAN = Plan(rounds=2, seconds=0.1, concurrencies=(1, 16))


@pytest.mark.engine
@pytest.mark.slow
def test_a_tiny_run_gives_every_figure(engine: Engine, tmp_path: Path) -> None:
    version = publish(tmp_path / "models", Linear().onnx(), VersionSample())
    found = measure(subject(version, None, tmp_path / "work"), PLAN)
    assert set(found.batches) == {(name, size) for name in OURS for size in (1, 16)}
    assert set(found.samples) >= set(found.batches) | {(IN_PROCESS, 1), (CONTROL, 1)}
    for samples in found.samples.values():
        assert len(samples) == PLAN.rounds
        assert all(sample.throughput > 0 and 1 <= sample.batch <= 8 for sample in samples)
    for name in OURS:
        assert any(sample.batch > 1 for sample in found.samples[name, 16]), "nothing was merged"
        assert all(sample.client_cpu > 0 for sample in found.samples[name, 16])
    about = {"command": "here", "date": "2026-01-31T12:00:00+00:00", "peers": [], "engine": "local"}
    written = record({"pets": found}, PLAN, about)
    assert set(written["control"]) == {"pets"}
    assert table(written).count("| deployctl ") == 8


def samples(milliseconds: float, throughput: float) -> list[Sample]:
    """Twelve quiet rounds."""
    return [
        Sample(latencies=(milliseconds,) * 50, throughput=throughput, batch=1.0, client_cpu=0.1, server_cpu=1.0)
        for _ in range(12)
    ]


@pytest.mark.parametrize(("throughput", "verdict"), [(97.0, "met"), (93.0, "missed")])
def test_an_aim_is_judged_by_its_interval(throughput: float, verdict: str) -> None:
    ours = {(name, 16): samples(170.0, throughput) for name in (GRPC, HTTP)}
    alone = {(name, 1): samples(21.5, 40.0) for name in (GRPC, HTTP)}
    control = {(IN_PROCESS, 1): samples(20.0, 50.0), (IN_PROCESS, 8): samples(80.0, 100.0)}
    batches = {cell: 8 if cell[1] == 16 else 1 for cell in ours | alone}
    judged = aims("resnet18", Measured(samples=ours | alone | control, batches=batches, memory={}))
    assert [aim["verdict"] for aim in judged] == ["met", verdict] * 2
    assert judged[0]["value"] == 1.5


@pytest.mark.parametrize(("twin", "noisy"), [(20.5, False), (26.0, True)])
def test_a_run_whose_control_is_far_from_1_says_so(twin: float, noisy: bool) -> None:
    found = Measured(
        samples={(IN_PROCESS, 1): samples(20.0, 50.0), (CONTROL, 1): samples(twin, 40.0)}
        | {(name, 1): samples(21.0, 48.0) for name in (GRPC, HTTP)},
        batches={(name, 1): 1 for name in (GRPC, HTTP)},
        memory={},
    )
    about = {"command": "here", "date": "2026-01-31T12:00:00+00:00", "peers": [], "engine": "local"}
    assert ("too noisy" in table(record({"resnet18": found}, PLAN, about))) is noisy


def test_a_large_grpc_message_waits_for_the_servers_windows() -> None:
    message = np.random.default_rng(0).bytes(100_000)
    wire = Grpc(memoryview(message), "localhost:1")
    wire.begin()
    sent = frames(drain(wire)[24:])
    assert sum(len(payload) for kind, _, _, payload in sent if kind == 0) == 65_535
    # The server asks for another first window, answers a ping, and opens both windows.
    settings = b"\0\0\6\4\0\0\0\0\0" + struct.pack(">HI", 4, 1 << 20)
    ping, opened = b"\0\0\x08\6\0\0\0\0\0" + b"deadbeef", b"\0\0\4\x08\0\0\0\0\0" + struct.pack(">I", 1 << 20)
    assert wire.receive(settings + ping[:5]) is None
    assert wire.receive(ping[5:] + opened) is None
    sent += frames(drain(wire))
    body = b"".join(payload for kind, _, _, payload in sent if kind == 0)
    assert body == struct.pack(">BI", 0, len(message)) + message
    assert [flags for kind, flags, _, _ in sent if kind == 0][-1] == 1, "the last frame ends the stream"
    assert (6, 1, 0, b"deadbeef") in sent
    answer = b"\0\0\x0a\0\0\0\0\0\1" + struct.pack(">BI", 0, 5) + b"hello"
    assert wire.receive(answer) is None
    assert wire.receive(b"\0\0\0\1\5\0\0\0\1") == b"hello"


def test_a_grpc_call_without_a_message_has_failed() -> None:
    wire = Grpc(memoryview(b"request"), "localhost:1")
    wire.begin()
    with pytest.raises(RuntimeError, match="without a message"):
        wire.receive(b"\0\0\0\1\5\0\0\0\1")


def test_an_http_answer_may_come_in_pieces_and_must_be_a_200() -> None:
    wire = Http1(memoryview(b"request"), "localhost:1")
    wire.begin()
    assert drain(wire) == b"request"
    assert wire.receive(b"HTTP/1.1 200 OK\r\nContent-Le") is None
    assert wire.receive(b"ngth: 5\r\n\r\nhe") is None
    assert wire.receive(b"llo") == b"hello"
    with pytest.raises(RuntimeError, match="503"):
        wire.receive(b"HTTP/1.1 503 No\r\nContent-Length: 0\r\n\r\n")


def drain(wire: Grpc | Http1) -> bytes:
    sent = b"".join(wire.outgoing)
    wire.outgoing.clear()
    return sent


def frames(data: bytes) -> list[tuple[int, int, int, bytes]]:
    """Kind, flags, stream and payload of each HTTP/2 frame."""
    found = []
    while data:
        length = int.from_bytes(data[:3], "big")
        kind, flags, stream = struct.unpack_from(">BBI", data, 3)
        found.append((kind, flags, stream, data[9 : 9 + length]))
        data = data[9 + length :]
    return found
