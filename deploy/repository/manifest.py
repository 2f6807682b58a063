"""A version's manifest: what lies in it, where it came from, what was proven, and for whom.

Owns the schema, the digests and the environment. Decides nothing about a repository. Called by publish, contract,
promotion, verify and report.
"""

import os
import platform
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path, PurePosixPath
from typing import Any, Literal, Self

from pydantic import Field, model_validator

from deploy import __version__
from deploy.checkpoint.model import Checkpoint, Preprocessing
from deploy.convert.model import Format, PublishedFormat
from deploy.errors import UsageError
from deploy.evidence import Judgement, Verdict
from deploy.files import relative_files, sha256_file, shown
from deploy.gpu import LocalGpu
from deploy.records import Record
from deploy.spec import Spec, wire_input, wire_output
from deploy.targets import Target
from deploy.validate.machine import cpu_model, installed_versions

MANIFEST_FILE = "manifest.json"


class FileEntry(Record):
    """One file of a version by its relative POSIX path."""

    path: str
    sha256: str
    size: int

    @model_validator(mode="after")
    def _inside(self) -> Self:
        path = PurePosixPath(self.path)
        if path.is_absolute() or ".." in path.parts or not path.parts or path.as_posix() != self.path:
            raise ValueError(f"{self.path!r} does not stay in the version")
        return self


class CheckpointOrigin(Record):
    """The checkpoint a version was made from. `file` is its name only: where it lay says nothing to others."""

    file: str
    sha256: str
    format: str
    architecture: str
    how: str
    options: dict[str, Any]
    dtype: str
    parameters: int
    found_under: str | None
    weights: str | None
    removed_prefixes: tuple[str, ...]
    absent: tuple[str, ...] = ()
    trust_pickle: bool
    notes: tuple[str, ...]

    @classmethod
    def of(cls, checkpoint: Checkpoint) -> Self:
        """What the manifest keeps of a checkpoint."""
        same = checkpoint.model_dump(include=set(cls.model_fields))
        return cls(file=checkpoint.path.name, sha256=checkpoint.digest, **same)


class Environment(Record):
    """What the version was built with. A package that is not installed is None.

    `gpu` is the one that it was compiled, proven and measured on, None where that was the CPU.
    """

    python: str
    deployctl: str
    torch: str | None
    torchvision: str | None
    onnx: str | None
    onnxruntime: str | None
    platform: str
    cpu: str
    cores: int
    gpu: LocalGpu | None = None

    @classmethod
    def here(cls, gpu: LocalGpu | None = None) -> Self:
        """The environment of this process, read without importing any of the packages, and the GPU it worked on."""
        versions = installed_versions(["torch", "onnxruntime"])
        return cls(
            python=platform.python_version(),
            deployctl=__version__,
            torch=versions.get("torch"),
            torchvision=_installed("torchvision"),
            onnx=_installed("onnx"),
            onnxruntime=versions.get("onnxruntime"),
            platform=platform.platform(),
            cpu=cpu_model(),
            cores=os.cpu_count() or 1,
            gpu=gpu,
        )


class Verdicts(Record):
    """What each check of the packaging run decided. None where a check was not made."""

    parity: Judgement
    architecture: Judgement
    latency: Judgement | None = None
    served: Judgement | None = None


class StepVersion(Record):
    """A version that an ensemble runs as one of its steps, by the digest that it had when the whole was proven."""

    model: str
    version: int = Field(ge=1)
    digest: str

    def __str__(self) -> str:
        return f"{self.model}:{self.version}"


