"""What a place is called; and that no secret on a command line is ever repeated."""

import subprocess
import sys
from pathlib import Path

import pytest

from deploy.errors import UsageError
from deploy.release.stores.locations import parse_location
from deploy.release.stores.opening import open_store
from tests.release.stores.children import COMMAND
from tests.repository.samples import put

SECRETS = (
    "s3://key:hunter2@bucket/models",
    "s3://key:hun/ter2@bucket/models",
    "s3://bucket/models?X-Amz-Signature=hunter2",
    "oci://user:hunter2@registry.example.com/models",
    "oci://hunter2@registry.example.com/models",
    "oci://registry.example.com:hunter2/models",
    "az://container/models?sv=2024&sig=hunter2",
    "abfs://container@account.dfs.core.windows.net/models?sig=hunter2",
    "gs://bucket/models#hunter2",
    "https://user:hunter2@example.com/models",
    "ftp://user:hunter2@example.com/models",
)


@pytest.mark.parametrize(
    ("text", "kind", "shown"),
    [
        ("models", "folder", "models"),
        ("/mnt/a@b/models", "folder", "/mnt/a@b/models"),
        ("s3://bucket", "objects", "s3://bucket"),
        ("s3://bucket/team//models/", "objects", "s3://bucket/team/models"),
        ("gs://bucket/models", "objects", "gs://bucket/models"),
        ("az://container/models", "objects", "az://container/models"),
        ("abfs://container/models", "objects", "abfs://container/models"),
        ("oci://registry.example.com/team/models", "oci", "oci://registry.example.com/team/models"),
        ("oci://localhost:5000/models", "oci", "oci://localhost:5000/models"),
    ],
)
def test_a_place_is_understood(text: str, kind: str, shown: str) -> None:
    location = parse_location(text)
    assert (location.kind, str(location)) == (kind, shown)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "https://example.com/models",
        "file:///models",
        "s3://",
        "s3:///models",
        "s3://bucket/../other",
        "s3://bucket/a b",
        "oci:///models",
        "oci://registry.example.com",
        "oci://registry.example.com/Models",
    ],
)
def test_what_is_no_place_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match=r"expected:"):
        parse_location(text)


@pytest.mark.parametrize("text", SECRETS)
def test_a_secret_is_refused_and_not_repeated(text: str) -> None:
    with pytest.raises(UsageError, match="is not repeated here") as caught:
        parse_location(text)
    assert "hun" not in str(caught.value)


@pytest.mark.parametrize("verb", ["publish", "pull"])
def test_a_secret_shows_nowhere_in_what_the_command_says(tmp_path: Path, verb: str) -> None:
    put(tmp_path / "models")
    url, here = "s3://key:hunter2@bucket/models", str(tmp_path / "models")
    places = [here, "pets:1", url] if verb == "publish" else [url, "pets:1", here]
    ended = subprocess.run(
        [*COMMAND, verb, *places, "--json", "--debug"], capture_output=True, text=True, check=False, cwd=Path.cwd()
    )
    assert ended.returncode == 2
    assert "hunter2" not in ended.stdout + ended.stderr


def test_a_file_is_no_place_for_a_repository(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(UsageError, match="is no folder"):
        open_store(str(tmp_path / "file"))
    assert str(open_store(str(tmp_path / "free"))) == str(tmp_path / "free")


@pytest.mark.parametrize(
    ("package", "url", "extra"),
    [
        ("s3fs", "s3://bucket/models", "s3"),
        ("gcsfs", "gs://bucket/models", "gcs"),
        ("adlfs", "az://container/models", "azure"),
        ("oras", "oci://localhost:1/models", "oci"),
    ],
)
def test_a_missing_extra_is_named_before_any_work(tmp_path: Path, package: str, url: str, extra: str) -> None:
    (tmp_path / f"{package}.py").write_text("raise ImportError('not installed')\n")
    code = f"import sys; sys.path.insert(0, {str(tmp_path)!r}); from deploy.cli.main import main; main()"
    ended = subprocess.run(
        [sys.executable, "-c", code, "publish", str(tmp_path / "absent"), "pets", url],
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.returncode == 3, ended.stderr
    assert f'pip install "deployctl[{extra}]"' in ended.stderr
