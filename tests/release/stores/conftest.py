"""A real S3 for the tests of this room, and a bucket for each of them."""

import secrets
from collections.abc import Iterator

import pytest

from tests.release.stores.servers import RegistryServer, S3Server, object_store, registry_server, s3_server


@pytest.fixture(scope="session")
def s3(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    with s3_server(tmp_path_factory.mktemp("s3")) as server:
        yield server


@pytest.fixture
def bucket(s3: S3Server, monkeypatch: pytest.MonkeyPatch) -> str:
    """The URL of a new bucket's path; the environment has what reaches it."""
    for name, value in s3.environment().items():
        monkeypatch.setenv(name, value)
    url = f"s3://bucket-{secrets.token_hex(4)}/models"
    object_store(url).client.mkdir(url.split("/")[2])
    return url


@pytest.fixture(scope="session")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RegistryServer]:
    with registry_server(tmp_path_factory.mktemp("registry")) as server:
        yield server


@pytest.fixture
def place(registry: RegistryServer) -> str:
    """The URL of a new path in the registry."""
    return f"{registry.url}/team-{secrets.token_hex(4)}"
