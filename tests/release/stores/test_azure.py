"""Azure's blob storage, as Azurite serves it: the same promises as of S3. Skipped where `make azurite` was not run."""

import json
import secrets
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from deploy.cache import cache_folder
from deploy.errors import DeployError
from tests.markdown import ROOT
from tests.release.stores.promises import (
    assert_goes_there_and_back,
    assert_promotion_waits_and_no_number_is_taken_twice,
    assert_what_changed_there_is_not_taken,
    publish,
)
from tests.release.stores.servers import free_port, object_store, started
from tests.repository.samples import put

_PINNED = json.loads((ROOT / "requirements/azurite/package.json").read_text())["dependencies"]["azurite"]
AZURITE = cache_folder(f"azurite-{_PINNED}") / "node_modules/azurite/dist/src/blob/main.js"
NODE = shutil.which("node")
# Azurite's own account, which everybody knows.
KEY = "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw=="

pytestmark = pytest.mark.skipif(NODE is None or not AZURITE.is_file(), reason="Azurite is not installed: make azurite")


def connection(port: int, key: str = KEY) -> str:
    """What the SDK of Azure reads from AZURE_STORAGE_CONNECTION_STRING."""
    where = f"http://127.0.0.1:{port}/devstoreaccount1"
    return f"DefaultEndpointsProtocol=http;AccountName=devstoreaccount1;AccountKey={key};BlobEndpoint={where};"


@pytest.fixture(scope="module")
def port(tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    folder, port = tmp_path_factory.mktemp("azurite"), free_port()
    given = ["--blobHost", "127.0.0.1", "--blobPort", str(port), "--location", str(folder), "--skipApiVersionCheck"]
    with started([str(NODE), str(AZURITE), *given], port, folder / "log"):
        yield port


@pytest.fixture
def container(port: int, monkeypatch: pytest.MonkeyPatch) -> str:
    """The URL of a path in a new container."""
    monkeypatch.setenv("AZURE_STORAGE_CONNECTION_STRING", connection(port))
    url = f"az://models-{secrets.token_hex(4)}/production"
    object_store(url).client.mkdir(url.split("/")[2])
    return url


def test_a_version_goes_there_and_back_with_what_is_attested(tmp_path: Path, container: str) -> None:
    assert_goes_there_and_back(tmp_path, container)


def test_promotion_waits_and_a_number_is_never_taken_twice(tmp_path: Path, container: str) -> None:
    assert_promotion_waits_and_no_number_is_taken_twice(tmp_path, container)


def test_what_changed_there_is_not_taken(tmp_path: Path, container: str) -> None:
    assert_what_changed_there_is_not_taken(tmp_path, container)


def test_a_key_that_is_refused_is_not_repeated(
    tmp_path: Path, container: str, port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(tmp_path / "from")
    wrong = f"{'A' * 86}=="
    monkeypatch.setenv("AZURE_STORAGE_CONNECTION_STRING", connection(port, wrong))
    with pytest.raises(DeployError) as refused:
        publish(tmp_path / "from", container, "pets")
    assert wrong not in str(refused.value)
    assert "AZURE_STORAGE" in str(refused.value)
