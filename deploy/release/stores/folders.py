"""A repository in a folder, as a place that versions come from and go to.

Owns the way of a version into a folder: fetched into a stage, compared with its digests, made visible by one rename.
Called by publish and pull.
"""

import shutil
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from deploy.errors import UsageError
from deploy.files import (
    disk_errors_explained,
    relative_files,
    rename_new,
    sha256_bytes,
    sha256_file,
    sync_tree,
    write_new,
)
from deploy.progress import Progress
from deploy.release.stores.bundle import (
    Bundle,
    Part,
    is_attested_path,
    make_bundle,
    sample_names,
    signatures_last,
    version_parts,
)
from deploy.release.stores.parallel import each
from deploy.release.stores.store import Sent, Store, Taken
from deploy.repository.find import find_version, parse_reference
from deploy.repository.layout import ATTESTATIONS_FOLDER, CONFIG_FILE, WARMUP_FOLDER, Version, version_numbers
from deploy.repository.layout import promoted_version as promoted_in
from deploy.repository.lint import require_clean
from deploy.repository.manifest import Manifest
from deploy.repository.promotion import promote as promote_version
from deploy.repository.publish import publish_sealed
from deploy.repository.stage import Stage, open_stage


@dataclass(frozen=True, slots=True, kw_only=True)
class FolderStore:
    """A folder that holds a repository."""

    folder: Path

    def __str__(self) -> str:
        return str(self.folder)

    def numbers(self, name: str) -> tuple[int, ...]:
        """The versions with a manifest."""
        numbers = version_numbers(self.folder / name)
        return tuple(number for number in numbers if self._version(name, number).manifest.is_file())

    def promoted(self, name: str) -> int | None:
        """What the model's config names."""
        return promoted_in(self.folder / name)

    def marker(self, name: str, number: int) -> bytes | None:
        """The manifest's bytes."""
        manifest = self._version(name, number).manifest
        return manifest.read_bytes() if manifest.is_file() else None

    def pledged(self, name: str, number: int) -> str | None:
        """A folder keeps none."""
        return None

    def owner(self, name: str, number: int) -> str | None:
        """The digest of what lies under that number; of something else's folder, an empty one."""
        data = self.marker(name, number)
        if data is not None:
            return sha256_bytes(data)
        return "" if self._version(name, number).folder.exists() else None

    def attested(self, name: str, number: int, digest: str) -> tuple[Part, ...]:
        """The files below the digest's folder."""
        folder = self.folder / name / ATTESTATIONS_FOLDER / digest
        paths = [f"{ATTESTATIONS_FOLDER}/{digest}/{path}" for path in relative_files(folder)] if folder.is_dir() else []
        return signatures_last(
            [
                Part(path=path, size=(self.folder / name / path).stat().st_size, sha256=None)
                for path in paths
                if is_attested_path(path, digest)
            ]
        )

    def fetch(self, name: str, part: Part, destination: Path) -> None:
        """A copy of the file: a link would let an edit in one repository change the other."""
        shutil.copyfile(self.folder / name / part.path, destination)

    def send(self, bundle: Bundle, *, promote: bool, progress: Progress) -> Sent:
        """Receive the bundle from its own repository."""
        version = bundle.version
        source = FolderStore(folder=version.repository)
        sent = receive(source, bundle.manifest, bundle.digest, self.folder, progress=progress)
        if promote and not sent.promoted:
            promote_version(self.folder.resolve(), version.name, version.number)
            return Sent(files=sent.files, size=sent.size, present=sent.present, promoted=True)
        return sent

    def _version(self, name: str, number: int) -> Version:
        return Version(repository=self.folder, name=name, number=number)


def local_bundle(repository: Path, reference: str) -> Bundle:
    """The bundle of `NAME[:N]` in a folder. Raises UsageError if it is absent or not as it was published."""
    name, number = parse_reference(reference)
    return make_bundle(find_version(repository, name if number is None else f"{name}:{number}"))


def receive(source: Store, manifest: Manifest, digest: str, repository: Path, *, progress: Progress) -> Sent:
    """Bring a version of a store into a folder, whole or not at all, and then what is attested of it.

    Raises Taken if its number belongs to another version there, UsageError naming a file that is not as the manifest
    says.
    """
    here = FolderStore(folder=repository)
    owner = here.owner(manifest.name, manifest.version)
    if owner not in (None, digest):
        raise Taken(manifest.version, digest=owner or None, published=True)
    parts, first = version_parts(manifest), False
    if owner is None:
        first = _receive_version(source, manifest, digest, repository, progress=progress)
    attested = _receive_attested(source, manifest, digest, repository)
    size = sum(part.size for part in parts) if owner is None else 0
    return Sent(
        files=(len(parts) if owner is None else 0) + len(attested),
        size=size + sum(part.size for part in attested),
        present=0 if owner is None else len(parts),
        promoted=first or here.promoted(manifest.name) == manifest.version,
    )


