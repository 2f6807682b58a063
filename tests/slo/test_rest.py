"""A search for a rate waits between its loads: what one left in a server's queue is not the next one's."""

import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import numpy as np
import pytest

from deploy.slo.generator import LoadPlan
from deploy.slo.rest import wait_for_rest
from deploy.slo.wire import Query, WireOutput

BODY = b'{"outputs": [{"name": "y", "datatype": "FP32", "shape": [1], "data": [1.0]}]}'


@contextmanager
def taking(*seconds: float) -> Iterator[tuple[LoadPlan, Sequence[float]]]:
    """A plan for a server whose answers take so long, one after the other, the last for ever; when it was asked."""
    asked: list[float] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            asked.append(time.monotonic())
            wait = seconds[min(len(asked), len(seconds)) - 1]
            time.sleep(abs(wait))
            with suppress(BrokenPipeError):  # who waited has gone
                self.send_response(200 if wait >= 0 else 503)
                self.send_header("Content-Length", str(len(BODY)))
                self.end_headers()
                self.wfile.write(BODY)

        def log_message(self, format: str, *args: Any) -> None:
            """Say nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    rows = ({"x": np.zeros((1, 4), np.float32)},)
    outputs = (WireOutput(name="y", datatype="FP32", shape=(1,)),)
    try:
        yield (
            LoadPlan(
                address=f"127.0.0.1:{server.server_port}", protocol="http",
                query=Query(model="m", version="", inputs=rows, outputs=outputs),
                rate=1, queries=1, deadline=0.1, seed=0, target_seconds=0.05, percentile=0.99,
            ),
            asked,
        )  # fmt: skip
    finally:
        server.shutdown()
        server.server_close()


@pytest.mark.parametrize(
    ("answers", "asked"),
    [
        ((0.0,), 1),
        ((0.6, 0.0), 2),
        ((0.3,), 2),
        ((0.8, 0.3), 3),
        ((-0.1,), 1),
    ],
    ids=["idle", "a queue", "slow by itself", "a queue, and slow by itself", "gone"],
)
def test_it_asks_until_nothing_stands_before_it(answers: tuple[float, ...], asked: int) -> None:
    with taking(*answers) as (plan, times):
        taken = wait_for_rest(plan)
    assert len(times) == asked
    assert taken >= sum(map(abs, (*answers, *[answers[-1]] * asked)[:asked]))


def test_it_does_not_wait_for_ever() -> None:
    with taking(5.0) as (plan, _):
        assert wait_for_rest(plan, longest=0.5) < 3
