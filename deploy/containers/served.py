"""What of a repository belongs into a server's image: the files that a version needs to be served, and no others.

Owns that choice, the config as the image's server reads it, and whether the target can run the version at all. Called
by render, and by the plan for Kubernetes. Evidence, attestations and other versions stay behind.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass

from deploy.errors import UsageError
from deploy.files import sha256_bytes
from deploy.monitoring.export import with_buckets
from deploy.monitoring.objective import Objective
from deploy.monitoring.slo_queries import Measure
from deploy.repository.integrity import require_compiled, require_intact
from deploy.repository.layout import CONFIG_FILE, EVIDENCE_FOLDER, WARMUP_FOLDER, Version
from deploy.repository.manifest import MANIFEST_FILE, Manifest, version_digest
from deploy.repository.preflight import config_misfits
from deploy.repository.protobuf import parse_config
from deploy.targets import Target

_MEGABYTE = 1024 * 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class ServedFile:
    """A file by its place in the repository, which is its place in the image too, with the digest it must have."""

    path: str
    sha256: str
    size: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ServedModel:
    """One version as an image serves it: its files from the repository, and its config, which is rendered."""

    version: Version
    manifest: Manifest
    digest: str
    files: tuple[ServedFile, ...]
    config: str

    @property
    def config_path(self) -> str:
        """Where the config lies in the image's repository."""
        return f"{self.version.name}/{CONFIG_FILE}"

    @property
    def unpacked_megabytes(self) -> int:
        """What loading it writes to /tmp: an AOTInductor archive is unpacked there, a graph is not."""
        if self.manifest.format != "aoti":
            return 0
        return math.ceil(sum(file.size for file in self.files) / _MEGABYTE)


def served_model(
    version: Version, target: Target, *, objectives: tuple[Objective, ...], measure: Measure
) -> ServedModel:
    """The version for an image of the target.

    Raises UsageError if its files are not what was published, a check speaks against it, or the target cannot run it.
    """
    manifest = require_compiled(version, require_intact(version), doing="render an image or manifests for it")
    _check_release(version, manifest)
    _check_target(version, manifest, target)
    config = version.config.read_text()
    if measure == "histograms":
        config = with_buckets(config, tuple(o for o in objectives if o.model == version.name))
    return ServedModel(
        version=version,
        manifest=manifest,
        digest=version_digest(version.folder),
        files=(*_version_files(version, manifest), *_warmup_files(version)),
        config=config,
    )


def _version_files(version: Version, manifest: Manifest) -> Iterator[ServedFile]:
    beside = (CONFIG_FILE, MANIFEST_FILE)
    for entry in manifest.files:
        if entry.path not in beside and not entry.path.startswith(f"{EVIDENCE_FOLDER}/"):
            path = f"{version.name}/{version.number}/{entry.path}"
            yield ServedFile(path=path, sha256=entry.sha256, size=entry.size)


def _warmup_files(version: Version) -> Iterator[ServedFile]:
    """The samples that the config names; a sample's file is called by its digest."""
    config = parse_config(version.config.read_text())
    inputs = [tensor for warmup in config.model_warmup for tensor in warmup.inputs.values()]
    for name in sorted({tensor.input_data_file for tensor in inputs if tensor.input_data_file}):
        path = version.model_folder / WARMUP_FOLDER / name
        if not path.is_file() or sha256_bytes(path.read_bytes()) != name:
            raise UsageError(
                f"{path} is missing or has changed",
                expected="the sample that the config warms up with",
                fix="restore the repository from where it was published, or package the checkpoint again",
            )
        yield ServedFile(path=f"{version.name}/{WARMUP_FOLDER}/{name}", sha256=name, size=path.stat().st_size)


def _check_release(version: Version, manifest: Manifest) -> None:
    if blockers := manifest.blockers():
        raise UsageError(
            f"{version} is not to be released: {'; '.join(blockers)}",
            expected="a version whose checks have passed",
            fix="package it again, or name another version",
        )


def _check_target(version: Version, manifest: Manifest, target: Target) -> None:
    """An archive holds code for one torch; a graph runs wherever its opset is known and its config can be served."""
    if manifest.format == "aoti":
        if manifest.target.name != target.name:
            raise UsageError(
                f"{version} is an AOTInductor archive for {manifest.target.name}",
                expected=f"one that was compiled for {target.name}, by the torch of its image",
                fix=f"package it with --target {target.name} in the packager image",
            )
        return
    for name, ceiling in (("opset", target.opset), ("ir_version", target.ir_version)):
        found = int(manifest.artifact.get(name, 0))
        if found > ceiling:
            raise UsageError(
                f"{version} has {name} {found}, and {target.name} loads at most {ceiling}",
                expected="a graph for this target",
                fix=f"package it with --target {target.name}",
            )
    # Python runs wherever the server does, round a network on a GPU too.
    if manifest.format == "onnx" and (wrong := list(config_misfits(parse_config(version.config.read_text()), target))):
        raise UsageError(
            f"{version} was packaged for {manifest.target.name}: {'; '.join(wrong)}",
            expected=f"a version whose config {target.name} serves",
            fix=f"package it with --target {target.name}, or name another target",
        )