def _receive_version(source: Store, manifest: Manifest, digest: str, repository: Path, *, progress: Progress) -> bool:
    """Whether it came as the first of its model, and so with its promotion."""
    with open_stage(repository, manifest.name) as stage:
        stage.renumber(manifest.version)
        with disk_errors_explained(f"receiving {manifest.name}:{manifest.version}"):
            _fill(source, manifest, stage, progress=progress)
            data = source.marker(manifest.name, manifest.version)
            if data is None or sha256_bytes(data) != digest:
                raise UsageError(
                    f"the manifest of {manifest.name}:{manifest.version} in {source} changed meanwhile",
                    expected=f"SHA-256 {digest}, as when it was found",
                    fix="run it again; if it changes again, find out who writes there",
                )
            stage.version.manifest.write_bytes(data)
            require_clean(stage.version.config.read_text(), folder=stage.version.model_folder)
            stage.step("received")
            try:
                return publish_sealed(stage)
            except FileExistsError as error:
                owner = FolderStore(folder=repository).owner(manifest.name, manifest.version)
                if owner == digest:
                    return False
                raise Taken(manifest.version, digest=owner or None, published=True) from error


def _fill(source: Store, manifest: Manifest, stage: Stage, *, progress: Progress) -> None:
    model = stage.version.model_folder

    def take(part: Part) -> None:
        destination = model / part.path
        destination.parent.mkdir(parents=True, exist_ok=True)
        source.fetch(manifest.name, part, destination)
        require_same(destination, part, source)

    parts = version_parts(manifest)
    # The config is checked before the samples that it names are asked for.
    config = next((part for part in parts if part.path.endswith(f"/{CONFIG_FILE}")), None)
    if config is None:
        raise UsageError(
            f"{manifest.name}:{manifest.version} in {source} lists no {CONFIG_FILE}",
            expected="a version that deployctl published",
            fix="publish it again from where it was packaged",
        )
    take(config)
    names = sample_names((model / config.path).read_text())
    samples = [Part(path=f"{WARMUP_FOLDER}/{name}", size=-1, sha256=name) for name in names]
    each([part for part in (*samples, *parts) if part is not config], take, doing="received", progress=progress)


def require_same(path: Path, part: Part, source: Store) -> None:
    """Raises UsageError, naming the file, if what was fetched is not what its digest says."""
    size = path.stat().st_size
    if (part.size >= 0 and size != part.size) or (part.sha256 is not None and sha256_file(path) != part.sha256):
        raise UsageError(
            f"{part.path} in {source} is not what was published",
            expected=f"SHA-256 {part.sha256}",
            fix="nothing was received; publish the version again, or restore the store",
        )


def _receive_attested(source: Store, manifest: Manifest, digest: str, repository: Path) -> list[Part]:
    """What was not there yet. A folder appears by one rename, a record whole, and after the folder it names."""
    model = repository.resolve() / manifest.name
    received: list[Part] = []
    parent = model / ATTESTATIONS_FOLDER / digest
    grouped: dict[str, list[Part]] = {}
    for part in source.attested(manifest.name, manifest.version, digest):
        grouped.setdefault(PurePosixPath(part.path).parts[2], []).append(part)
    missing = {entry: parts for entry, parts in grouped.items() if not (parent / entry).exists()}
    if not missing:
        return []
    with open_stage(repository, manifest.name) as stage, disk_errors_explained("receiving attestations"):
        parent.mkdir(parents=True, exist_ok=True)
        for entry, parts in missing.items():
            for part in parts:
                destination = stage.work / part.path
                destination.parent.mkdir(parents=True, exist_ok=True)
                source.fetch(manifest.name, part, destination)
                require_same(destination, part, source)
            if _place(stage.work / ATTESTATIONS_FOLDER / digest / entry, parent / entry):
                received += parts
    return received


def _place(staged: Path, final: Path) -> bool:
    try:
        if staged.is_dir():
            sync_tree(staged)
            rename_new(staged, final)
        else:
            write_new(final, staged.read_bytes())
    except FileExistsError:
        return False
    return True
