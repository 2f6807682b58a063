"""Servers of other people's making that these tests start on a free port, and end."""

import json
import os
import re
import shutil
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from deploy.release.stores.locations import parse_location
from deploy.release.stores.objects import ObjectStore
from tests.markdown import ROOT


@dataclass(frozen=True, slots=True, kw_only=True)
class S3Server:
    """A running S3, and the log of its requests."""

    port: int
    log: Path

    def environment(self) -> dict[str, str]:
        """What a client's own credential chain finds."""
        return {
            "AWS_ENDPOINT_URL": f"http://127.0.0.1:{self.port}",
            "AWS_ACCESS_KEY_ID": "testing",
            "AWS_SECRET_ACCESS_KEY": "testing-secret",
            "AWS_DEFAULT_REGION": "us-east-1",
        }

    def puts(self, path: str) -> Counter[str]:
        """How often each object below a path was written, multipart uploads counted by their end."""
        pattern = re.compile(rf'"(PUT|POST) /{re.escape(path)}/([^ ?]*)(\?\S*)? HTTP')
        found = (match for line in self.log.read_text().splitlines() if (match := pattern.search(line)))
        # A multipart upload is a POST that begins it, a PUT for each part, and a POST with its id that ends it.
        ended = (m[2] for m in found if ("uploadId=" in (m[3] or "")) == (m[1] == "POST"))
        return Counter(ended)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def started(command: list[str], port: int, log: Path, environment: Mapping[str, str] = {}) -> Iterator[None]:
    """A process that listens on `port` while the block lasts."""
    with log.open("wb") as stream:
        process = subprocess.Popen(
            command, stdout=stream, stderr=stream, cwd=ROOT, env={**os.environ, **environment}, start_new_session=True
        )
    try:
        deadline = time.monotonic() + 60
        while not _listens(port):
            assert process.poll() is None, log.read_text()
            assert time.monotonic() < deadline, log.read_text()
            time.sleep(0.05)
        yield
    finally:
        process.terminate()
        try:
            process.wait(timeout=5)
        except subprocess.TimeoutExpired:
            # Azurite waits for connections that a client in this process keeps open.
            process.kill()
            process.wait(timeout=20)


def _listens(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), timeout=1).close()
    except OSError:
        return False
    return True


@contextmanager
def s3_server(folder: Path, environment: Mapping[str, str] = {}) -> Iterator[S3Server]:
    server = S3Server(port=free_port(), log=folder / "s3.log")
    command = [sys.executable, "-m", "tests.release.stores.s3_server", str(server.port)]
    with started(command, server.port, server.log, environment):
        yield server


def object_store(url: str) -> ObjectStore:
    return ObjectStore.open(parse_location(url))


def flip_byte(store: Any, path: str) -> None:
    """Change one byte of an object, and nothing else about it."""
    data = bytearray(store.client.cat_file(path))
    data[-1] ^= 1
    store.client.pipe_file(path, bytes(data))


@dataclass(frozen=True, slots=True, kw_only=True)
class RegistryServer:
    """A running OCI registry, where it keeps its blobs, and the log of its requests."""

    port: int
    folder: Path
    log: Path

    @property
    def url(self) -> str:
        return f"oci://127.0.0.1:{self.port}"

    def uploads(self) -> int:
        """How many blobs were sent to it so far."""
        return len(re.findall(r'"PUT /v2/\S*/blobs/uploads/\S* HTTP[^"]*" 201', self.log.read_text()))

    def blob(self, digest: str) -> Path:
        """Where it keeps a blob."""
        return self.folder / f"docker/registry/v2/blobs/sha256/{digest[:2]}/{digest}/data"


@contextmanager
def registry_server(folder: Path, *, users: str = "") -> Iterator[RegistryServer]:
    """Debian's docker-registry; `users` are lines of an htpasswd file, without any everyone may do everything."""
    program = shutil.which("docker-registry")
    assert program, "docker-registry is not on PATH: run `make registry`"
    server = RegistryServer(port=free_port(), folder=folder / "blobs", log=folder / "registry.log")
    config: dict[str, Any] = {
        "version": 0.1,
        "storage": {"filesystem": {"rootdirectory": str(server.folder)}},
        "http": {"addr": f"127.0.0.1:{server.port}"},
    }
    if users:
        (folder / "users").write_text(users)
        config["auth"] = {"htpasswd": {"realm": "basic-realm", "path": str(folder / "users")}}
    (folder / "config.yml").write_text(json.dumps(config))
    with started([program, "serve", str(folder / "config.yml")], server.port, server.log):
        yield server
