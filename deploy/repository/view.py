"""A private repository of links, through which a server sees versions that are unpublished or not promoted.

Owns the links and the adapted configs; starts nothing. Called by serve, slo and verify.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from deploy.errors import UsageError
from deploy.repository.layout import CONFIG_FILE, WARMUP_FOLDER, Version
from deploy.repository.protobuf import format_config, parse_config

Adapt = Callable[[Version, Any], Any]
"""Gives back the ModelConfig message that the server shall read for a version; it may change the one it is given."""


def make_view(folder: Path, versions: Sequence[Version], *, adapt: Adapt | None = None) -> Path:
    """`folder`, made into a repository that serves exactly `versions`, each from its own config.

    The version and warm-up folders are symbolic links, so nothing is copied and a server sees the bytes that are
    published. Raises UsageError if two versions of one model are asked for, or a version has no config.
    """
    names = [version.name for version in versions]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise UsageError(f"two versions of {', '.join(twice)} were asked for", expected="one version of each model")
    folder.mkdir(parents=True, exist_ok=True)
    for version in versions:
        _link(folder / version.name, version, adapt)
    return folder


def _link(model: Path, version: Version, adapt: Adapt | None) -> None:
    if not version.config.is_file():
        raise UsageError(f"{version.config} is missing", expected="a version with a config of its own")
    config = parse_config(version.config.read_text())
    if adapt is not None:
        config = adapt(version, config)
    model.mkdir()
    (model / str(version.number)).symlink_to(version.folder.resolve(), target_is_directory=True)
    warmup = version.model_folder / WARMUP_FOLDER
    if warmup.is_dir():
        (model / WARMUP_FOLDER).symlink_to(warmup.resolve(), target_is_directory=True)
    # Written last: a server that polls takes a folder without a config for no model.
    (model / CONFIG_FILE).write_text(format_config(config))
