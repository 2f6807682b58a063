"""Google Cloud Storage, as fake-gcs-server has it: the same promises as of S3. Skipped where `make gcs` was not run."""

import json
import re
import secrets
from collections.abc import Iterator
from pathlib import Path

import pytest

from deploy.cache import cache_folder
from deploy.errors import UsageError
from tests.markdown import ROOT
from tests.release.stores.children import die, run_together
from tests.release.stores.packages import files_below, put_big
from tests.release.stores.promises import (
    assert_goes_there_and_back,
    assert_promotion_waits_and_no_number_is_taken_twice,
    assert_what_changed_there_is_not_taken,
    publish,
    pull,
)
from tests.release.stores.servers import free_port, object_store, started
from tests.repository.samples import Sample, put

_PINNED = re.search(r"==([0-9.]+)", (ROOT / "requirements/gcs/requirements.txt").read_text())
assert _PINNED is not None
SERVER = cache_folder(f"fake-gcs-server-{_PINNED[1]}") / "fake-gcs-server"

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not SERVER.is_file(), reason="fake-gcs-server is not installed: make gcs"),
    # gcsfs gives aiohttp its bytes as they are, of which that warns from a megabyte on.
    pytest.mark.filterwarnings("ignore:Sending a large body directly:ResourceWarning"),
]


@pytest.fixture(scope="module")
def port(tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    folder, port = tmp_path_factory.mktemp("gcs"), free_port()
    address = ("-scheme", "http", "-host", "127.0.0.1", "-port", str(port), "-public-host", f"127.0.0.1:{port}")
    command = [str(SERVER), "-backend", "memory", "-external-url", f"http://127.0.0.1:{port}", *address]
    with started(command, port, folder / "log"):
        yield port


@pytest.fixture
def bucket(port: int, monkeypatch: pytest.MonkeyPatch) -> str:
    """The URL of a path in a new bucket; nobody looks for credentials on a network."""
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", f"http://127.0.0.1:{port}")
    monkeypatch.setenv("NO_GCE_CHECK", "true")
    url = f"gs://models-{secrets.token_hex(4)}/production"
    object_store(url).client.mkdir(url.split("/")[2])
    return url


def test_a_version_goes_there_and_back_with_what_is_attested(tmp_path: Path, bucket: str) -> None:
    assert_goes_there_and_back(tmp_path, bucket)


def test_promotion_waits_and_a_number_is_never_taken_twice(tmp_path: Path, bucket: str) -> None:
    assert_promotion_waits_and_no_number_is_taken_twice(tmp_path, bucket)


def test_what_a_killed_publisher_sent_is_not_sent_again(tmp_path: Path, bucket: str) -> None:
    put_big(tmp_path / "from")
    die("publish", str(tmp_path / "from"), "pets:1", bucket, files=3)
    assert object_store(bucket).numbers("pets") == ()
    with pytest.raises(UsageError, match="has no whole version pets:1"):
        pull(bucket, tmp_path / "to")
    assert publish(tmp_path / "from", bucket).sent.present >= 3
    pull(bucket, tmp_path / "to")
    assert files_below(tmp_path / "to") == files_below(tmp_path / "from")


def test_publishers_side_by_side_never_share_a_number(tmp_path: Path, bucket: str) -> None:
    for index in range(3):
        put(tmp_path / f"from{index}", Sample(weights=f"weights {index}".encode()))
    ended = run_together(
        [["publish", str(tmp_path / f"from{index}"), "pets", bucket, "--json", "--renumber"] for index in range(3)]
    )
    done = {index: json.loads(one.stdout)["number"] for index, one in enumerate(ended) if one.returncode == 0}
    assert sorted(done.values()) == [1, 2, 3], [one.stderr for one in ended]
    for index, number in done.items():
        pull(bucket, tmp_path / "to", f"pets:{number}")
        assert (tmp_path / f"to/pets/{number}/model.onnx").read_bytes() == f"weights {index}".encode()


def test_what_changed_there_is_not_taken(tmp_path: Path, bucket: str) -> None:
    assert_what_changed_there_is_not_taken(tmp_path, bucket)


def test_the_client_of_google_talks_to_nobody(tmp_path: Path, bucket: str) -> None:
    """It warns of each bucket whose kind it cannot ask for, once for each call."""
    put(tmp_path / "from")
    (ended,) = run_together([["publish", str(tmp_path / "from"), "pets", bucket]])
    assert ended.returncode == 0, ended.stderr
    assert "bucket type" not in ended.stderr
