"""A private repository of links, through which a server sees versions that are unpublished or not promoted.

Owns the links and the adapted configs; starts nothing. Called by serve.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from deploy.errors import UsageError
from deploy.repository.beside import config_with
from deploy.repository.layout import CONFIG_FILE, WARMUP_FOLDER, Version
from deploy.repository.protobuf import format_config, parse_config

Adapt = Callable[[Version, Any], Any]
"""Gives back the ModelConfig message that the server shall read for a version; it may change the one it is given."""


def make_view(folder: Path, versions: Sequence[Version], *, adapt: Adapt | None = None) -> Path:
    """`folder`, made into a repository that serves exactly `versions`, each model from its newest one's config.

    The version and warm-up folders are symbolic links, so nothing is copied and a server sees the bytes that are
    published. Raises UsageError if one config cannot serve two versions of a model, or a version has no config.
    """
    models: dict[str, list[Version]] = {}
    for version in versions:
        models.setdefault(version.name, []).append(version)
    folder.mkdir(parents=True, exist_ok=True)
    for name, chosen in models.items():
        _link(folder / name, sorted(set(chosen), key=lambda version: version.number), adapt)
    return folder


def _link(model: Path, versions: Sequence[Version], adapt: Adapt | None) -> None:
    for version in versions:
        if not version.config.is_file():
            raise UsageError(
                f"{version.config} is missing",
                expected="a version with a config of its own",
                fix="restore the version from where it was published",
            )
    *older, newest = versions
    config = parse_config(config_with(newest, (version.number for version in older)))
    if adapt is not None:
        config = adapt(newest, config)
        for version in older:
            # What a server is told of the one version's files it is told of the other's too.
            told = adapt(version, parse_config(version.config.read_text())).parameters
            for name in set(told) - set(config.parameters):
                config.parameters[name].CopyFrom(told[name])
    model.mkdir()
    for version in versions:
        (model / str(version.number)).symlink_to(version.folder.resolve(), target_is_directory=True)
    warmup = newest.model_folder / WARMUP_FOLDER
    if warmup.is_dir():
        (model / WARMUP_FOLDER).symlink_to(warmup.resolve(), target_is_directory=True)
    # Written last: a server that polls takes a folder without a config for no model.
    (model / CONFIG_FILE).write_text(format_config(config))
