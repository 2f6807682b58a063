"""A real tritonserver on a repository of two versions whose answers are known, in explicit or poll mode.

Owns the repository and the server; loads nothing after the start. Called by `swap`, `swap_mistakes` and their test.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from benchmarks.swap_load import Question
from deploy.serve.client import Client, ModelAddress, Protocol, RequestFailed
from deploy.serve.engines import Engine
from deploy.serve.server import ModelControl, ServerOptions, TritonServer
from tests.release.versions import put_linear
from tests.serve.tiny import Linear, images

NAME = "pets"
VERSIONS = {1: Linear(seed=1), 2: Linear(seed=2)}
_ROWS = 32


@dataclass(frozen=True, slots=True, kw_only=True)
class World:
    """The server reads `repository` itself, with no view between: what is promoted there is what it sees."""

    repository: Path
    mode: ModelControl
    server: TritonServer
    question: Question

    def address(self, protocol: Protocol) -> str:
        """Where clients of a protocol ask."""
        return self.server.grpc_address if protocol == "grpc" else self.server.http_address

    def ready(self, client: Client, version: int) -> bool:
        """Whether the server has this version ready."""
        try:
            return client.ready(ModelAddress(name=NAME, version=version, outputs=()))
        except RequestFailed:
            return False


@contextmanager
def served_world(folder: Path, mode: ModelControl, engine: Engine) -> Iterator[World]:
    """The world with version 1 promoted and loaded; the server is gone after the block."""
    repository = folder / "models"
    for linear in VERSIONS.values():
        put_linear(repository, linear)
    rows = images(_ROWS, seed=5)
    question = Question(
        model=NAME, rows=rows, expected={number: linear.outputs(rows) for number, linear in VERSIONS.items()}
    )
    expect = () if mode == "explicit" else ((NAME, 1),)
    options = ServerOptions(control=mode, expect=expect)
    with TritonServer(repository, engine=engine, options=options, log=folder / "server.log") as server:
        if mode == "explicit":
            with Client("grpc", server.grpc_address) as client:
                client.load(NAME)
        yield World(repository=repository, mode=mode, server=server, question=question)
