"""A repository in an OCI registry: a model is a repository there, a version an artifact, its number a tag.

Owns the artifact's form, which plain ORAS reads: `oras pull HOST/PATH/NAME:N` writes NAME/N/ as in a folder. Called by
publish and pull.

The number is claimed first, see `claims`. Then come the blobs, the manifest under its digest, and the tag, which makes
the version visible. Others than us may write that tag too: it is asked for just before, and read back after.
"""

import base64
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from deploy.errors import UnfinishedError, UsageError
from deploy.files import sha256_bytes
from deploy.progress import Progress
from deploy.release.stores.bundle import Bundle, Part, is_attested_path, signatures_last
from deploy.release.stores.claims import claim
from deploy.release.stores.locations import OCI_PART, Location
from deploy.release.stores.parallel import as_size, each
from deploy.release.stores.registry import MANIFEST_TYPE, Registry, open_registry, require_library
from deploy.release.stores.store import Sent, Taken
from deploy.repository.layout import is_version_number
from deploy.repository.manifest import MANIFEST_FILE

ARTIFACT_TYPE = "application/vnd.deployctl.version.v1+json"
ATTESTATIONS_TYPE = "application/vnd.deployctl.attestations.v1+json"
CLAIM_TYPE = "application/vnd.deployctl.claim.v1+json"
PROMOTED_TAG = "promoted"

_TITLE = "org.opencontainers.image.title"
_VERSION = "org.opencontainers.image.version"
_EMPTY, _EMPTY_TYPE = b"{}", "application/vnd.oci.empty.v1+json"


@dataclass(frozen=True, slots=True, kw_only=True)
class OciStore:
    """A registry, or a path in one."""

    location: Location

    @classmethod
    def open(cls, location: Location) -> "OciStore":
        """The store at a location. Raises MissingError if ORAS is not installed."""
        require_library()
        return cls(location=location)

    def __str__(self) -> str:
        return str(self.location)

    def numbers(self, name: str) -> tuple[int, ...]:
        """The tags that are numbers, and that mark something already: a registry may list one a moment before."""
        registry = self._registry(name)
        return tuple(sorted(int(tag) for tag in registry.tags() if is_version_number(tag) and registry.marks(tag)))

    def promoted(self, name: str) -> int | None:
        """The version that the tag `promoted` marks."""
        found = self._registry(name).manifest(PROMOTED_TAG)
        number = (found or {}).get("annotations", {}).get(_VERSION, "")
        return int(number) if is_version_number(number) else None

    def marker(self, name: str, number: int) -> bytes | None:
        """The manifest's bytes, a blob of the artifact."""
        digest = self.owner(name, number)
        if not digest:
            return None
        data = self._registry(name).read(f"sha256:{digest}")
        if sha256_bytes(data) != digest:
            raise UsageError(f"{number}/{MANIFEST_FILE} in {self}/{name} is not what was published")
        return data

    def pledged(self, name: str, number: int) -> str | None:
        """The digest of the blob that holds the manifest."""
        return self.owner(name, number)

    def owner(self, name: str, number: int) -> str | None:
        """The digest of the version under a tag; of something else's tag, an empty one."""
        found = self._registry(name).manifest(str(number))
        if found is None:
            return None
        return next((part.sha256 or "" for part in _parts(found, name) if part.path == f"{number}/{MANIFEST_FILE}"), "")

    def attested(self, name: str, number: int, digest: str) -> tuple[Part, ...]:
        """The layers of the artifact beside it."""
        found = self._registry(name).manifest(_attestations_tag(number))
        parts = _parts(found, name) if found else ()
        return signatures_last([part for part in parts if is_attested_path(part.path, digest)])

    def fetch(self, name: str, part: Part, destination: Path) -> None:
        """The blob of a part's digest."""
        self._registry(name).download(f"sha256:{part.sha256}", destination)

    def send(self, bundle: Bundle, *, promote: bool, progress: Progress) -> Sent:
        """Claim, blobs, manifest, tag. Raises Taken if the number is another's, UnfinishedError if its tag is moved."""
        name, number = bundle.version.name, bundle.version.number
        registry = self._registry(name)
        if not self._require_free(bundle) and (held := _claim(registry, bundle)):
            # Who kept it may have ended meanwhile.
            self._require_free(bundle)
            digest = held.split("-")[2]
            raise Taken(number, digest=f"{digest}...", published=False, claim=f"the tag {held} of {name}")
        absent = [part for part in bundle.parts if not registry.blob_exists(f"sha256:{part.sha256}")]
        size = sum(part.size for part in absent)
        progress.note(f"{len(absent)} of {len(bundle.parts)} files to send, {as_size(size)}")
        each(absent, lambda part: _upload(registry, bundle, part), doing="sent", progress=progress)
        document = self._send_version(registry, bundle)
        attested = self._send_attested(registry, bundle, document)
        # Whatever has that tag keeps it unless asked, be it of another tool and no version of ours.
        moved = promote or PROMOTED_TAG not in registry.tags()
        if moved:
            registry.put_manifest(PROMOTED_TAG, document)
        return Sent(
            files=len(absent) + len(attested),
            size=size + sum(part.size for part in attested),
            present=len(bundle.parts) - len(absent),
            promoted=moved or self.promoted(name) == number,
        )

    def _require_free(self, bundle: Bundle) -> bool:
        """Whether the version is tagged already. Raises Taken if another one is."""
        owner = self.owner(bundle.version.name, bundle.version.number)
        if owner not in (None, bundle.digest):
            raise Taken(bundle.version.number, digest=owner or None, published=True)
        return owner == bundle.digest

    def _send_version(self, registry: Registry, bundle: Bundle) -> bytes:
        """The artifact's manifest, which the version's number now marks."""
        version = bundle.version
        registry.upload_bytes(bundle.marker(), f"sha256:{bundle.digest}")
        _send_config(registry)
        marker = Part(path=f"{version.number}/{MANIFEST_FILE}", size=len(bundle.marker()), sha256=bundle.digest)
        annotations = {_TITLE: version.name, _VERSION: str(version.number)}
        document = _document(ARTIFACT_TYPE, _layers([*bundle.parts, marker], version.name), annotations)
        registry.put_manifest(f"sha256:{sha256_bytes(document)}", document)
        if not self._require_free(bundle):
            registry.put_manifest(str(version.number), document)
            if self.owner(version.name, version.number) != bundle.digest:
                raise UnfinishedError(
                    f"another publisher moved the tag {version.number} of {self}/{version.name} at the same moment",
                    expected="one publisher at a time for a number, since registries cannot compare and set a tag",
                    fix="publish again with --renumber",
                )
        return document

    def _send_attested(self, registry: Registry, bundle: Bundle, document: bytes) -> list[Part]:
        """Those that were not there; the artifact beside the version lists these and what it listed before."""
        name, number = bundle.version.name, bundle.version.number
        there = self.attested(name, number, bundle.digest)
        absent = [part for part in bundle.attested if part.path not in {one.path for one in there}]
        if not absent:
            return []
        for part in absent:
            if not registry.blob_exists(f"sha256:{part.sha256}"):
                _upload(registry, bundle, part)
        subject = {"mediaType": MANIFEST_TYPE, "digest": f"sha256:{sha256_bytes(document)}", "size": len(document)}
        layers = _layers(signatures_last([*there, *absent]), name)
        beside = _document(ATTESTATIONS_TYPE, layers, {_TITLE: name, _VERSION: str(number)}, subject=subject)
        registry.put_manifest(_attestations_tag(number), beside)
        return absent

    def _registry(self, name: str) -> Registry:
        if not OCI_PART.fullmatch(name):
            raise UsageError(
                f"{name!r} cannot be a repository's name in a registry",
                expected="lower-case letters and digits, joined by '.', '_' or '-'",
                fix="package it with such a --name, or publish to a folder or an object store",
            )
        return open_registry(self.location, name)


