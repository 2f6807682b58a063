"""A repository in an object store, laid out as Triton reads it there.

Owns the order in which objects appear, and who may write a number. Called by publish and pull.

    1. Claim the number: `attestations/claims/<N>`, created only if absent, holds the digest of the version that may
       write `<N>/`. Whoever finds another digest there writes nothing.
    2. Send the warm-up samples and the version's files; what is there with the same size and digest is left.
    3. Write `<N>/manifest.json`: from now on the version is there.
    4. Send what is attested of it, each object created only if absent.
    5. Write the model's `config.pbtxt`, if it has none yet or promotion was asked for: Triton serves it from now on.
"""

import hashlib
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from deploy.errors import UsageError
from deploy.progress import Progress
from deploy.release.stores.bundle import Bundle, Part, is_attested_path, signatures_last
from deploy.release.stores.clients import (
    PART_SIZE,
    ConflictError,
    errors_explained,
    kept_digest,
    open_client,
    sending_options,
)
from deploy.release.stores.locations import Location
from deploy.release.stores.multipart import LEAST_SIZE, send_in_parts
from deploy.release.stores.parallel import as_size, each
from deploy.release.stores.store import Sent, Taken
from deploy.repository.layout import ATTESTATIONS_FOLDER, CONFIG_FILE, WARMUP_FOLDER, is_version_number
from deploy.repository.manifest import MANIFEST_FILE
from deploy.repository.protobuf import parse_config, specific_versions

_CLAIMS = f"{ATTESTATIONS_FOLDER}/claims"


