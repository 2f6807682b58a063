"""Where things lie in a repository, and what a model may be called.

Owns paths, numbers and names, for reading. Writes nothing. Called by every module of this room, and by serve.
"""

import re
from dataclasses import dataclass
from pathlib import Path

from deploy.errors import UsageError
from deploy.repository.manifest import MANIFEST_FILE
from deploy.repository.protobuf import parse_config, specific_versions

CONFIG_FILE = "config.pbtxt"
LABELS_FILE = "labels.txt"
EVIDENCE_FOLDER = "evidence"
WARMUP_FOLDER = "warmup"
ATTESTATIONS_FOLDER = "attestations"

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")
# Triton ignores a version folder that begins with 0 or is no number, and counts in 64 bits.
_NUMBER = re.compile(r"[1-9][0-9]{0,17}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Version:
    """One version's place: `<repository>/<name>/<number>`."""

    repository: Path
    name: str
    number: int

    @property
    def model_folder(self) -> Path:
        """`<repository>/<name>`."""
        return self.repository / self.name

    @property
    def folder(self) -> Path:
        """`<repository>/<name>/<number>`."""
        return self.model_folder / str(self.number)

    @property
    def config(self) -> Path:
        """The version's own config, whether it is promoted or not."""
        return self.folder / CONFIG_FILE

    @property
    def manifest(self) -> Path:
        """The version's manifest."""
        return self.folder / MANIFEST_FILE

    @property
    def evidence(self) -> Path:
        """The folder of the packaging run's evidence."""
        return self.folder / EVIDENCE_FOLDER

    def __str__(self) -> str:
        return f"{self.name}:{self.number}"


def check_name(name: str) -> str:
    """The name itself. Raises UsageError if Triton could not take it for a model's folder."""
    if not _NAME.fullmatch(name):
        raise UsageError(
            f"{name!r} cannot be the name of a model",
            expected="a letter or digit, then letters, digits, '_', '.' or '-'",
            fix="choose another name with --name",
        )
    return name


def is_version_number(name: str) -> bool:
    """Whether Triton takes a folder of that name for a version."""
    return _NUMBER.fullmatch(name) is not None


def is_artifact_file(path: str) -> bool:
    """Whether a file, by its path inside a version's folder, belongs to the artifact, not to what is said of it."""
    beside = (CONFIG_FILE, LABELS_FILE, MANIFEST_FILE)
    return path not in beside and not path.startswith(f"{EVIDENCE_FOLDER}/")


def version_numbers(model_folder: Path) -> tuple[int, ...]:
    """The numbers of a model's versions, ascending; empty if there is no such folder."""
    if not model_folder.is_dir():
        return ()
    names = (entry.name for entry in model_folder.iterdir() if entry.is_dir())
    return tuple(sorted(int(name) for name in names if is_version_number(name)))


def next_number(model_folder: Path) -> int:
    """The number that the next version of a model gets."""
    return max(version_numbers(model_folder), default=0) + 1


def promoted_version(model_folder: Path) -> int | None:
    """The version that Triton answers with where a request names none: the highest that it is told to serve.

    None if no config, or none that can be parsed, names a version.
    """
    return max(served_versions(model_folder), default=None)


def served_versions(model_folder: Path) -> tuple[int, ...]:
    """All versions that Triton is told to serve, ascending: the promoted one, and those that ensembles run besides."""
    try:
        versions = specific_versions(parse_config((model_folder / CONFIG_FILE).read_text()))
    except (FileNotFoundError, NotADirectoryError, IsADirectoryError, UnicodeDecodeError, UsageError):
        return ()
    return tuple(sorted(set(versions)))
