"""The closed-loop client of serving_overhead.py, in a process of its own: raw bytes over connections that stay open.

Owns the sockets and the clock. Reads a `Target` or a `Block` per line of standard input, and writes one JSON line per
block. Each of the concurrent workers sends its next request when it has the answer to the last. All workers share one
thread: a thread each would fight over the interpreter's lock.
"""

import base64
import json
import selectors
import socket
import sys
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Literal

from benchmarks.serving_overhead_wire import Grpc, Http1, Wire

WIRES: dict[str, type[Http1] | type[Grpc]] = {"http": Http1, "grpc": Grpc}
_CHUNK = 1 << 16
# How many buffers the kernel takes at once (IOV_MAX).
_BUFFERS = 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """One server as the client meets it: `file` holds the HTTP request with its header, or the gRPC message."""

    address: str
    protocol: Literal["http", "grpc"]
    file: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Block:
    """So many workers on one target, for so many seconds after a ramp that is not counted.

    Answers come a batch at a time: the ramp has a random length, so that no block begins at the same point of a batch.
    """

    address: str
    concurrency: int
    seconds: float
    ramp: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Taken:
    """What one block gave: milliseconds of each request answered in its window, and what it cost the client."""

    latencies: list[float]
    cpu_seconds: float
    requests: int
    last: str


@dataclass(slots=True)
class _Clock:
    """Counts requests; the latencies of those answered within the window after the ramp are kept."""

    block: Block
    started: float = field(default_factory=time.perf_counter)
    latencies: list[float] = field(default_factory=list)
    requests: int = 0
    last: bytes = b""

    def answered(self, began: float, answer: bytes) -> bool:
        """Keep one answer; whether its worker is to go on."""
        now = time.perf_counter()
        begin = self.started + self.block.ramp
        end = begin + self.block.seconds
        if begin <= now <= end:
            self.latencies.append((now - began) * 1e3)
        self.requests += 1
        self.last = answer
        return now < end

    def taken(self, cpu_seconds: float) -> Taken:
        return Taken(
            latencies=self.latencies,
            cpu_seconds=cpu_seconds,
            requests=self.requests,
            last=base64.b64encode(self.last).decode(),
        )


@dataclass(slots=True)
class _Worker:
    """One connection; `began` is when its request did."""

    socket: socket.socket
    wire: Wire
    began: float = 0.0
    writing: bool = False


class Loop:
    """All workers on one target. Connections are made in each ramp, as servers close those that idled for seconds."""

    def __init__(self, target: Target) -> None:
        self._target = target
        self._request = memoryview(Path(target.file).read_bytes())

    def run(self, clock: _Clock) -> None:
        """One closed loop per worker until the clock says no more. Raises RuntimeError if a request failed."""
        workers = [self._connect() for _ in range(clock.block.concurrency)]
        with selectors.DefaultSelector() as selector:
            for worker in workers:
                selector.register(worker.socket, selectors.EVENT_READ, worker)
                _begin(worker, selector)
            while selector.get_map():
                for key, events in selector.select():
                    _turn(key.data, events, clock, selector)
        for worker in workers:
            worker.socket.close()

    def _connect(self) -> _Worker:
        host, port = self._target.address.split(":")
        connected = socket.create_connection((host, int(port)))
        connected.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        connected.setblocking(False)
        return _Worker(connected, WIRES[self._target.protocol](self._request, self._target.address))


def _turn(worker: _Worker, events: int, clock: _Clock, selector: selectors.BaseSelector) -> None:
    if events & selectors.EVENT_READ:
        received = worker.socket.recv(_CHUNK)
        if not received:
            raise RuntimeError("the server closed the connection")
        answer = worker.wire.receive(received)
        if answer is not None and not clock.answered(worker.began, answer):
            _send(worker, selector)
            selector.unregister(worker.socket)
            return
        if answer is not None:
            _begin(worker, selector)
            return
    if worker.wire.outgoing:
        _send(worker, selector)


def _begin(worker: _Worker, selector: selectors.BaseSelector) -> None:
    worker.began = time.perf_counter()
    worker.wire.begin()
    _send(worker, selector)


def _send(worker: _Worker, selector: selectors.BaseSelector) -> None:
    """Send what the kernel takes; be told when it takes more."""
    outgoing = worker.wire.outgoing
    try:
        while outgoing:
            several = list(outgoing)[:_BUFFERS] if len(outgoing) > 1 else outgoing
            sent = worker.socket.sendmsg(several)
            while sent:
                if sent < len(outgoing[0]):
                    outgoing[0] = outgoing[0][sent:]
                    break
                sent -= len(outgoing.popleft())
    except BlockingIOError:
        pass
    if bool(outgoing) != worker.writing:
        worker.writing = bool(outgoing)
        events = selectors.EVENT_READ | (selectors.EVENT_WRITE if worker.writing else 0)
        selector.modify(worker.socket, events, worker)


def main() -> None:
    """Serve the lines of standard input until it ends."""
    loops: dict[str, Loop] = {}
    for line in sys.stdin:
        asked = json.loads(line)
        if "protocol" in asked:
            loops[asked["address"]] = Loop(Target(**asked))
            continue
        clock, spent = _Clock(Block(**asked)), time.process_time()
        loops[clock.block.address].run(clock)
        print(json.dumps(asdict(clock.taken(time.process_time() - spent))), flush=True)


if __name__ == "__main__":
    main()
