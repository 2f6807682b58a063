"""What is learnt later about a version: kept beside it, keyed by its digest, never part of it.

Owns where attestations lie and that none overwrites another; what one says belongs to who made it. Called by slo,
bench, diff, tune and sign; report and promotion read them.
"""

import os
import re
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from deploy.errors import DeployError, UnfinishedError, UsageError
from deploy.files import disk_errors_explained, write_new
from deploy.records import Record
from deploy.repository.layout import ATTESTATIONS_FOLDER, Version
from deploy.repository.manifest import version_digest

_FILE = re.compile(r"(?P<kind>[a-z][a-z-]*)-(?P<time>[0-9]{8}T[0-9]{6}Z)(-(?P<count>[0-9]+))?\.json")
_ATTEMPTS = 1000
_TIME = "%Y%m%dT%H%M%SZ"
# How far a clock may be set back between two results of one version without the later one sorting before the earlier.
_SET_BACK = timedelta(days=1)


@dataclass(frozen=True, slots=True, kw_only=True)
class Attestation:
    """One file: what kind it is, when it was made (UTC, `20261123T101500Z`), and where it lies."""

    kind: str
    time: str
    path: Path


def attest(version: Version, kind: str, record: Record, *, digest: str | None = None) -> Path:
    """Where the record now lies: `attestations/<digest>/<kind>-<UTC time>.json`, whole or not at all.

    `digest` is that of the version that the record is about; None for the one that lies there now. Raises UsageError if
    the version has no manifest, or the folder takes no more; UnfinishedError if the disk is full, or if the version was
    removed or another took its place since.
    """
    if digest is not None and (not version.manifest.is_file() or version_digest(version.folder) != digest):
        became = "replaced" if version.manifest.is_file() else "removed"
        raise UnfinishedError(
            f"{version} was {became} meanwhile, so the result of {kind} is not kept",
            expected="the version that the result is about, until the end",
            fix="ask again about a version that stays",
        )
    folder = attestation_folder(version)
    with disk_errors_explained(f"keeping the result of {kind} beside {version}", version.model_folder):
        return _write(folder, kind, record)


def attest_or_tell(
    version: Version, kind: str, record: Record, *, digest: str
) -> tuple[Path | None, DeployError | None]:
    """Where the record now lies, or why it lies nowhere: what took minutes to find is shown all the same.

    `digest` is that of the version when it was found intact, before any work.
    """
    try:
        return attest(version, kind, record, digest=digest), None
    except DeployError as error:
        return None, error


def _write(folder: Path, kind: str, record: Record) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    stem = f"{kind}-{_time(folder, kind)}"
    for count in range(_ATTEMPTS):
        path = folder / (f"{stem}-{count}.json" if count else f"{stem}.json")
        # Two runs that end in the same second get two files.
        with suppress(FileExistsError):
            write_new(path, record.to_json().encode())
            return path
    raise UsageError(f"{folder} holds {_ATTEMPTS} attestations of this second", fix="wait a second and try again")


def _time(folder: Path, kind: str) -> str:
    """Now, or the time of the latest of this kind where the clock was set back since: the last to be made comes last.

    A file that is further ahead was made by another clock, and is no measure.
    """
    now = datetime.now(UTC)
    known = [f"{now:{_TIME}}", *(one.time for one in _found(folder) if one.kind == kind)]
    return max(time for time in known if time <= f"{now + _SET_BACK:{_TIME}}")


def require_attestable(version: Version, *, fix: str = "add --no-attest to print the result only") -> None:
    """Raises UsageError if nothing can be kept beside the version, so that it is known before any work.

    `fix` is the caller's own way out.
    """
    if not os.access(version.model_folder, os.W_OK):
        raise UsageError(
            f"{version.model_folder} may not be written, and the result is kept there",
            expected="a folder this user may write",
            fix=fix,
        )


def attestations(version: Version) -> tuple[Attestation, ...]:
    """Every attestation of exactly this version, the oldest first."""
    return tuple(
        sorted(_found(attestation_folder(version)), key=lambda one: (one.time, one.kind, len(one.path.name), one.path))
    )


def attestation_folder(version: Version) -> Path:
    """Where everything lies that is learnt later about exactly this version; it may not be there yet.

    Raises UsageError if the version has no manifest.
    """
    if not version.manifest.is_file():
        raise UsageError(
            f"{version} has no manifest",
            expected="a version that deployctl published",
            fix="package its checkpoint with `deployctl package`",
        )
    return version.model_folder / ATTESTATIONS_FOLDER / version_digest(version.folder)


def _found(folder: Path) -> Iterator[Attestation]:
    for path in folder.glob("*.json") if folder.is_dir() else ():
        if matched := _FILE.fullmatch(path.name):
            yield Attestation(kind=matched["kind"], time=matched["time"], path=path)
