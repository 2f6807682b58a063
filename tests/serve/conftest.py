"""Servers and artifacts that the tests of this room share, since each takes seconds to make."""

from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from deploy.processes import run_alone
from deploy.repository.layout import Version
from deploy.serve.engines import Engine
from deploy.serve.server import TritonServer
from deploy.serve.serving import serving
from tests.repository.samples import Sample
from tests.serve.tiny import Linear, publish


@dataclass(frozen=True, slots=True, kw_only=True)
class Served:
    """A running server and the two versions it serves."""

    server: TritonServer
    onnx: Version
    aoti: Version


@pytest.fixture(scope="session")
def archive(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """The classifier, compiled by AOTInductor; in a child, since torch warns of its own deprecations."""
    return run_alone("compile", Linear().aoti, tmp_path_factory.mktemp("aoti")).value


@pytest.fixture(scope="session")
def served(engine: Engine, archive: bytes, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """One server with the classifier in both formats, each with labels and warm-up."""
    repository = tmp_path_factory.mktemp("served") / "models"
    onnx = publish(repository, Linear().onnx(), Sample(name="pets_onnx"))
    aoti = publish(repository, archive, Sample(name="pets_aoti", format="aoti"))
    with serving([onnx, aoti], engine=engine) as server:
        yield Served(server=server, onnx=onnx, aoti=aoti)
