"""What of a version travels: its own files, the warm-up samples its config names, what is attested about it.

Owns the list, with a digest for each file, and the copy under another number. Called by publish and by the stores.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from deploy.errors import UsageError
from deploy.files import disk_errors_explained, link_or_copy, relative_files, sha256_bytes, sha256_file
from deploy.repository.config import renumbered
from deploy.repository.layout import ATTESTATIONS_FOLDER, CONFIG_FILE, WARMUP_FOLDER, Version
from deploy.repository.lint import require_clean
from deploy.repository.manifest import Manifest, file_entry, verify_files
from deploy.repository.protobuf import parse_config
from deploy.repository.signed import KIND


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """One file by its path in the model's folder. What is attested later has no digest that was known before."""

    path: str
    size: int
    sha256: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Bundle:
    """A version on this machine, ready to be sent: its files were found as its manifest says.

    `parts` are its files but for the manifest, samples first; `attested` what lies beside it, signatures last.
    """

    version: Version
    manifest: Manifest
    digest: str
    parts: tuple[Part, ...]
    attested: tuple[Part, ...]

    def source(self, part: Part) -> Path:
        """Where a part's bytes lie."""
        return self.version.model_folder / part.path

    def marker(self) -> bytes:
        """The bytes of the manifest: written last, they make the version visible."""
        return self.version.manifest.read_bytes()


def make_bundle(version: Version) -> Bundle:
    """The bundle of a version. Raises UsageError naming each file that is not as the manifest says."""
    manifest = verify_files(version.folder)
    if (manifest.name, manifest.version) != (version.name, version.number):
        raise UsageError(
            f"{version.manifest} belongs to {manifest.name}:{manifest.version}",
            expected=f"the manifest of {version}",
            fix="restore the version from where it was published",
        )
    parts = (*_samples(version), *version_parts(manifest))
    require_clean(version.config.read_text(), folder=version.model_folder)
    digest = sha256_file(version.manifest)
    return Bundle(
        version=version, manifest=manifest, digest=digest, parts=parts, attested=tuple(_attested(version, digest))
    )


def version_parts(manifest: Manifest) -> tuple[Part, ...]:
    """The files that a manifest lists, as parts."""
    return tuple(
        Part(path=f"{manifest.version}/{entry.path}", size=entry.size, sha256=entry.sha256) for entry in manifest.files
    )


def sample_names(config: str) -> tuple[str, ...]:
    """The warm-up samples that a config names; each is called by its digest."""
    named = {entry.input_data_file for warmup in parse_config(config).model_warmup for entry in warmup.inputs.values()}
    return tuple(sorted(named - {""}))


def renumber(bundle: Bundle, number: int, folder: Path) -> Bundle:
    """The same version under another number, its files linked below `folder`.

    Config and manifest hold the number, so the digest is another one; what was attested of the old one stays behind.
    """
    old = bundle.version
    if number == old.number:
        return bundle
    # A folder for each number: another one may have been tried before and taken by somebody meanwhile.
    new = Version(repository=folder / str(number), name=old.name, number=number)
    with disk_errors_explained("renumbering the version"):
        for name in sample_names(old.config.read_text()):
            link_or_copy(old.model_folder / WARMUP_FOLDER / name, new.model_folder / WARMUP_FOLDER / name)
        for entry in bundle.manifest.files:
            if entry.path != CONFIG_FILE:
                link_or_copy(old.folder / entry.path, new.folder / entry.path)
        new.config.write_text(renumbered(old.config.read_text(), number))
        entries = (
            file_entry(new.folder, CONFIG_FILE) if entry.path == CONFIG_FILE else entry
            for entry in bundle.manifest.files
        )
        bundle.manifest.model_copy(update={"version": number, "files": tuple(entries)}).write(new.manifest)
    return make_bundle(new)


def renumbered_digest(bundle: Bundle, number: int) -> str:
    """The digest that the version has under another number, without writing anything."""
    if number == bundle.version.number:
        return bundle.digest
    config = renumbered(bundle.version.config.read_text(), number).encode()
    entries = (
        entry.model_copy(update={"sha256": sha256_bytes(config), "size": len(config)})
        if entry.path == CONFIG_FILE
        else entry
        for entry in bundle.manifest.files
    )
    sealed = bundle.manifest.model_copy(update={"version": number, "files": tuple(entries)})
    return sha256_bytes(sealed.to_json().encode())


def is_attested_path(path: str, digest: str) -> bool:
    """Whether a path lies where what is attested of that digest may lie, and nowhere else."""
    parts = PurePosixPath(path).parts
    inside = len(parts) > 2 and parts[:2] == (ATTESTATIONS_FOLDER, digest)
    return inside and str(PurePosixPath(path)) == path and not any(part.startswith(".") for part in parts)


def signatures_last(parts: Sequence[Part]) -> tuple[Part, ...]:
    """What nothing refers to is the last: records, folders with signatures of them, and the records of those."""

    def key(part: Part) -> tuple[int, str]:
        record, signature = part.path.count("/") == 2, PurePosixPath(part.path).parts[2].startswith(f"{KIND}-")
        return (1 if not record else 2 if signature else 0, part.path)

    return tuple(sorted(parts, key=key))


def _samples(version: Version) -> Iterator[Part]:
    for name in sample_names(version.config.read_text()):
        path = version.model_folder / WARMUP_FOLDER / name
        if not path.is_file() or sha256_file(path) != name:
            raise UsageError(
                f"the warm-up sample {path} is missing or has changed",
                expected="the file of that SHA-256, which the version's config names",
                fix="restore it from where the version was packaged",
            )
        yield Part(path=f"{WARMUP_FOLDER}/{name}", size=path.stat().st_size, sha256=name)


def _attested(version: Version, digest: str) -> tuple[Part, ...]:
    folder = version.model_folder / ATTESTATIONS_FOLDER / digest
    paths = relative_files(folder) if folder.is_dir() else ()
    found = []
    for path in paths:
        whole = f"{ATTESTATIONS_FOLDER}/{digest}/{path}"
        # A name that begins with a dot is not whole yet.
        if is_attested_path(whole, digest):
            file = folder / path
            found.append(Part(path=whole, size=file.stat().st_size, sha256=sha256_file(file)))
    return signatures_last(found)
