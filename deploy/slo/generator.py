"""The load generator's child process: MLPerf LoadGen schedules and times, a wire sends, files carry the news out.

Owns what happens inside the child. LoadGen's own trace holds each query's scheduled time, when it was issued and when
it completed; beside it lie when each query was really sent, which failed, and when this process did not run. Called
by `load`, through a Worker.
"""

import heapq
import json
import struct
import sys
import threading
import time
from collections import deque
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from deploy.errors import MissingError
from deploy.serve.client import Protocol
from deploy.slo.stream import StreamQuestion, StreamWire
from deploy.slo.wire import Done, Ended, GrpcWire, HttpWire, Query, Wire

TRACE = "mlperf_log_trace.json"
SENT = "sent.bin"
NEWS = "news.jsonl"
# The number of the query and the monotonic second at which it was handed to the network.
SENT_RECORD = struct.Struct("<qd")

_FLUSH_SECONDS = 0.1
_BEAT_SECONDS = 0.005
_STALL_SECONDS = 0.004
# Python hands the interpreter over only every 5 ms by default: more than many a latency that is to be measured.
_SWITCH_SECONDS = 0.0002


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadPlan:
    """A load run: Poisson arrivals at `rate` per second, `queries` of them, answers awaited for `deadline` seconds.

    `target_seconds` and `percentile` are told to LoadGen for its own summary. With `stream` the answers come token by
    token.
    """

    address: str
    protocol: Protocol
    query: Query
    rate: float
    queries: int
    deadline: float
    seed: int
    target_seconds: float
    percentile: float
    stream: StreamQuestion | None = None


def generate(plan: LoadPlan, folder: Path) -> None:
    """Run the load to its end. Raises MissingError without LoadGen."""
    loadgen = load_generator()
    sys.setswitchinterval(_SWITCH_SECONDS)
    wire = open_wire(plan, folder)
    issuer = _Issuer(loadgen, wire, plan, folder)
    sut = loadgen.ConstructSUT(issuer.issue, lambda: None)
    rows = len(plan.query.inputs)
    qsl = loadgen.ConstructQSL(rows, rows, lambda _: None, lambda _: None)
    try:
        loadgen.StartTestWithLogSettings(sut, qsl, _settings(loadgen, plan), _logs(loadgen, folder), "")
    finally:
        issuer.close()
    loadgen.DestroyQSL(qsl)
    loadgen.DestroySUT(sut)


def open_wire(plan: LoadPlan, folder: Path) -> Wire:
    """The way to the server that a plan means; what it writes down lies in `folder`."""
    query = plan.query
    if plan.stream is not None:
        version = f"/versions/{query.version}" if query.version else ""
        path = f"/v2/models/{query.model}{version}/generate_stream"
        return StreamWire(plan.address, path, plan.stream, deadline=plan.deadline, folder=folder)
    return (GrpcWire if plan.protocol == "grpc" else HttpWire)(plan.address, query, deadline=plan.deadline)


def load_generator() -> Any:
    """LoadGen's module. Raises MissingError with the line that installs it."""
    try:
        import mlperf_loadgen
    except ImportError as error:
        raise MissingError(
            f"MLPerf LoadGen cannot be imported: {error}",
            expected="the package mlcommons-loadgen",
            fix="pip install mlcommons-loadgen",
        ) from error
    return mlperf_loadgen


def _settings(loadgen: Any, plan: LoadPlan) -> Any:
    settings = loadgen.TestSettings()
    settings.scenario = loadgen.TestScenario.Server
    settings.mode = loadgen.TestMode.PerformanceOnly
    settings.server_target_qps = plan.rate
    settings.server_target_latency_ns = int(plan.target_seconds * 1e9)
    settings.server_target_latency_percentile = plan.percentile
    settings.min_duration_ms = 0
    settings.min_query_count = plan.queries
    settings.max_query_count = plan.queries
    settings.qsl_rng_seed = plan.seed
    settings.sample_index_rng_seed = plan.seed + 1
    settings.schedule_rng_seed = plan.seed + 2
    return settings


