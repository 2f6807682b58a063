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

READY_SECONDS = 120.0


@contextmanager
def started(engine: Engine, flags: Sequence[str], folder: Path, *, port: int) -> Iterator[subprocess.Popen[bytes]]:
    """The server with these flags, ready at the HTTP port; it is asked to end with SIGTERM, as a container is.

    The local engine gets its backend folder besides, which an image brings along.
    """
    arguments, variables = local.surroundings(engine, folder, patience=int(READY_SECONDS))
    with (folder / "server.log").open("wb") as log:
        process = subprocess.Popen([engine.executable, *flags, *arguments], env=variables, stdout=log, stderr=log)
    try:
        _wait_ready(process, port, folder / "server.log")
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


def _wait_ready(process: subprocess.Popen[bytes], port: int, log: Path) -> None:
    deadline = time.monotonic() + READY_SECONDS
    while time.monotonic() < deadline and process.poll() is None:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
        try:
            connection.request("GET", "/v2/health/ready")
            if connection.getresponse().status == http.client.OK:
                return
        except OSError:
            pass
        finally:
            connection.close()
        time.sleep(0.05)
    raise AssertionError(f"the server was not ready:\n{log.read_text(errors='replace')}")
