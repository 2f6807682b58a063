"""What stores and networks refuse ends as one message that says what to do, and names no secret."""

import subprocess
from pathlib import Path

import pytest

from deploy.errors import DeployError, UnfinishedError, UsageError
from deploy.release.stores.opening import open_store
from deploy.release.stores.publish import PublishRequest, run_publish
from deploy.release.stores.pull import PullRequest, run_pull
from deploy.release.stores.store import find
from tests.release.stores.children import COMMAND
from tests.release.stores.servers import free_port, s3_server
from tests.repository.samples import put


def fail(folder: Path, url: str, kind: type[DeployError]) -> str:
    """What publishing to, and pulling from, a place says; both must say it."""
    put(folder / "from")
    with pytest.raises(kind) as published:
        run_publish(PublishRequest(repository=folder / "from", reference="pets:1", destination=url))
    with pytest.raises(kind) as pulled:
        run_pull(PullRequest(source=url, reference="pets:1", repository=folder / "to"))
    assert not (folder / "to/pets").exists()
    assert published.value.found == pulled.value.found
    assert published.value.fix
    return str(published.value)


def test_a_bucket_that_is_not_there(tmp_path: Path, bucket: str) -> None:
    assert "no such bucket" in fail(tmp_path, f"{bucket.rsplit('/', 1)[0]}-absent/models", UsageError)


def test_credentials_that_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with s3_server(tmp_path, {"INITIAL_NO_AUTH_ACTION_COUNT": "0"}) as server:
        for name, value in (server.environment() | {"AWS_SECRET_ACCESS_KEY": "hunter2"}).items():
            monkeypatch.setenv(name, value)
        message = fail(tmp_path, "s3://bucket/models", UsageError)
    assert "refused the credentials" in message
    assert "hunter2" not in message


def test_no_credentials_at_all(tmp_path: Path, bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "none"))
    # Without credentials s3fs asks anonymously, or its SDK finds none: both are said alike.
    message = fail(tmp_path, bucket, UsageError)
    assert "AWS_PROFILE" in message


def test_a_store_that_cannot_be_reached(tmp_path: Path, bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{free_port()}")
    assert "cannot be reached" in fail(tmp_path, bucket, UnfinishedError)


def test_a_registry_that_cannot_be_reached(tmp_path: Path) -> None:
    with pytest.raises(UnfinishedError, match="cannot be reached"):
        find(open_store(f"oci://127.0.0.1:{free_port()}/models"), "pets", 1)


def test_the_commands_say_what_happened(tmp_path: Path, bucket: str) -> None:
    put(tmp_path / "from")
    first = run(["publish", str(tmp_path / "from"), "pets", bucket])
    assert first.returncode == 0, first.stderr
    assert f"pets:1 is published in {bucket} (promoted)" in first.stdout
    assert "is now in" in run(["pull", bucket, "pets", str(tmp_path / "to")]).stdout
    absent = run(["pull", bucket, "pets:7", str(tmp_path / "to"), "--json"])
    assert (absent.returncode, '"exit_code": 2' in absent.stdout) == (2, True)


def run(command: list[str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*COMMAND, *command], capture_output=True, text=True, check=False)
