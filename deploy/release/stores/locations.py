"""Where a repository lies, as it is written on a command line: a folder or a URL without any secret in it.

Owns the syntax. Opens nothing. Called by the command line through `opening`.
"""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from deploy.errors import UsageError

Kind = Literal["folder", "objects", "oci"]

OBJECT_SCHEMES = {"s3": "s3", "gs": "gcs", "az": "azure", "abfs": "azure"}
"""Each scheme of an object store, with the extra that brings its client."""

_FORMS = "a folder, s3://BUCKET/PATH, gs://BUCKET/PATH, az://CONTAINER/PATH, abfs://CONTAINER/PATH or oci://HOST/PATH"
_BUCKET = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
_PATH = re.compile(r"[A-Za-z0-9._/-]*")
_HOST = re.compile(r"[A-Za-z0-9][A-Za-z0-9.-]*(:[0-9]{1,5})?")
OCI_PART = re.compile(r"[a-z0-9]+([._-]+[a-z0-9]+)*")


@dataclass(frozen=True, slots=True, kw_only=True)
class Location:
    """One place. `root` is a folder's path, `bucket/path` of an object store, or `host/path` of a registry."""

    kind: Kind
    scheme: str
    root: str

    @property
    def folder(self) -> Path:
        """The folder; for that kind only."""
        return Path(self.root)

    def __str__(self) -> str:
        return self.root if self.kind == "folder" else f"{self.scheme}://{self.root}"


def parse_location(text: str) -> Location:
    """What `text` names. Raises UsageError for a form that is not known, and for a URL that may hold a secret.

    The message of the latter never repeats the text.
    """
    scheme, separator, rest = text.partition("://")
    if not separator:
        if not text:
            raise UsageError("the place is empty", expected=_FORMS)
        return Location(kind="folder", scheme="", root=text)
    if any(sign in rest for sign in "@?#") or ":" in rest.partition(":")[2] or _odd_port(scheme, rest):
        raise UsageError(
            "the URL holds a user, a password, a token or an option, and is not repeated here",
            expected="a URL of scheme, place and path only; logs and histories keep what is on a command line",
            fix="leave the credentials to the provider's own chain: its variables, profile, role, or `docker login`",
        )
    if scheme in OBJECT_SCHEMES:
        return _objects(scheme, rest)
    if scheme == "oci":
        return _oci(rest)
    raise UsageError(f"{scheme!r} is no scheme of a store", expected=_FORMS)


def _odd_port(scheme: str, rest: str) -> bool:
    """Whether there is a colon where no port can be."""
    host, _, path = rest.partition("/")
    if ":" not in rest:
        return False
    return scheme != "oci" or ":" in path or not host.partition(":")[2].isdigit()


def _objects(scheme: str, rest: str) -> Location:
    bucket, _, path = rest.partition("/")
    parts = [part for part in path.split("/") if part]
    if not _BUCKET.fullmatch(bucket) or not _PATH.fullmatch(path) or {".", ".."} & set(parts):
        raise UsageError(
            f"{scheme}://{rest!r} names no place in an object store",
            expected=f"{scheme}://BUCKET/PATH of letters, digits, '.', '_' and '-'",
        )
    return Location(kind="objects", scheme=scheme, root="/".join((bucket, *parts)))


def _oci(rest: str) -> Location:
    host, _, path = rest.strip("/").partition("/")
    if not _HOST.fullmatch(host) or not path or not all(OCI_PART.fullmatch(part) for part in path.split("/")):
        raise UsageError(
            f"oci://{rest!r} names no place in a registry",
            expected="oci://HOST[:PORT]/PATH, the path in lower case; a model's name is added to it",
        )
    return Location(kind="oci", scheme="oci", root=f"{host}/{path}")
