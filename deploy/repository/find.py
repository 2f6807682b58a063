"""Models and versions that are there, and a clear word about those that are not.

Owns `NAME[:N]`. Reads only. Called by every command that takes a repository.
"""

from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path

from deploy.errors import UsageError
from deploy.repository.layout import CONFIG_FILE, Version, is_version_number, promoted_version, version_numbers
from deploy.repository.manifest import Manifest


@dataclass(frozen=True, slots=True, kw_only=True)
class Model:
    """One model of a repository: its versions, ascending, and the promoted one."""

    repository: Path
    name: str
    versions: tuple[int, ...]
    promoted: int | None

    @property
    def folder(self) -> Path:
        """`<repository>/<name>`."""
        return self.repository / self.name

    def version(self, number: int) -> Version:
        """Where version `number` lies."""
        return Version(repository=self.repository, name=self.name, number=number)


def list_models(repository: Path) -> tuple[Model, ...]:
    """The models of a repository, by name. Raises UsageError if the repository is no folder."""
    return tuple(_model(repository, name) for name in _names(repository))


def find_model(repository: Path, name: str) -> Model:
    """The model called `name`. Raises UsageError if there is none, naming the nearest."""
    names = _names(repository)
    if name not in names:
        near = get_close_matches(name, names) or names
        raise UsageError(
            f"there is no model {name!r} in {repository}",
            expected=f"one of {', '.join(near)}" if near else "a repository that holds models",
            fix="" if near else "publish one with `deployctl package`",
        )
    return _model(repository, name)


def parse_reference(text: str) -> tuple[str, int | None]:
    """Name and number of `NAME[:N]`; the number is None where it is not given. Raises UsageError if it is no number."""
    name, colon, number = text.partition(":")
    if not name or (colon and not is_version_number(number.lstrip("0"))):
        raise UsageError(f"{text!r} names no version", expected="NAME or NAME:N, for example resnet18:2")
    return name, int(number) if colon else None


def find_version(repository: Path, reference: str) -> Version:
    """The version that `NAME[:N]` means; without N the promoted one.

    Raises UsageError if the model or the version does not exist, naming those that do.
    """
    name, number = parse_reference(reference)
    model = find_model(repository, name)
    if number is None and model.promoted is None:
        ours = [known for known in model.versions if is_ours(model.version(known))]
        if not ours:
            raise _foreign(model.folder)
        raise UsageError(
            f"no version of {name} is promoted",
            expected=f"one of {_listed(model)}",
            fix=f"name a version, or run `deployctl promote {repository} {name}:{max(ours)}`",
        )
    chosen = model.promoted if number is None else number
    if chosen not in model.versions:
        raise UsageError(f"{name} has no version {chosen}", expected=f"one of {_listed(model)}")
    return model.version(chosen)


def read_manifest(version: Version) -> Manifest:
    """A version's manifest. Raises UsageError if it is absent or belongs to another version."""
    if version.folder.is_dir() and not is_ours(version):
        raise _foreign(version.folder)
    manifest = Manifest.read(version.manifest)
    if (manifest.name, manifest.version) != (version.name, version.number):
        raise UsageError(
            f"{version.manifest} belongs to {manifest.name}:{manifest.version}",
            expected=f"the manifest of {version}",
            fix="a version is neither copied nor renamed by hand; publish it with deployctl",
        )
    return manifest


def is_ours(version: Version) -> bool:
    """Whether deployctl published the version: it has a manifest, or evidence beside a manifest that was lost."""
    return version.manifest.exists() or version.evidence.exists()


def _foreign(folder: Path) -> UsageError:
    return UsageError(
        f"{folder} holds nothing that deployctl published",
        expected="a version that `deployctl package` made, with its manifest.json",
        fix="package its checkpoint under another name; `deployctl slo --samples` measures whatever is served",
    )


def _names(repository: Path) -> list[str]:
    """The folders that are models: they have a config or a version."""
    if not repository.is_dir():
        raise UsageError(
            f"{repository} is no folder",
            expected="a model repository",
            fix="name the folder that `deployctl package --repository` wrote to",
        )
    folders = (entry for entry in repository.iterdir() if entry.is_dir())
    return sorted(entry.name for entry in folders if (entry / CONFIG_FILE).is_file() or version_numbers(entry))


def _model(repository: Path, name: str) -> Model:
    folder = repository / name
    return Model(repository=repository, name=name, versions=version_numbers(folder), promoted=promoted_version(folder))


def _listed(model: Model) -> str:
    return ", ".join(f"{model.name}:{number}" for number in model.versions) or "no version at all"
