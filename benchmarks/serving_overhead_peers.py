"""BentoML and LitServe for serving_overhead.py: an environment of their own, and each as a running server.

Owns the pinned releases and the two command lines. Nothing is ever installed beside the project.
"""

import http.client
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import numpy as np
import psutil

HERE = Path(__file__).parent
UNBATCHED = " unbatched"
# With and without their batching: a single client is better served without.
PEERS = ("BentoML", f"BentoML{UNBATCHED}", "LitServe", f"LitServe{UNBATCHED}")
# ONNX Runtime and numpy are those of the project, so that all run the same file by the same code.
PINNED = ("bentoml==1.4.39", "litserve==0.2.19")
SHARED = ("onnxruntime", "numpy")
READY_SECONDS = 90.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Peer:
    """A running server of one of the two. `counters` is the file its session counts executions and rows in."""

    name: str
    pid: int
    port: int
    counters: Path

    def counted(self) -> tuple[int, int]:
        """Executions and rows so far."""
        executions, rows = np.fromfile(self.counters, dtype=np.int64)
        return int(executions), int(rows)


@dataclass(frozen=True, slots=True, kw_only=True)
class Serving:
    """What both serve, and how: the same file, threads and largest batch as ours."""

    model: Path
    threads: int
    max_batch: int
    body: bytes


def environment(folder: Path) -> Path:
    """The Python of a virtual environment in `folder` that holds both, made if it is not there yet."""
    python = folder / "bin" / "python"
    if not (folder / "complete").exists():
        subprocess.run([sys.executable, "-m", "venv", "--clear", str(folder)], check=True)
        shared = [f"{name}=={version(name)}" for name in SHARED]
        subprocess.run([str(python), "-m", "pip", "install", "--quiet", *PINNED, *shared], check=True)
        (folder / "complete").touch()
    return python


def installed(python: Path) -> list[str]:
    """Every release in the peers' environment."""
    command = [str(python), "-m", "pip", "freeze", "--disable-pip-version-check"]
    listed: str = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    return listed.split()


@contextmanager
def peer(name: str, python: Path, serving: Serving, folder: Path) -> Iterator[Peer]:
    """The peer, ready inside the block. Raises RuntimeError with its last words if it does not become ready."""
    counters, log, port = folder / "counters", folder / "log", free_port()
    folder.mkdir(parents=True)
    np.zeros(2, dtype=np.int64).tofile(counters)
    command, variables = _command(name, python, serving, str(port), counters)
    variables |= {"BENTOML_HOME": str(folder / "home"), "BENTOML_DO_NOT_TRACK": "true", "TMPDIR": str(folder)}
    with log.open("wb") as output:
        process = subprocess.Popen(
            command, cwd=HERE, env={**os.environ, **variables}, stdout=output, stderr=output, start_new_session=True
        )
    try:
        _wait(process, port, serving.body, log)
        yield Peer(name=name, pid=process.pid, port=port, counters=counters)
    finally:
        end(process)


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        port: int = bound.getsockname()[1]
    return port


def end(process: subprocess.Popen[bytes]) -> None:
    """Kill a process and all it started."""
    with suppress(psutil.NoSuchProcess):
        root = psutil.Process(process.pid)
        tree = [root, *root.children(recursive=True)]
        for one in tree:
            with suppress(psutil.NoSuchProcess):
                one.send_signal(signal.SIGKILL)
    process.wait()


def _command(name: str, python: Path, serving: Serving, port: str, counters: Path) -> tuple[list[str], dict[str, str]]:
    max_batch = 1 if name.endswith(UNBATCHED) else serving.max_batch
    arguments = (str(serving.model), str(serving.threads), str(max_batch), str(counters))
    if name.startswith("LitServe"):
        return [str(python), str(HERE / "serving_overhead_litserve.py"), port, *arguments], {}
    names = ("PEER_MODEL", "PEER_THREADS", "PEER_MAX_BATCH", "PEER_COUNTERS")
    service = "serving_overhead_bentoml:Peer"
    where = ["--host", "127.0.0.1", "--port", port, "--working-dir", str(HERE)]
    command = [str(python), "-m", "bentoml", "serve", service, *where]
    return command, dict(zip(names, arguments, strict=True))


def _wait(process: subprocess.Popen[bytes], port: int, body: bytes, log: Path) -> None:
    until = time.monotonic() + READY_SECONDS
    while time.monotonic() < until and process.poll() is None:
        with suppress(OSError, http.client.HTTPException):
            connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
            connection.request("POST", "/predict", body, {"Content-Type": "application/octet-stream"})
            if connection.getresponse().status == http.client.OK:
                return
        time.sleep(0.2)
    raise RuntimeError("\n".join(log.read_text(errors="replace").splitlines()[-30:]))
