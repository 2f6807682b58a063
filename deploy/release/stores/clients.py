"""Clients of object stores, and their failures in our words.

Owns imports of optional packages, timeouts, retries, and the translation of foreign errors; no credential passes
through here: each SDK finds its own. Called by objects. Messages never repeat what an SDK said, which may name keys.
"""

import errno
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from typing import Any

from deploy.errors import DeployError, MissingError, UnfinishedError, UsageError
from deploy.release.stores.locations import OBJECT_SCHEMES, Location

PART_SIZE = 8 * 1024 * 1024
"""Bytes of a file that are held in memory and sent as one request; a file up to twice that goes in one."""

_CONNECT_SECONDS = 10
_READ_SECONDS = 60
_ATTEMPTS = 3
_MODULES = {"s3": "s3fs", "gcs": "gcsfs", "azure": "adlfs"}
_CREDENTIALS = {
    "s3": "AWS_PROFILE, AWS_ACCESS_KEY_ID with AWS_SECRET_ACCESS_KEY, or a role",
    "gcs": "GOOGLE_APPLICATION_CREDENTIALS, `gcloud auth application-default login`, or a workload identity",
    "azure": "AZURE_STORAGE_ACCOUNT_NAME with AZURE_STORAGE_ACCOUNT_KEY, or a managed identity",
}

# By name, since importing the SDKs to name their exceptions would take seconds: botocore's, google's, azure's.
_NO_CREDENTIALS = {
    "NoCredentialsError",
    "PartialCredentialsError",
    "ProfileNotFound",
    "DefaultCredentialsError",
    "RefreshError",
    "ClientAuthenticationError",
}
_UNREACHABLE = {
    "HTTPClientError",
    "ConnectionError",
    "ClientConnectionError",
    "ClientPayloadError",
    "TimeoutError",
    "FSTimeoutError",
    "ServiceRequestError",
    "ServiceResponseError",
}


def open_client(location: Location) -> Any:
    """The fsspec file system of an object store. Raises MissingError naming the extra that brings it."""
    extra = OBJECT_SCHEMES[location.scheme]
    try:
        import_module(_MODULES[extra])
        import fsspec
    except ImportError as error:
        raise MissingError(
            f"{location.scheme}:// needs a package that is not installed",
            expected=f"the extra {extra!r}",
            fix=f'pip install "deployctl[{extra}]"',
        ) from error
    # What an SDK says beside its errors would go to stderr, in its own words and once for each call.
    logging.getLogger(_MODULES[extra]).setLevel(logging.CRITICAL)
    with errors_explained(location):
        client = fsspec.filesystem(
            location.scheme, use_listings_cache=False, skip_instance_cache=True, **_options(extra)
        )
    if extra == "s3":
        client.retries = _ATTEMPTS
    return client


def sending_options(location: Location, sha256: str) -> dict[str, Any]:
    """What `put_file` is told: how much to hold in memory, and the digest to keep beside the object where it can."""
    extra = OBJECT_SCHEMES[location.scheme]
    if extra == "s3":
        return {"chunksize": PART_SIZE, "max_concurrency": 2, "Metadata": {"sha256": sha256}}
    if extra == "gcs":
        return {"chunksize": PART_SIZE, "metadata": {"sha256": sha256}}
    return {"max_concurrency": 2}


def kept_digest(client: Any, location: Location, path: str) -> str | None:
    """The digest that was kept beside an object, None where the store's client keeps none."""
    extra = OBJECT_SCHEMES[location.scheme]
    if extra == "s3":
        return str(client.metadata(path).get("sha256", ""))
    if extra == "gcs":
        return str((client.info(path).get("metadata") or {}).get("sha256", ""))
    return None


class ConflictError(UnfinishedError):
    """Two conditional writes of one object met: neither says yet which of them holds."""


@contextmanager
def errors_explained(location: Location) -> Iterator[None]:
    """Turn what an SDK raises into one DeployError that says what to do. FileExistsError passes: it is an answer."""
    try:
        yield
    except (DeployError, FileExistsError):
        raise
    except FileNotFoundError as error:
        raise UsageError(
            f"{location} has no such bucket, or lost a file meanwhile",
            expected="a bucket that exists",
            fix=f"create it, or correct {location}",
        ) from error
    except Exception as error:
        raise _translated(error, location) from error


def _translated(error: Exception, location: Location) -> DeployError:
    kinds = {kind.__name__ for kind in type(error).__mro__}
    credentials = _CREDENTIALS[OBJECT_SCHEMES[location.scheme]]
    if _is_denied(error):
        return UsageError(
            f"{location} refused the credentials, or they may not do this",
            expected="leave to list, read and write objects there",
            fix=f"check {credentials}",
        )
    if kinds & _NO_CREDENTIALS:
        return UsageError(
            f"no credentials for {location} were found, or they are refused ({type(error).__name__})",
            expected="what the provider's SDK looks for",
            fix=f"set {credentials}",
        )
    if kinds & _UNREACHABLE:
        return UnfinishedError(
            f"{location} cannot be reached ({type(error).__name__}, {_ATTEMPTS} attempts)",
            fix="check the network and the endpoint, then run it again: what was sent is not sent again",
        )
    return _failed(error, location)


def _failed(error: Exception, location: Location) -> DeployError:
    number = error.errno if isinstance(error, OSError) else None
    what = type(error).__name__ + (f", {errno.errorcode.get(number, number)}" if number else "")
    if "ConditionalRequestConflict" in f"{error}{error.__cause__}":
        return ConflictError(f"another publisher writes to {location} at this moment", fix="run it again")
    if number == errno.ENOSPC:
        return UnfinishedError("the disk is full", fix="free some space, then run it again")
    if number == errno.EINVAL:
        return UsageError(
            f"{location} refused the request ({what})",
            expected="a bucket that these credentials may read and write",
            fix="check the bucket's name and the credentials",
        )
    return UnfinishedError(f"{location} failed ({what})", fix="run it again; --debug shows what the SDK said")


def _is_denied(error: Exception) -> bool:
    """Whether credentials are refused: gcsfs says so by a status, or by an OSError of its own words."""
    status = getattr(error, "code", None) or getattr(error, "status_code", None)
    return isinstance(error, PermissionError) or str(status) in {"401", "403"} or str(error).startswith("Forbidden")


def _options(extra: str) -> dict[str, Any]:
    if extra == "s3":
        settings = {
            "connect_timeout": _CONNECT_SECONDS,
            "read_timeout": _READ_SECONDS,
            "retries": {"total_max_attempts": 2, "mode": "standard"},
        }
        return {"config_kwargs": settings}
    if extra == "gcs":
        return {"requests_timeout": _READ_SECONDS}
    return {"connection_timeout": _CONNECT_SECONDS, "read_timeout": _READ_SECONDS, "anon": False}
