"""Whether a version, and the model's folder round it, are as deployctl left them: asked before anything is loaded.

Owns what may lie in a model's folder; the digests of a version's files are the manifest's. Called by every command that
loads or serves a published version, by promotion, and by signatures. Changes nothing.

Triton looks for a backend's library in the version's folder and then in the model's, before its own, so a file
beside the versions is as dangerous as one inside.
"""

import os
import re
from collections.abc import Iterator
from pathlib import Path

from deploy.errors import UsageError
from deploy.files import sha256_file, shown
from deploy.repository.beside import own_config, versions_run
from deploy.repository.find import read_manifest
from deploy.repository.layout import (
    ATTESTATIONS_FOLDER,
    CONFIG_FILE,
    WARMUP_FOLDER,
    Version,
    is_version_number,
    promoted_version,
    served_versions,
)
from deploy.repository.lock import between_promotions
from deploy.repository.manifest import Manifest, changed_files, refuse_changed, version_digest

# What `write_atomically` calls a file until it is whole: another process may be promoting or publishing just now.
_UNFINISHED_CONFIG = re.compile(rf"\.{re.escape(CONFIG_FILE)}\.[A-Za-z0-9_]+")
_UNFINISHED_SAMPLE = re.compile(r"\.[0-9a-f]{64}\.[A-Za-z0-9_]+")


def require_intact(version: Version) -> Manifest:
    """The manifest of a version that may be loaded: its files are as published, and nothing strange lies beside them.

    Raises UsageError naming each file that is not.
    """
    manifest = read_manifest(version)
    refuse_changed(version.folder, changes(version, manifest))
    return manifest


def require_compiled(version: Version, manifest: Manifest, *, doing: str) -> Manifest:
    """The manifest of a version that has a compiled artifact. Raises UsageError for a language model's, which has none.

    `doing` says what needs the artifact, as words that follow "cannot".
    """
    if manifest.format == "vllm":
        raise UsageError(
            f"{version} is a language model that vLLM loads as it is, so deployctl cannot {doing}",
            expected="a version with an ONNX or AOTInductor artifact",
            fix="measure how it is served with `deployctl slo --llm`, or prove it again with `deployctl verify`",
        )
    return manifest


def require_artifact(version: Version, manifest: Manifest, *, doing: str) -> Manifest:
    """The manifest of a version that holds a compiled artifact of its own.

    Raises UsageError for a language model's, for an ensemble and for a step in Python, naming the network to name.
    """
    _ = require_compiled(version, manifest, doing=doing).compiled
    return manifest


def changes(version: Version, manifest: Manifest) -> tuple[str, ...]:
    """What is not as it was published, in the version and beside it, one sentence each; empty if all is.

    Raises UsageError for a link, and for a file that cannot be read.
    """
    try:
        return (
            *changed_files(version.folder, manifest),
            *stray_entries(version.model_folder),
            *_changed_steps(version, manifest),
        )
    except PermissionError as error:
        raise UsageError(
            f"{error.filename} cannot be read, so {version} cannot be compared with its digests",
            expected="files that this user may read",
            fix="change their permissions",
        ) from error


def step_versions(version: Version, manifest: Manifest) -> tuple[Version, ...]:
    """Where the steps of an ensemble lie: beside it. Empty for any other version."""
    return tuple(
        Version(repository=version.repository, name=step.model, number=step.version) for step in manifest.steps
    )


def _changed_steps(version: Version, manifest: Manifest) -> Iterator[str]:
    """An ensemble's steps that are absent, are not the versions it was proven with, or have changed themselves."""
    for step, place in zip(manifest.steps, step_versions(version, manifest), strict=True):
        if not place.manifest.is_file():
            yield f"{step}, a step of {version}, is not there"
        elif version_digest(place.folder) != step.digest:
            yield f"{step} is not the version that {version} was proven with"
        else:
            yield from (f"{step}: {found}" for found in changes(place, read_manifest(place)))


def stray_entries(model_folder: Path) -> tuple[str, ...]:
    """What lies in a model's folder and does not belong there, one sentence each; empty if nothing does."""
    return tuple(_strays(model_folder))


def config_strays(version: Version) -> tuple[str, ...]:
    """Why the model's `config.pbtxt` is not the one that promotion wrote, one sentence; empty if it is, or absent."""
    found = _config_strays(version)
    if not found:
        return ()
    # A promotion that is under way changes one config after the other.
    with between_promotions(version.model_folder):
        return _config_strays(version)


def _config_strays(version: Version) -> tuple[str, ...]:
    model = version.model_folder
    config = model / CONFIG_FILE
    if not config.exists():
        return ()
    number = promoted_version(model)
    if number is None:
        return (f"{model.name}/{CONFIG_FILE} names no version",)
    own = model / str(number) / CONFIG_FILE
    if not own.is_file():
        return (f"{model.name}/{CONFIG_FILE} names version {number}, which is not there",)
    idle = set(served_versions(model)) - {number, *versions_run(model.parent, model.name)}
    if idle:
        listed = ", ".join(map(str, sorted(idle)))
        return (f"{model.name}/{CONFIG_FILE} serves version {listed} too, which no promoted ensemble runs",)
    if config.read_bytes() not in (own.read_bytes(), (own_config(model) or "").encode()):
        return (f"{model.name}/{CONFIG_FILE} is not the config of version {number}, which it names",)
    return ()


def _strays(model: Path) -> Iterator[str]:
    for path in sorted(model.iterdir()):
        name = shown(f"{model.name}/{path.name}")
        if path.is_symlink():
            yield f"{name} is a link"
        elif path.name == WARMUP_FOLDER and path.is_dir():
            yield from _strange_samples(path)
        elif not _belongs(path) and _is_still_there(path):
            yield f"{name} does not belong in a model's folder"


def _belongs(path: Path) -> bool:
    if path.is_dir():
        return path.name == ATTESTATIONS_FOLDER or is_version_number(path.name)
    return path.is_file() and (path.name == CONFIG_FILE or bool(_UNFINISHED_CONFIG.fullmatch(path.name)))


def _is_still_there(path: Path) -> bool:
    """Whether it is no file of a moment ago, which has its own name by now."""
    return os.path.lexists(path)


def _strange_samples(folder: Path) -> Iterator[str]:
    """A warm-up sample is called by its digest, so that it needs no list to be checked by."""
    for path in sorted(folder.iterdir()):
        name = shown(f"{folder.parent.name}/{folder.name}/{path.name}")
        if path.is_symlink() or not path.is_file():
            if _is_still_there(path):
                yield f"{name} is no regular file"
        elif not _UNFINISHED_SAMPLE.fullmatch(path.name) and sha256_file(path) != path.name:
            yield f"{name} is not the sample of that digest"