class Manifest(Record):
    """Everything a version says about itself; it is written last and holds the digest of every other file.

    `wire` maps the tensor names that clients use to the spec's own. `unsafe_accepted` names the checks that failed and
    were accepted all the same. `contract_changes` says what clients of the version that was promoted when this one
    was published will notice. `steps` are the versions that an ensemble is made of, beside it in the repository.
    """

    schema_version: Literal[1] = 1
    name: str
    version: int = Field(ge=1)
    format: PublishedFormat
    created: str
    command: tuple[str, ...]
    spec: Spec
    wire: dict[str, str]
    classes: tuple[str, ...] | None
    preprocessing: Preprocessing
    checkpoint: CheckpointOrigin
    artifact: dict[str, str]
    target: Target
    environment: Environment
    verdicts: Verdicts
    served_check: Literal["done", "skipped"]
    unsafe_accepted: tuple[str, ...] = ()
    contract_changes: tuple[str, ...] = ()
    steps: tuple[StepVersion, ...] = ()
    files: tuple[FileEntry, ...] = ()

    @property
    def network(self) -> StepVersion | None:
        """Of an ensemble the version with the weights, after which the other steps are called; else None."""
        return min(self.steps, key=lambda step: len(step.model), default=None)

    @property
    def compiled(self) -> Format:
        """The format of the model that the version itself holds. Raises UsageError for a version that holds none."""
        if self.format == "python" or self.format == "ensemble":  # noqa: PLR1714 - so that mypy follows
            what = "an ensemble" if self.steps else "a step of an ensemble, in Python"
            network = self.network or "the version that its ensemble runs"
            raise UsageError(
                f"{self.name}:{self.version} is {what}, which holds no model of its own",
                expected="a version with a model.onnx or a model.pt2",
                fix=f"name the network itself: {network}",
            )
        return self.format

    def blockers(self) -> tuple[str, ...]:
        """Why this version may not be released, one sentence per check; empty if nothing stands against it.

        Parity and the served check must have passed. The others may be undecided, and must not have failed.
        """
        return tuple(self._blockers())

    def _blockers(self) -> Iterator[str]:
        checks = (
            # A language model's tokens are compared as they are served: not served, that proof was not made.
            ("parity", self.verdicts.parity, self.format != "vllm" or self.served_check == "done"),
            ("served", self.verdicts.served, self.served_check == "done"),
            ("architecture", self.verdicts.architecture, False),
            ("latency", self.verdicts.latency, False),
        )
        for name, judgement, required in checks:
            if name in self.unsafe_accepted:
                continue
            if judgement is None:
                if required:
                    yield f"{name}: not checked"
            elif judgement.verdict is Verdict.FAIL or (required and not judgement.passed):
                yield f"{name}: {judgement.reason}"


def created_now() -> str:
    """The present as an ISO 8601 UTC time in seconds, or `SOURCE_DATE_EPOCH` where it is set.

    Raises UsageError if that variable is not a number of seconds.
    """
    epoch = os.environ.get("SOURCE_DATE_EPOCH")
    if epoch is None:
        moment = datetime.now(UTC)
    else:
        try:
            moment = datetime.fromtimestamp(int(epoch), UTC)
        except (ValueError, OverflowError, OSError) as error:
            raise UsageError(f"SOURCE_DATE_EPOCH is {epoch!r}", expected="seconds since 1970 as a number") from error
    return moment.isoformat(timespec="seconds").replace("+00:00", "Z")


def wire_names(spec: Spec) -> dict[str, str]:
    """The spec's own name for each tensor name on the wire, inputs first."""
    inputs = {wire_input(index): tensor.name for index, tensor in enumerate(spec.inputs)}
    return inputs | {wire_output(index): tensor.name for index, tensor in enumerate(spec.outputs)}


def file_entries(folder: Path) -> tuple[FileEntry, ...]:
    """Every file of a version but its manifest, by path. Raises UsageError for a link or a special file."""
    return tuple(file_entry(folder, path) for path in relative_files(folder) if path != MANIFEST_FILE)


def file_entry(folder: Path, path: str) -> FileEntry:
    """The entry of one file of a version, `path` relative to its folder."""
    full = folder / path
    return FileEntry(path=path, sha256=sha256_file(full), size=full.stat().st_size)


def version_digest(folder: Path) -> str:
    """The digest of a version: of its manifest's bytes, which hold the digest of all else."""
    return sha256_file(folder / MANIFEST_FILE)


def changed_files(folder: Path, manifest: Manifest) -> tuple[str, ...]:
    """What is not as the manifest says, one sentence per file; empty if all is. Raises UsageError for a link."""
    if folder.is_symlink():
        raise UsageError(f"{folder} is a link", expected="a folder with regular files only")
    expected = {entry.path: entry for entry in manifest.files}
    present = set(relative_files(folder)) - {MANIFEST_FILE}
    found = [f"{shown(path)} is missing" for path in sorted(expected.keys() - present)]
    found += [f"{shown(path)} is not in the manifest" for path in sorted(present - expected.keys())]
    for path in sorted(present & expected.keys()):
        # The size is compared first, since it costs nothing.
        entry, full = expected[path], folder / path
        if full.stat().st_size != entry.size or sha256_file(full) != entry.sha256:
            found.append(f"{shown(path)} has changed")
    return tuple(found)


def verify_files(folder: Path) -> Manifest:
    """The manifest of a version whose files are all as it says. Raises UsageError naming those that are not."""
    manifest = Manifest.read(folder / MANIFEST_FILE)
    refuse_changed(folder, changed_files(folder, manifest))
    return manifest


def refuse_changed(folder: Path, found: Sequence[str]) -> None:
    """Raises UsageError with what was `found` of a version, unless that is nothing."""
    if found:
        raise UsageError(
            f"{folder} is not what was published: {'; '.join(found)}",
            expected="the files that its manifest lists, unchanged, and no others",
            fix="restore the version from where it was published, or package the checkpoint again",
        )


def _installed(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None
