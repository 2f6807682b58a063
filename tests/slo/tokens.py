"""A server that streams tokens at known times, as Triton's `generate_stream`: over loopback, and as a real model."""

import itertools
import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from deploy.serve.engines import Engine
from deploy.serve.python_environment import find_python_environment, install_python_environment
from deploy.serve.server import TritonServer

FIRST_SECONDS, GAP_SECONDS, TOKENS = 0.05, 0.02, 6

_METADATA = {
    "name": "clock",
    "versions": ["1"],
    "platform": "python",
    "inputs": [{"name": "text_input", "datatype": "BYTES", "shape": [1]}],
    "outputs": [{"name": "num_output_tokens", "datatype": "UINT32", "shape": [-1]}],
}
_CONFIG = """
name: "clock" backend: "python" model_transaction_policy {{ decoupled: true }}
input [ {{ name: "text_input" data_type: TYPE_STRING dims: [ 1 ] }},
        {{ name: "stream" data_type: TYPE_BOOL dims: [ 1 ] optional: true }},
        {{ name: "sampling_parameters" data_type: TYPE_STRING dims: [ 1 ] optional: true }},
        {{ name: "return_num_output_tokens" data_type: TYPE_BOOL dims: [ 1 ] optional: true }} ]
output [ {{ name: "num_output_tokens" data_type: TYPE_UINT32 dims: [ -1 ] }} ]
instance_group [ {{ kind: KIND_CPU count: 1 }} ]
parameters {{ key: "EXECUTION_ENV_PATH" value {{ string_value: "{environment}" }} }}
"""
_MODEL = """
import threading, time
import numpy as np
import triton_python_backend_utils as pb_utils

class TritonPythonModel:
    def execute(self, requests):
        for request in requests:
            threading.Thread(target=self.answer, args=(request.get_response_sender(), time.monotonic())).start()

    def answer(self, sender, begun):
        for number in range({tokens}):
            time.sleep(max(0.0, begun + {first} + number * {gap} - time.monotonic()))
            sender.send(pb_utils.InferenceResponse([pb_utils.Tensor("num_output_tokens", np.ones(1, np.uint32))]))
        sender.send(flags=pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL)
"""


Version = Callable[[int], str]


class _Handler(BaseHTTPRequestHandler):
    """`version` says by which version the answer of such a number is; empty where it is not said.

    `whole` comes at once in the tokens' place, where there is any.
    """

    version: Version = staticmethod(lambda _: "")
    whole = b""
    answers = itertools.count()

    def do_GET(self) -> None:
        """The model's metadata, and nothing else."""
        found = self.path.rstrip("/") == "/v2/models/clock"
        body = json.dumps(_METADATA if found else {"error": "Request for unknown model: not found"}).encode()
        self.send_response(200 if found else 400)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def do_POST(self) -> None:
        """The tokens, each when it is due."""
        begun, version = time.monotonic(), self.version(next(self.answers))
        said = f',"model_version":"{version}"' if version else ""
        self.rfile.read(int(self.headers["Content-Length"]))
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.end_headers()
        if self.whole:
            time.sleep(FIRST_SECONDS)
            self.wfile.write(self.whole)
            return
        for number in range(TOKENS):
            time.sleep(max(0.0, begun + FIRST_SECONDS + number * GAP_SECONDS - time.monotonic()))
            self.wfile.write(f'data: {{"num_output_tokens":1{said}}}\n\n'.encode())
            self.wfile.flush()

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing."""


@contextmanager
def clock(version: Version = lambda _: "", *, whole: bytes = b"") -> Iterator[str]:
    """The address of a server on loopback whose model `clock` gives `TOKENS` tokens at the times above.

    `version` says by which version each answer says it is, by its number; empty where it says none. `whole` is sent at
    once in the place of the tokens.
    """
    own = {"version": staticmethod(version), "answers": itertools.count(), "whole": whole}
    handler = type("Handler", (_Handler,), own)
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


@contextmanager
def served_clock(folder: Path, engine: Engine) -> Iterator[str]:
    """The same as a decoupled python model in a real tritonserver, whose texts need the engine's older numpy."""
    install_python_environment()
    version = folder / "clock" / "1"
    version.mkdir(parents=True)
    (folder / "clock" / "config.pbtxt").write_text(_CONFIG.format(environment=find_python_environment()))
    (version / "model.py").write_text(_MODEL.format(tokens=TOKENS, first=FIRST_SECONDS, gap=GAP_SECONDS))
    with TritonServer(folder, engine=engine) as server:
        yield server.http_address
