"""A real tritonserver that is started with a rendered command line and nothing else of ours.

Owns the process. Used by the tests of flags, monitoring and whatever renders a command line.
"""

import http.client
import re
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from deploy.serve import local
from deploy.serve.engines import Engine
from deploy.serve.ports import Ports

READY_SECONDS = 120.0


@contextmanager
def started(engine: Engine, flags: Sequence[str], folder: Path, *, ports: Ports) -> Iterator[subprocess.Popen[bytes]]:
    """The server with these flags, ready at their ports; it is asked to end with SIGTERM, as a container is.

    The local engine gets its backend folder besides, which an image brings along.
    """
    arguments, variables = local.surroundings(engine, folder, patience=int(READY_SECONDS))
    with (folder / "server.log").open("wb") as log:
        process = subprocess.Popen([engine.executable, *flags, *arguments], env=variables, stdout=log, stderr=log)
    try:
        _wait_ready(process, ports, folder / "server.log")
        yield process
    finally:
        process.terminate()
        process.wait(timeout=READY_SECONDS)


def known_flags(engine: Engine, folder: Path) -> frozenset[str]:
    """Every flag in the server's own `--help`."""
    variables = None
    if engine.kind == "local":
        local.fill_library_folder(engine, folder / "help")
        variables = local.environment(engine, folder / "help")
    result = subprocess.run([engine.executable, "--help"], env=variables, capture_output=True, text=True, check=False)
    return frozenset(re.findall(r"^\s*(--[a-z0-9-]+)", result.stdout + result.stderr, re.MULTILINE))


def _wait_ready(process: subprocess.Popen[bytes], ports: Ports, log: Path) -> None:
    """Return once the server is ready and its metrics are there, which begin last."""
    deadline = time.monotonic() + READY_SECONDS
    while time.monotonic() < deadline and process.poll() is None:
        if _answers(ports.http, "/v2/health/ready") and _answers(ports.metrics, "/metrics"):
            return
        time.sleep(0.05)
    raise AssertionError(f"the server was not ready:\n{log.read_text(errors='replace')}")


def _answers(port: int, path: str) -> bool:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
    try:
        connection.request("GET", path)
        return connection.getresponse().status == http.client.OK
    except OSError:
        return False
    finally:
        connection.close()
