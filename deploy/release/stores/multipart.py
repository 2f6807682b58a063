"""A large file goes to S3 in parts, and goes on where an earlier upload of it was cut off.

Owns the parts: which are there already, and what becomes of an upload that somebody else ended. Called by objects.
s3fs's own upload would begin anew, and throws away what it has sent when the network fails.

    1. Take the newest upload of the same object that was never ended, else begin one.
    2. Send each part that is not there with the same size and MD5, which is what S3 calls a part by.
    3. End the upload: from now on the object is there.
"""

import hashlib
import math
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from deploy.release.stores.clients import PART_SIZE

LEAST_SIZE = 2 * PART_SIZE
"""Bytes of a file from which on it is sent in parts."""

_AT_ONCE = 2
_MOST_PARTS = 10_000
_MEBI = 1024 * 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class Upload:
    """One upload in parts of an object, by its s3fs client. `begun` says that it was there before."""

    client: Any
    bucket: str
    key: str
    number: str
    begun: bool

    def ask(self, operation: str, **given: Any) -> dict[str, Any]:
        """The answer to an operation on this upload. Raises FileNotFoundError if it was ended meanwhile."""
        found: dict[str, Any] = self.client.call_s3(
            operation, Bucket=self.bucket, Key=self.key, UploadId=self.number, **given
        )
        return found


def send_in_parts(client: Any, source: Path, path: str, *, sha256: str) -> None:
    """Make the object at `path` the file's bytes, with its digest beside it as metadata.

    Raises what the client raises; what was sent until then is there for the next call.
    """
    bucket, key, _ = client.split_path(path)
    newest = _newest(client, bucket, key)
    if newest is not None and _finish(newest, source) and _is_there(client, path, sha256):
        return
    metadata = {"sha256": sha256}
    begun = client.call_s3("create_multipart_upload", Bucket=bucket, Key=key, Metadata=metadata)
    upload = Upload(client=client, bucket=bucket, key=key, number=begun["UploadId"], begun=False)
    # Another publisher of the same version may have gone on with it, and ended it.
    if not _finish(upload, source) and not _is_there(client, path, sha256):
        raise FileNotFoundError(f"the upload of {path} was ended by somebody else")


def _newest(client: Any, bucket: str, key: str) -> Upload | None:
    try:
        found = client.call_s3("list_multipart_uploads", Bucket=bucket, Prefix=key).get("Uploads") or []
    except OSError:
        # Not every store lists them, and not everybody may: then nothing is known to go on with.
        return None
    own = [one for one in found if one["Key"] == key]
    if not own:
        return None
    number = max(own, key=lambda one: one["Initiated"])["UploadId"]
    return Upload(client=client, bucket=bucket, key=key, number=number, begun=True)


def _finish(upload: Upload, source: Path) -> bool:
    """Send what is missing and end the upload; False if it is no more."""
    size = _part_size(source.stat().st_size)
    count = math.ceil(source.stat().st_size / size)
    try:
        present = dict(_present(upload)) if upload.begun else {}

        def send(number: int) -> dict[str, Any]:
            with source.open("rb") as stream:
                stream.seek((number - 1) * size)
                data = stream.read(size)
            known = (len(data), hashlib.md5(data, usedforsecurity=False).hexdigest())
            if present.get(number) == known:
                return {"PartNumber": number, "ETag": f'"{known[1]}"'}
            return {"PartNumber": number, "ETag": upload.ask("upload_part", PartNumber=number, Body=data)["ETag"]}

        with ThreadPoolExecutor(_AT_ONCE, thread_name_prefix="parts") as pool:
            parts = list(pool.map(send, range(1, count + 1)))
        upload.ask("complete_multipart_upload", MultipartUpload={"Parts": parts})
    except FileNotFoundError:
        return False
    return True


def _present(upload: Upload) -> Iterator[tuple[int, tuple[int, str]]]:
    """The number, size and MD5 of each part that is there. What a store calls otherwise is simply sent again."""
    after = 0
    while True:
        page = upload.ask("list_parts", PartNumberMarker=after)
        for part in page.get("Parts") or ():
            yield part["PartNumber"], (part["Size"], part["ETag"].strip('"'))
        if not page.get("IsTruncated"):
            return
        after = page["NextPartNumberMarker"]


def _part_size(total: int) -> int:
    """The same for every run of one file: as small as memory would have it, and not so small that parts run out."""
    return max(PART_SIZE, math.ceil(total / _MOST_PARTS / _MEBI) * _MEBI)


def _is_there(client: Any, path: str, sha256: str) -> bool:
    """Whether the object is one of this digest: an upload that was begun by others may have been of something else."""
    try:
        return bool(client.metadata(path).get("sha256") == sha256)
    except FileNotFoundError:
        return False
