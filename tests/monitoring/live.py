"""A real Prometheus that scrapes a real server often, and closed-loop clients of that server.

Owns both as values. Used by test_live, whose windows are scaled down to seconds.
"""

import json
import subprocess
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http.client import HTTPConnection, HTTPException
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from onnx import helper, numpy_helper

from deploy.serve.ports import WantedPorts, choose_ports
from tests.monitoring.promtool import program
from tests.repository.samples import CLASSES, classifier
from tests.serve.tiny import FLOAT, PIXELS, onnx_bytes

WIDTH, LAYERS = 1024, 48
SINGLE = classifier(max_batch=1)
_BODY = json.dumps(
    {"inputs": [{"name": "INPUT__0", "datatype": "FP32", "shape": [1, 3, 4, 4], "data": [0.5] * PIXELS}]}
).encode()


def slow_classifier() -> bytes:
    """A classifier of one image that takes milliseconds: one wide layer, many times over."""
    rows = np.random.default_rng(0).normal(size=(PIXELS, WIDTH)).astype(np.float32)
    wide = np.random.default_rng(1).normal(scale=WIDTH**-0.5, size=(WIDTH, WIDTH)).astype(np.float32)
    last = np.random.default_rng(2).normal(size=(WIDTH, len(CLASSES))).astype(np.float32)
    nodes = [
        helper.make_node("Flatten", ["INPUT__0"], ["rows"]),
        helper.make_node("MatMul", ["rows", "first"], ["h0"]),
        *(helper.make_node("MatMul", [f"h{layer}", "wide"], [f"h{layer + 1}"]) for layer in range(LAYERS)),
        helper.make_node("MatMul", [f"h{LAYERS}", "last"], ["OUTPUT__0"]),
    ]
    graph = helper.make_graph(
        nodes,
        "slow",
        [helper.make_tensor_value_info("INPUT__0", FLOAT, [1, 3, 4, 4])],
        [helper.make_tensor_value_info("OUTPUT__0", FLOAT, [1, len(CLASSES)])],
        [
            numpy_helper.from_array(rows, "first"),
            numpy_helper.from_array(wide, "wide"),
            numpy_helper.from_array(last, "last"),
        ],
    )
    return onnx_bytes(graph)


def infer(connection: HTTPConnection, model: str) -> float:
    """The seconds that one answer took. Raises AssertionError for a refusal."""
    began = time.monotonic()
    connection.request("POST", f"/v2/models/{model}/infer", _BODY, {"Content-Type": "application/json"})
    response = connection.getresponse()
    said = response.read()
    assert response.status == 200, said
    return time.monotonic() - began


@contextmanager
def load(port: int, model: str, *, clients: int) -> Iterator[None]:
    """So many clients, each of which asks again as soon as it is answered, for as long as the block lasts."""
    stop = threading.Event()

    def ask() -> None:
        connection = HTTPConnection("127.0.0.1", port, timeout=60)
        while not stop.is_set():
            try:
                infer(connection, model)
            except (OSError, HTTPException):
                return
        connection.close()

    threads = [threading.Thread(target=ask, daemon=True) for _ in range(clients)]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        stop.set()
        for thread in threads:
            thread.join()


Alert = tuple[str, str]


@dataclass(frozen=True, slots=True, kw_only=True)
class Prometheus:
    """A running Prometheus, asked over its own API."""

    port: int

    def ask(self, path: str, **parameters: str) -> Any:
        """The `data` of an answer. Raises AssertionError with Prometheus's words where it refuses the question."""
        url = f"http://127.0.0.1:{self.port}/api/v1/{path}?{urllib.parse.urlencode(parameters)}"
        try:
            with urllib.request.urlopen(url, timeout=30) as response:
                return json.load(response)["data"]
        except urllib.error.HTTPError as error:
            raise AssertionError(f"{json.load(error)['error']}: {parameters}") from error

    def values(self, expression: str) -> list[float]:
        """The value of each series of an instant query."""
        return [float(found["value"][1]) for found in self.ask("query", query=expression)["result"]]

    def value(self, expression: str) -> float:
        """The value of a query with exactly one series."""
        (found,) = self.values(expression)
        return found

    def wait_for(self, expression: str, *, seconds: float) -> None:
        """Return once a query has a series: Prometheus finds its targets only seconds after its start."""
        deadline = time.monotonic() + seconds
        while not self.values(expression):
            assert time.monotonic() < deadline, f"{expression} has no series after {seconds:g} s"
            time.sleep(0.1)

    def firing(self) -> set[Alert]:
        """Name and burn factor (empty for those without) of each alert that fires."""
        alerts = self.ask("alerts")["alerts"]
        return {
            (found["labels"]["alertname"], found["labels"].get("burn", ""))
            for found in alerts
            if found["state"] == "firing"
        }

    def until(self, wanted: Callable[[set[Alert]], bool], *, seconds: float) -> set[Alert]:
        """What fires once it is as wanted; what fires at the end where it never is."""
        deadline = time.monotonic() + seconds
        while not wanted(found := self.firing()) and time.monotonic() < deadline:
            time.sleep(0.2)
        return found


@contextmanager
def prometheus(folder: Path, rules: str, *, target: str, interval: str = "200ms") -> Iterator[Prometheus]:
    """Prometheus with these rules, scraping one tritonserver as job `triton`."""
    (folder / "rules.yaml").write_text(rules)
    config = {
        "global": {"scrape_interval": interval, "evaluation_interval": interval},
        "rule_files": ["rules.yaml"],
        "scrape_configs": [{"job_name": "triton", "static_configs": [{"targets": [target]}]}],
    }
    (folder / "prometheus.yaml").write_text(yaml.safe_dump(config))
    port = choose_ports("127.0.0.1", WantedPorts()).http
    command = [
        program("prometheus"),
        f"--config.file={folder / 'prometheus.yaml'}",
        f"--storage.tsdb.path={folder / 'data'}",
        f"--web.listen-address=127.0.0.1:{port}",
    ]
    with (folder / "prometheus.log").open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log)
    try:
        _wait(process, port, folder / "prometheus.log")
        yield Prometheus(port=port)
    finally:
        process.terminate()
        process.wait(timeout=60)


def _wait(process: subprocess.Popen[bytes], port: int, log: Path) -> None:
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and process.poll() is None:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/-/ready", timeout=5):
                return
        except OSError:
            time.sleep(0.1)
    raise AssertionError(f"Prometheus was not ready:\n{log.read_text(errors='replace')}")
