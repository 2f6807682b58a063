"""A client of an OCI registry: blobs, manifests and tags, with failures in our words.

Owns timeouts, retries and the translation of foreign errors; ORAS owns the credentials, which it finds where `docker
login` and `oras login` leave them. Called by oci. Messages never repeat what a registry or a library said.
"""

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache, partial
from inspect import unwrap
from pathlib import Path
from threading import get_ident
from typing import Any
from urllib.parse import urlencode, urljoin

from deploy.errors import DeployError, MissingError, UnfinishedError, UsageError
from deploy.release.stores.clients import PART_SIZE
from deploy.release.stores.locations import Location

MANIFEST_TYPE = "application/vnd.oci.image.manifest.v1+json"
# Others write indexes, and Docker's own kinds.
_ANY_MANIFEST = ", ".join(
    [
        MANIFEST_TYPE,
        "application/vnd.oci.image.index.v1+json",
        "application/vnd.docker.distribution.manifest.v2+json",
        "application/vnd.docker.distribution.manifest.list.v2+json",
    ]
)

_TIMEOUT = (10, 60)
_RETRIES = 3
_PAUSES_SECONDS = (0.2, 0.5, 1.0, None)
_LOOPBACK = ("localhost", "127.0.0.1")


@dataclass(frozen=True, slots=True, kw_only=True)
class Registry:
    """One repository of a registry. `client` is ORAS's, which adds the credentials to each request."""

    location: Location
    path: str
    client: Any

    def blob_exists(self, digest: str) -> bool:
        """Whether the registry holds a blob, under this repository."""
        return bool(self._ask("HEAD", f"blobs/{digest}", fine=(200, 404)).status_code == 200)

    def upload(self, source: Path, digest: str) -> None:
        """Send a file as a blob, streamed; the registry compares it with the digest."""
        with source.open("rb") as stream:
            # An empty stream would be sent in chunks, which not every registry takes.
            self._send(stream if source.stat().st_size else b"", digest)

    def upload_bytes(self, data: bytes, digest: str) -> None:
        """Send a small blob, unless it is there."""
        if not self.blob_exists(digest):
            self._send(data, digest)

    def download(self, digest: str, destination: Path) -> None:
        """Write a blob to a file, in chunks. Checks nothing."""
        response = self._ask("GET", f"blobs/{digest}", fine=(200,), stream=True)
        with errors_explained(self.location), response, destination.open("wb") as stream:
            for chunk in response.iter_content(PART_SIZE):
                stream.write(chunk)

    def read(self, digest: str) -> bytes:
        """A small blob."""
        data: bytes = self._ask("GET", f"blobs/{digest}", fine=(200,)).content
        return data

    def manifest(self, reference: str) -> dict[str, Any] | None:
        """The manifest of a tag; None if there is none, or what is there is no artifact of ours."""
        response = self._ask("GET", f"manifests/{reference}", fine=(200, 404), headers={"Accept": MANIFEST_TYPE})
        if response.status_code == 404:
            return None
        try:
            found = response.json()
        except ValueError:
            return None
        return found if isinstance(found, dict) and isinstance(found.get("layers"), list) else None

    def marks(self, tag: str) -> bool:
        """Whether a tag has a manifest of any kind."""
        response = self._ask("HEAD", f"manifests/{tag}", fine=(200, 404), headers={"Accept": _ANY_MANIFEST})
        return bool(response.status_code == 200)

    def put_manifest(self, reference: str, data: bytes) -> None:
        """Write a manifest under its digest or a tag."""
        for pause in _PAUSES_SECONDS:
            # A registry may not know a blob for the moment in which another publisher sends the same one.
            fine, kind = (201,) if pause is None else (201, 400), {"Content-Type": MANIFEST_TYPE}
            response = self._ask("PUT", f"manifests/{reference}", fine=fine, data=data, headers=kind)
            if pause is None or response.status_code == 201:
                return
            time.sleep(pause)

    def tags(self) -> tuple[str, ...]:
        """Every tag, over as many pages as there are; empty if there is no such repository."""
        found: list[str] = []
        address = "tags/list?n=1000"
        while True:
            response = self._ask("GET", address, fine=(200, 404))
            if response.status_code == 404:
                return ()
            found += response.json().get("tags") or []
            following = response.links.get("next", {}).get("url")
            if not following:
                return tuple(found)
            address = urljoin(response.url, following)

    def _send(self, data: Any, digest: str) -> None:
        """Begin an upload, and end it with the whole blob; what is cut off between leaves no blob."""
        begun = self._ask("POST", "blobs/uploads/", fine=(202,))
        place = urljoin(begun.url, begun.headers["Location"])
        place += ("&" if "?" in place else "?") + urlencode({"digest": digest})
        self._ask("PUT", place, fine=(201,), data=data, headers={"Content-Type": "application/octet-stream"})

    def _ask(self, method: str, address: str, *, fine: tuple[int, ...], **options: Any) -> Any:
        base = f"{self.client.prefix}://{self.client.hostname}/v2/{self.path}/"
        # ORAS repeats a request for minutes, whatever went wrong; ours are repeated by the session.
        ask_once = unwrap(type(self.client).do_request)
        # Said at once, since the body of a request that is refused first is spent.
        options["headers"] = {**self.client.auth.get_auth_header(), **options.get("headers", {})}
        with errors_explained(self.location):
            response = ask_once(self.client, urljoin(base, address), method, **options)
            if response.status_code == 401 and getattr(self.client.auth, "token", None):
                # ORAS keeps the first token, which may allow reading only: a new one is asked for this request.
                self.client.auth.token = None
                if hasattr(options.get("data"), "seek"):
                    options["data"].seek(0)
                response = ask_once(self.client, urljoin(base, address), method, **options)
        if response.status_code not in fine:
            raise _refused(response.status_code, self.location)
        return response