@dataclass(frozen=True, slots=True, kw_only=True)
class ObjectStore:
    """A bucket, or a path in one. `client` is its fsspec file system."""

    location: Location
    client: Any

    @classmethod
    def open(cls, location: Location) -> "ObjectStore":
        """The store at a location. Raises MissingError if its client is not installed."""
        return cls(location=location, client=open_client(location))

    def __str__(self) -> str:
        return str(self.location)

    def numbers(self, name: str) -> tuple[int, ...]:
        """The versions whose manifest is there."""
        present = self._present(name, "")
        folders = (path.partition("/") for path in present)
        return tuple(
            sorted(int(number) for number, _, rest in folders if rest == MANIFEST_FILE and is_version_number(number))
        )

    def promoted(self, name: str) -> int | None:
        """What the model's config names."""
        text = self._read(name, CONFIG_FILE)
        try:
            versions = specific_versions(parse_config(text.decode())) if text is not None else ()
        except (UnicodeDecodeError, UsageError):
            return None
        return max(versions, default=None)

    def marker(self, name: str, number: int) -> bytes | None:
        """The manifest's bytes."""
        return self._read(name, f"{number}/{MANIFEST_FILE}")

    def pledged(self, name: str, number: int) -> str | None:
        """The digest in the claim."""
        claim = self._read(name, f"{_CLAIMS}/{number}")
        return None if claim is None else claim.decode(errors="replace").strip()

    def owner(self, name: str, number: int) -> str | None:
        """The digest of the version, else of the one that claimed its number."""
        data = self.marker(name, number)
        return self.pledged(name, number) if data is None else hashlib.sha256(data).hexdigest()

    def attested(self, name: str, number: int, digest: str) -> tuple[Part, ...]:
        """The objects below the digest."""
        prefix = f"{ATTESTATIONS_FOLDER}/{digest}"
        found = {f"{prefix}/{path}": size for path, size in self._present(name, prefix).items()}
        parts = []
        for path, size in found.items():
            if is_attested_path(path, digest):
                with errors_explained(self.location):
                    kept = kept_digest(self.client, self.location, self._path(name, path))
                parts.append(Part(path=path, size=size, sha256=kept or None))
        return signatures_last(parts)

    def fetch(self, name: str, part: Part, destination: Path) -> None:
        """The object's bytes, in chunks, with as many as were there when it was asked for."""
        with errors_explained(self.location):
            self.client.get_file(self._path(name, part.path), str(destination))

    def send(self, bundle: Bundle, *, promote: bool, progress: Progress) -> Sent:
        """Claim, send, make visible. Raises Taken if the number is another's, UsageError if a foreign file is there."""
        name, number = bundle.version.name, bundle.version.number
        self._claim(name, number, bundle.digest)  # 1
        absent = self._absent(bundle)
        size = sum(part.size for part in absent)
        progress.note(f"{len(absent)} of {len(bundle.parts)} files to send, {as_size(size)}")
        each(absent, lambda part: self._put(bundle, part), doing="sent", progress=progress)  # 2
        self._create_marker(bundle)  # 3
        attested = self._send_attested(bundle)  # 4
        promoted = self._promote(bundle, always=promote)  # 5
        return Sent(
            files=len(absent) + len(attested),
            size=size + sum(part.size for part in attested),
            present=len(bundle.parts) - len(absent),
            promoted=promoted,
        )

    def _claim(self, name: str, number: int, digest: str) -> None:
        owner = self.owner(name, number)
        if owner is None:
            path, data = self._path(name, f"{_CLAIMS}/{number}"), f"{digest}\n".encode()
            try:
                self._create(path, data)
                self._require_conditions(path, data)
            except FileExistsError:
                owner = self.owner(name, number)
        if owner not in (None, digest):
            published, claim = self.marker(name, number) is not None, f"{self.location}/{name}/{_CLAIMS}/{number}"
            raise Taken(number, digest=owner, published=published, claim=claim)

    def _require_conditions(self, path: str, data: bytes) -> None:
        """Raises UsageError if the store overwrites where it was asked to create: claims would protect nobody."""
        try:
            self._create(path, data)
        except FileExistsError:
            return
        raise UsageError(
            f"{self.location} ignores conditional writes, so two publishers could overwrite each other",
            expected="a store that answers `If-None-Match: *` with 412, as AWS, Google, Azure and MinIO do",
            fix="use another store or a newer release of this one",
        )

    def _create(self, path: str, data: bytes) -> None:
        """Write a small object. Raises FileExistsError if it exists; two who write at one moment are asked again."""
        for pause in (0.2, 0.5, 1.0, None):
            try:
                with errors_explained(self.location):
                    self.client.pipe_file(path, data, mode="create")
            except ConflictError:
                if pause is None:
                    raise
                time.sleep(pause)
            else:
                return

    def _absent(self, bundle: Bundle) -> list[Part]:
        """What is to be sent. Raises UsageError if the version's folder holds what its manifest does not list."""
        name, number = bundle.version.name, bundle.version.number
        present = {f"{number}/{path}": size for path, size in self._present(name, str(number)).items()}
        expected = {part.path for part in bundle.parts} | {f"{number}/{MANIFEST_FILE}"}
        strange = sorted(present.keys() - expected)
        if strange:
            raise UsageError(
                f"{self.location}/{name} holds files that are not in the manifest: {', '.join(strange[:5])}",
                expected="nothing but the version's own files, since Triton loads what lies there",
                fix="remove them, or publish with --renumber",
            )
        present |= {f"{WARMUP_FOLDER}/{path}": size for path, size in self._present(name, WARMUP_FOLDER).items()}
        return [part for part in bundle.parts if present.get(part.path) != part.size or not self._same(name, part)]

    def _same(self, name: str, part: Part) -> bool:
        """Whether the object holds the part's bytes: by the digest kept beside it, else by reading it."""
        path = self._path(name, part.path)
        with errors_explained(self.location):
            kept = kept_digest(self.client, self.location, path)
            if kept is None:
                digest = hashlib.sha256()
                with self.client.open(path, "rb", block_size=PART_SIZE, cache_type="readahead") as stream:
                    while chunk := stream.read(PART_SIZE):
                        digest.update(chunk)
                kept = digest.hexdigest()
        return kept == part.sha256

    def _put(self, bundle: Bundle, part: Part, *, mode: str = "overwrite") -> None:
        path, source, sha256 = self._path(bundle.version.name, part.path), bundle.source(part), part.sha256 or ""
        with errors_explained(self.location):
            if self.location.scheme == "s3" and mode == "overwrite" and part.size >= LEAST_SIZE:
                send_in_parts(self.client, source, path, sha256=sha256)
            else:
                self.client.put_file(str(source), path, mode=mode, **sending_options(self.location, sha256))

    def _create_marker(self, bundle: Bundle) -> None:
        name, number = bundle.version.name, bundle.version.number
        try:
            self._create(self._path(name, f"{number}/{MANIFEST_FILE}"), bundle.marker())
        except FileExistsError:
            owner = self.owner(name, number)
            if owner != bundle.digest:
                raise Taken(number, digest=owner, published=True) from None

    def _send_attested(self, bundle: Bundle) -> list[Part]:
        name, number = bundle.version.name, bundle.version.number
        there = {part.path for part in self.attested(name, number, bundle.digest)}
        sent = []
        for part in bundle.attested:
            if part.path in there:
                continue
            try:
                self._put(bundle, part, mode="create")
            except FileExistsError:
                # Another publisher of the same version sent it since the look above; attestations are never replaced.
                continue
            sent.append(part)
        return sent

    def _promote(self, bundle: Bundle, *, always: bool) -> bool:
        """Whether the model's config is now this version's."""
        name, data = bundle.version.name, bundle.version.config.read_bytes()
        present = self._read(name, CONFIG_FILE)
        if present == data:
            return True
        if present is not None and not always:
            return False
        try:
            with errors_explained(self.location):
                mode = "overwrite" if always else "create"
                self.client.pipe_file(self._path(name, CONFIG_FILE), data, mode=mode)
        except FileExistsError:
            return False
        return True

    def _path(self, name: str, path: str) -> str:
        return f"{self.location.root}/{name}/{path}"

    def _read(self, name: str, path: str) -> bytes | None:
        """A small object, None if it, or the bucket, is absent; the latter fails at the first listing or write."""
        with errors_explained(self.location):
            try:
                data: bytes = self.client.cat_file(self._path(name, path))
            except FileNotFoundError:
                return None
            return data

    def _present(self, name: str, prefix: str) -> dict[str, int]:
        """The sizes of all objects below a prefix of a model, by path relative to it."""
        folder = self._path(name, prefix).rstrip("/")
        with errors_explained(self.location):
            try:
                found = self.client.find(folder, detail=True)
            except FileNotFoundError:
                # Some stores say so of a prefix without objects; of a bucket it is an error.
                if not self.client.exists(self.location.root.partition("/")[0]):
                    raise
                return {}
        start = f"{folder}/"
        return {path.removeprefix(start): entry["size"] for path, entry in found.items() if path.startswith(start)}
