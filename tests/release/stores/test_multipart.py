"""A large file goes on where its upload to S3 was cut off: parts that are there are left, all others are sent."""

import re
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from deploy.files import sha256_file
from deploy.release.stores.clients import PART_SIZE
from deploy.release.stores.multipart import send_in_parts
from tests.release.stores.packages import files_below, put_big
from tests.release.stores.promises import publish, pull
from tests.release.stores.servers import S3Server, object_store

OBJECT = "pets/1/model.onnx"


def begin(bucket: str, parts: list[bytes], *, sha256: str) -> str:
    """An upload of the artifact that was cut off after these parts."""
    client, name, key = client_of(bucket)
    number = client.call_s3("create_multipart_upload", Bucket=name, Key=key, Metadata={"sha256": sha256})
    for count, data in enumerate(parts, 1):
        client.call_s3("upload_part", Bucket=name, Key=key, UploadId=number["UploadId"], PartNumber=count, Body=data)
    return str(number["UploadId"])


def client_of(bucket: str) -> tuple[Any, str, str]:
    store = object_store(bucket)
    name, key, _ = store.client.split_path(f"{store.location.root}/{OBJECT}")
    return store.client, name, key


def sent(s3: S3Server, bucket: str) -> Counter[str]:
    """How often each part of the artifact was sent so far, and how often an upload of it was begun."""
    pattern = re.compile(rf'"(PUT|POST) /{re.escape(bucket.removeprefix("s3://"))}/{OBJECT}\?(\S*) HTTP')
    asked = [match.groups() for line in s3.log.read_text().splitlines() if (match := pattern.search(line))]
    parts = [found[1] for _, query in asked if (found := re.search(r"partNumber=(\d+)", query))]
    return Counter([*parts, *("begun" for method, query in asked if method == "POST" and "uploadId" not in query)])


@pytest.fixture
def chunks(tmp_path: Path) -> list[bytes]:
    """The artifact of a version in `from`, in the parts that it is sent in."""
    data = (put_big(tmp_path / "from").folder / "model.onnx").read_bytes()
    return [data[start : start + PART_SIZE] for start in range(0, len(data), PART_SIZE)]


def arrived(folder: Path, bucket: str) -> bool:
    pull(bucket, folder / "to")
    return files_below(folder / "to") == files_below(folder / "from")


def digest(folder: Path) -> str:
    return sha256_file(folder / "from" / OBJECT)


def test_an_upload_goes_on_within_a_file(tmp_path: Path, bucket: str, s3: S3Server, chunks: list[bytes]) -> None:
    begin(bucket, chunks[:2], sha256=digest(tmp_path))
    before = sent(s3, bucket)
    publish(tmp_path / "from", bucket)
    assert sent(s3, bucket) - before == Counter({"3": 1})
    assert arrived(tmp_path, bucket)
    client, name, key = client_of(bucket)
    assert not client.call_s3("list_multipart_uploads", Bucket=name, Prefix=key).get("Uploads")


@pytest.mark.slow
def test_a_part_of_other_bytes_is_sent_again(tmp_path: Path, bucket: str, s3: S3Server, chunks: list[bytes]) -> None:
    begin(bucket, [b"x" * PART_SIZE, chunks[1]], sha256=digest(tmp_path))
    before = sent(s3, bucket)
    publish(tmp_path / "from", bucket)
    assert sent(s3, bucket) - before == Counter({"1": 1, "3": 1})
    assert arrived(tmp_path, bucket)


@pytest.mark.slow
def test_an_upload_of_something_else_is_not_taken_for_ours(
    tmp_path: Path, bucket: str, s3: S3Server, chunks: list[bytes]
) -> None:
    """It ends as an object that says it is of another digest; ours is sent in its place."""
    begin(bucket, chunks[:2], sha256="0" * 64)
    before = sent(s3, bucket)
    publish(tmp_path / "from", bucket)
    assert sent(s3, bucket) - before == Counter({"begun": 1, "1": 1, "2": 1, "3": 2})
    assert object_store(bucket).client.metadata(f"{bucket.removeprefix('s3://')}/{OBJECT}")["sha256"] == digest(
        tmp_path
    )
    assert arrived(tmp_path, bucket)


class Ended:
    """The client of a publisher whose upload somebody else ends just before it looks at the parts that are there."""

    def __init__(self, client: Any, *, complete: bool) -> None:
        self.client, self.complete, self.times = client, complete, 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self.client, name)

    def call_s3(self, operation: str, **given: Any) -> Any:
        if operation == "list_parts" and not self.times:
            self.times += 1
            where = {name: given[name] for name in ("Bucket", "Key", "UploadId")}
            self.client.call_s3("abort_multipart_upload", **where)
            if self.complete:
                send_in_parts(self.client, self.source, self.path, sha256=self.sha256)
        return self.client.call_s3(operation, **given)

    source: Path
    path: str
    sha256: str


@pytest.mark.slow
@pytest.mark.parametrize("complete", [True, False])
def test_an_upload_that_others_end_is_theirs_or_is_begun_again(
    tmp_path: Path, bucket: str, chunks: list[bytes], *, complete: bool
) -> None:
    begin(bucket, chunks[:1], sha256=digest(tmp_path))
    client = Ended(client_of(bucket)[0], complete=complete)
    client.source, client.sha256 = tmp_path / "from" / OBJECT, digest(tmp_path)
    client.path = f"{bucket.removeprefix('s3://')}/{OBJECT}"
    send_in_parts(client, client.source, client.path, sha256=client.sha256)
    assert client.times == 1
    assert client.client.cat_file(client.path) == client.source.read_bytes()