def require_library() -> None:
    """Raises MissingError if ORAS is not installed."""
    _library()


def open_registry(location: Location, name: str) -> Registry:
    """The repository of a model in a registry, by a client of this thread's own."""
    return _open(location, name, get_ident())


@cache
def _open(location: Location, name: str, thread: int) -> Registry:
    oras = _library()
    host, _, path = location.root.partition("/")
    insecure = host.partition(":")[0] in _LOOPBACK
    oras.logger.setup_logger(quiet=True)
    plain = _bound(oras.provider.Registry(hostname=host, insecure=insecure))
    with errors_explained(location), plain.session:
        challenge = plain.session.get(f"{plain.prefix}://{host}/v2/").headers.get("Www-Authenticate", "")
    backend = "basic" if challenge.startswith("Basic") else "token"
    client = _bound(oras.provider.Registry(hostname=host, insecure=insecure, auth_backend=backend))
    with errors_explained(location):
        client.auth.load_configs(client.get_container(f"{host}/{path}/{name}"))
    if backend == "basic" and not hasattr(client.auth, "_basic_auth"):
        raise _refused(401, location)
    return Registry(location=location, path=f"{path}/{name}", client=client)


def _library() -> Any:
    try:
        import oras.logger
        import oras.provider
    except ImportError as error:
        raise MissingError(
            "oci:// needs a package that is not installed",
            expected="the extra 'oci'",
            fix='pip install "deployctl[oci]"',
        ) from error
    return oras


def _bound(client: Any) -> Any:
    """The client, each of its requests given a timeout, and those that can be repeated a few attempts."""
    from requests.adapters import HTTPAdapter
    from urllib3.util.retry import Retry

    # No status is forced into an exception: an answer of the registry is judged by whoever asked.
    retries = Retry(total=_RETRIES, backoff_factor=0.5, status_forcelist=(429, 502, 503, 504), raise_on_status=False)
    for scheme in ("http://", "https://"):
        client.session.mount(scheme, HTTPAdapter(max_retries=retries))
    client.session.request = partial(client.session.request, timeout=_TIMEOUT)
    return client


@contextmanager
def errors_explained(location: Location) -> Iterator[None]:
    """Turn what ORAS or requests raises into one DeployError that says what to do."""
    try:
        yield
    except DeployError:
        raise
    except Exception as error:
        raise _translated(error, location) from error


def _translated(error: Exception, location: Location) -> DeployError:
    kinds = {kind.__name__ for kind in type(error).__mro__}
    if "SSLError" in kinds:
        return UsageError(
            f"{location} has no certificate that is trusted here",
            expected="a certificate of an authority that this machine trusts",
            fix="trust its CA, or use its name",
        )
    if kinds & {"ConnectionError", "Timeout", "RetryError", "ChunkedEncodingError"}:
        return UnfinishedError(
            f"{location} cannot be reached ({type(error).__name__})",
            fix="check the network and the host, then run it again: what was sent is not sent again",
        )
    if "AuthenticationException" in kinds or "authentication" in str(error):
        return _refused(401, location)
    if isinstance(error, json.JSONDecodeError) or "JSONDecodeError" in kinds:
        return UnfinishedError(f"{location} answered with no JSON", fix="check that it is an OCI registry")
    if isinstance(error, OSError) and error.filename:
        return UnfinishedError(f"{error.filename}: {error.strerror}", fix="free some space, or check its permissions")
    return UnfinishedError(f"{location} failed ({type(error).__name__})", fix="run it again; --debug shows more")


def _refused(status: int, location: Location) -> DeployError:
    if status in (401, 403):
        return UsageError(
            f"{location} refused the credentials, or they may not do this",
            expected="leave to read and write there",
            fix=f"run `docker login {location.root.partition('/')[0]}`, or `oras login`, as a user who may",
        )
    if status == 404:
        return UsageError(
            f"{location} does not know this repository",
            expected="a repository that exists, or a registry that makes one when it is written to",
            fix="create it, or correct the path",
        )
    if status >= 500 or status == 429:
        return UnfinishedError(f"{location} is in trouble (status {status})", fix="run it again later")
    return UsageError(
        f"{location} refused the request (status {status})",
        expected="a registry of the OCI distribution specification, and artifacts of any type allowed in it",
    )