def _logs(loadgen: Any, folder: Path) -> Any:
    output = loadgen.LogOutputSettings()
    output.outdir = str(folder)
    logs = loadgen.LogSettings()
    logs.log_output = output
    logs.log_mode = loadgen.LoggingMode.AsyncPoll
    logs.log_mode_async_poll_interval_ms = int(_FLUSH_SECONDS * 1000)
    logs.enable_trace = True
    return logs


class _Issuer:
    """Sends what LoadGen issues and completes what ends; a failed query is completed at the client's deadline."""

    def __init__(self, loadgen: Any, wire: Wire, plan: LoadPlan, folder: Path) -> None:
        self._loadgen = loadgen
        self._wire = wire
        self._deadline = plan.deadline
        self._count = 0
        self._first: str | None = None
        self._held: list[tuple[float, int]] = []
        self._held_changed = threading.Condition()
        self._sent: deque[bytes] = deque()
        self._news: list[dict[str, object]] = []
        self._lock = threading.Lock()
        self._ended = threading.Event()
        self._sent_file = (folder / SENT).open("wb", buffering=0)
        self._news_file = (folder / NEWS).open("w", buffering=1)
        self._threads = [
            threading.Thread(target=work, name=work.__name__, daemon=True)
            for work in (self._complete_held, self._beat, self._flush_often)
        ]
        for thread in self._threads:
            thread.start()

    def issue(self, queries: Any) -> None:
        """LoadGen's call at each arrival, from its own thread."""
        for query in queries:
            number, self._count = self._count, self._count + 1
            sent = time.monotonic()
            self._sent.append(SENT_RECORD.pack(number, sent))
            self._wire.send(query.index, self._ending(number, query.id, sent))

    def close(self) -> None:
        """Write what is left and stop the threads."""
        self._ended.set()
        with self._held_changed:
            self._held_changed.notify()
        for thread in self._threads:
            thread.join()
        self._flush()
        self._sent_file.close()
        self._news_file.close()
        self._wire.close()

    def _ending(self, number: int, id_: int, sent: float) -> Done:
        def done(ended: Ended) -> None:
            if ended.version and ended.version != self._first:
                self._tell_version(number, ended.version)
            if ended.problem is None:
                self._complete(id_)
                return
            with self._lock:
                self._news.append({"failed": number, "why": ended.problem, "by": ended.version})
            with self._held_changed:
                heapq.heappush(self._held, (sent + self._deadline, id_))
                self._held_changed.notify()

        return done

    def _tell_version(self, number: int, version: str) -> None:
        """Write at once, before the query is known to have ended, which version it was by; the first one only once."""
        with self._lock:
            if self._first is None:
                self._first = version
            self._news_file.write(json.dumps({"answered": number, "by": version}) + "\n")

    def _complete(self, id_: int) -> None:
        self._loadgen.QuerySamplesComplete([self._loadgen.QuerySampleResponse(id_, 0, 0)])

    def _complete_held(self) -> None:
        """Complete each failed query at its deadline: a refusal is never quicker than an answer."""
        while True:
            with self._held_changed:
                pause = self._held[0][0] - time.monotonic() if self._held else 0.5
                if pause > 0:
                    if self._ended.is_set():
                        return
                    self._held_changed.wait(pause)
                    continue
                _, id_ = heapq.heappop(self._held)
            self._complete(id_)

    def _beat(self) -> None:
        """Note when this process did not run although it wanted to: the client's own stalls."""
        while not self._ended.is_set():
            before = time.monotonic()
            time.sleep(_BEAT_SECONDS)
            after = time.monotonic()
            if after - before > _BEAT_SECONDS + _STALL_SECONDS:
                with self._lock:
                    self._news.append({"stalled": [before + _BEAT_SECONDS, after]})

    def _flush_often(self) -> None:
        while not self._ended.wait(_FLUSH_SECONDS):
            self._flush()

    def _flush(self) -> None:
        self._sent_file.write(b"".join(self._sent.popleft() for _ in range(len(self._sent))))
        with self._lock:
            news, self._news = [*self._news, {"cpu": time.process_time()}], []
            self._news_file.write("".join(f"{json.dumps(one)}\n" for one in news))
