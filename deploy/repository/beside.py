"""Which versions of a model are served beside the promoted one: those that a promoted ensemble runs.

An ensemble runs its steps by number. So that promoting or rolling back is one replacement of the ensemble's own config,
a step's config goes on naming the version that the ensemble of before runs until the switch is made. Triton answers
with the highest of them where a request names none, and so no version above the promoted one is ever kept.

Owns reading what is needed, and the config that names several versions. Writes nothing. Called by promotion, integrity,
edits and view.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from deploy.errors import UsageError
from deploy.repository.layout import CONFIG_FILE, Version, promoted_version
from deploy.repository.protobuf import format_config, parse_config, specific_versions

# What may differ between two versions that one config serves: the newer one's stands for both.
_OWN = ("version_policy", "instance_group", "model_warmup", "parameters", "optimization", "model_metrics")


@dataclass(frozen=True, slots=True, kw_only=True)
class ServedEnsemble:
    """A promoted ensemble: its version as `NAME:N`, its name, and the versions of its steps by their models."""

    version: str
    name: str
    steps: dict[str, int]


def promoted_ensembles(repository: Path) -> tuple[ServedEnsemble, ...]:
    """The ensembles that are served now, by name, as their configs say; empty where there is no repository."""
    folders = sorted(repository.iterdir()) if repository.is_dir() else []
    return tuple(ensemble for folder in folders for ensemble in _ensemble(folder))


def versions_run(repository: Path, name: str) -> dict[int, str]:
    """The versions of `name` that promoted ensembles run, each with one that runs it as `NAME:N`."""
    ensembles = promoted_ensembles(repository)
    return {ensemble.steps[name]: ensemble.version for ensemble in ensembles if name in ensemble.steps}


def config_with(version: Version, others: Iterable[int]) -> str:
    """The version's own config, naming `others` of its model too; byte for byte its own where there are none.

    Raises UsageError if one config cannot serve both.
    """
    text = version.config.read_text()
    numbers = sorted({version.number, *others})
    if numbers == [version.number]:
        return text
    config = parse_config(text)
    for number in numbers:
        if number != version.number:
            other = Version(repository=version.repository, name=version.name, number=number)
            _check_alike(version, config, other)
    config.version_policy.specific.versions[:] = numbers
    return format_config(config)


def own_config(model_folder: Path) -> str | None:
    """What promotion would have written for the versions that the model's config names; None if that cannot be said."""
    number = promoted_version(model_folder)
    version = Version(repository=model_folder.parent, name=model_folder.name, number=number or 0)
    if number is None or not version.config.is_file():
        return None
    named = specific_versions(parse_config((model_folder / CONFIG_FILE).read_text()))
    try:
        return config_with(version, named)
    except (OSError, UnicodeDecodeError, UsageError):
        return None


def _ensemble(folder: Path) -> Iterator[ServedEnsemble]:
    """The model of this folder, if it is an ensemble with a promoted version."""
    number = promoted_version(folder) if folder.is_dir() else None
    if number is None:
        return
    steps = parse_config((folder / CONFIG_FILE).read_text()).ensemble_scheduling.step
    if steps:
        numbers = {step.model_name: step.model_version for step in steps}
        yield ServedEnsemble(version=f"{folder.name}:{number}", name=folder.name, steps=numbers)


def _check_alike(version: Version, config: Any, other: Version) -> None:
    ours, theirs = _shared(config), _shared(parse_config(other.config.read_text()))
    if ours != theirs:
        fields = [field.name for field in ours.DESCRIPTOR.fields]
        changed = [name for name in fields if getattr(ours, name) != getattr(theirs, name)]
        raise UsageError(
            f"{version} and {other} cannot be served side by side: their configs differ in {', '.join(changed)}",
            expected="two versions of one contract, with one max_batch_size",
            fix="package the newer one with the options of the older, or under another --name",
        )


def _shared(config: Any) -> Any:
    """A copy of the config without what each version may have otherwise."""
    copy = type(config)()
    copy.CopyFrom(config)
    for field in _OWN:
        copy.ClearField(field)
    for output in copy.output:
        output.label_filename = ""
    return copy