def _attestations_tag(number: int) -> str:
    return f"{number}-attestations"


def _claim(registry: Registry, bundle: Bundle) -> str | None:
    """None if the number is this version's to write, else the tag that keeps it for another one."""
    name, number = bundle.version.name, bundle.version.number
    _send_config(registry)
    nothing = {"mediaType": _EMPTY_TYPE, "digest": f"sha256:{sha256_bytes(_EMPTY)}", "size": len(_EMPTY)}
    document = _document(CLAIM_TYPE, [nothing], {_TITLE: name, _VERSION: str(number)})
    return claim(registry, number, bundle.digest, document)


def _send_config(registry: Registry) -> None:
    registry.upload_bytes(_EMPTY, f"sha256:{sha256_bytes(_EMPTY)}")


def _upload(registry: Registry, bundle: Bundle, part: Part) -> None:
    registry.upload(bundle.source(part), f"sha256:{part.sha256}")


def _document(kind: str, layers: list[dict[str, Any]], annotations: dict[str, str], **more: Any) -> bytes:
    """An OCI 1.1 artifact's manifest; equal input gives equal bytes."""
    config = {
        "mediaType": _EMPTY_TYPE,
        "digest": f"sha256:{sha256_bytes(_EMPTY)}",
        "size": len(_EMPTY),
        "data": base64.b64encode(_EMPTY).decode(),
    }
    document = {"schemaVersion": 2, "mediaType": MANIFEST_TYPE, "artifactType": kind, "config": config}
    return json.dumps({**document, "layers": layers, **more, "annotations": annotations}, indent=1).encode()


def _layers(parts: Iterable[Part], name: str) -> list[dict[str, Any]]:
    return [
        {
            "mediaType": "application/octet-stream",
            "digest": f"sha256:{part.sha256}",
            "size": part.size,
            "annotations": {_TITLE: f"{name}/{part.path}"},
        }
        for part in parts
    ]


def _parts(document: dict[str, Any], name: str) -> Iterator[Part]:
    """The layers that are files of the model, by their path in its folder."""
    for layer in document["layers"]:
        title, digest = (layer.get("annotations") or {}).get(_TITLE, ""), str(layer.get("digest", ""))
        if title.startswith(f"{name}/") and digest.startswith("sha256:"):
            yield Part(
                path=title.removeprefix(f"{name}/"), size=int(layer["size"]), sha256=digest.removeprefix("sha256:")
            )
