"""How a version came to be, as an in-toto statement with SLSA provenance, signed in a DSSE envelope.

Owns what the statement says and the check that it speaks of the files at hand; everything in it comes from the
manifest, and what is unknown is left out. Called by sign and signatures. docs/supply-chain.md describes the build type.
"""

import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from deploy.errors import UnfinishedError
from deploy.files import shown
from deploy.repository.layout import Version
from deploy.repository.manifest import MANIFEST_FILE, Environment, Manifest
from deploy.repository.signed import BOM_FILE

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.types import PrivateKeyTypes, PublicKeyTypes
    from packageurl import PackageURL

PAYLOAD_TYPE = "application/vnd.in-toto+json"
STATEMENT_TYPE = "https://in-toto.io/Statement/v1"
PREDICATE_TYPE = "https://slsa.dev/provenance/v1"
BUILD_TYPE = "urn:deployctl:package:v1"
UNKNOWN_BUILDER = "urn:deployctl:builder:unknown"

_PACKAGES = ("torch", "torchvision", "onnx", "onnxruntime")


class ProvenanceRefused(UnfinishedError):  # noqa: N818 - named for what happened
    """A provenance statement is not what it should be."""


class AttestationRefused(ProvenanceRefused):
    """What was attested of a version is no longer what somebody signed."""


def make_statement(
    version: Version, manifest: Manifest, *, files: Mapping[str, str], beside: Mapping[str, str], builder: str
) -> dict[str, Any]:
    """The statement on a version with these `files` (digests by path).

    `beside` are the digests of what is said of it, by name: the bill of materials, and attestations. `builder` is a URI
    for who ran the build.
    """
    digest = files[MANIFEST_FILE]
    named = {str(version): digest, **files}
    return {
        "_type": STATEMENT_TYPE,
        "subject": [{"name": name, "digest": {"sha256": digest}} for name, digest in named.items()],
        "predicateType": PREDICATE_TYPE,
        "predicate": {
            "buildDefinition": {
                "buildType": BUILD_TYPE,
                "externalParameters": {"command": list(manifest.command)},
                "internalParameters": _internal(manifest),
                "resolvedDependencies": _dependencies(manifest),
            },
            "runDetails": {
                "builder": {"id": builder, "version": {"deployctl": manifest.environment.deployctl}},
                # The manifest is written last, so that its time is the end of the build; the beginning is not known.
                "metadata": {
                    "invocationId": f"{version}@sha256:{digest}",
                    "finishedOn": manifest.created,
                },
                "byproducts": [{"name": name, "digest": {"sha256": digest}} for name, digest in beside.items()],
            },
        },
    }


def sealed_envelope(statement: Mapping[str, Any], key: "PrivateKeyTypes") -> bytes:
    """The statement in a DSSE envelope that the key signed, as JSON."""
    from securesystemslib.dsse import Envelope
    from securesystemslib.signer import CryptoSigner

    envelope = Envelope(json.dumps(statement, indent=1).encode(), PAYLOAD_TYPE, {})
    envelope.sign(CryptoSigner(key))
    return json.dumps(envelope.to_dict(), indent=1).encode() + b"\n"


def opened_envelope(data: bytes, key: "PublicKeyTypes") -> Any:
    """The statement of an envelope that this key signed. Raises ProvenanceRefused if it did not.

    Whatever the libraries raise for bytes that are no envelope goes through.
    """
    from securesystemslib.dsse import Envelope
    from securesystemslib.exceptions import VerificationError
    from securesystemslib.signer import SSlibKey

    envelope = Envelope.from_dict(json.loads(data))
    try:
        envelope.verify([SSlibKey.from_crypto(key)], 1)
    except VerificationError as error:
        raise ProvenanceRefused("the provenance is not signed by the key that signed the files") from error
    if envelope.payload_type != PAYLOAD_TYPE:
        raise ProvenanceRefused(f"the provenance is a {envelope.payload_type!r}, not an in-toto statement")
    return json.loads(envelope.payload)


def check_statement(
    statement: Any, version: Version, *, files: Mapping[str, str], beside: Mapping[str, str]
) -> frozenset[str]:
    """The names of the attestations that the statement covers.

    Raises ProvenanceRefused unless it speaks of exactly these files, this version and the bill of materials in
    `beside`; AttestationRefused if an attestation that it names is not in `beside` with the same digest.
    """
    kinds = (statement["_type"], statement["predicateType"])
    if kinds != (STATEMENT_TYPE, PREDICATE_TYPE):
        raise ProvenanceRefused(f"the provenance says it is {kinds[1]!r}, not {PREDICATE_TYPE}")
    subjects = [(one["name"], one["digest"]["sha256"]) for one in statement["subject"]]
    expected = {*files.items(), (str(version), files[MANIFEST_FILE])}
    if len(subjects) != len(expected) or set(subjects) != expected:
        raise ProvenanceRefused(f"the provenance is of other files than those of {version}")
    byproducts = {one["name"]: one["digest"]["sha256"] for one in statement["predicate"]["runDetails"]["byproducts"]}
    if byproducts.pop(BOM_FILE, None) != beside[BOM_FILE]:
        raise ProvenanceRefused(f"{BOM_FILE} is not the one that the provenance names")
    for name, digest in byproducts.items():
        if beside.get(name) != digest:
            what = "has changed since" if name in beside else "is missing"
            raise AttestationRefused(f"the attestation {shown(str(name))}, which was signed, {what}")
    return frozenset(byproducts)


def packages(environment: Environment) -> dict[str, str]:
    """The version of each package that the version was built with, as far as the manifest knows them."""
    found = {name: getattr(environment, name) for name in ("deployctl", "python", *_PACKAGES)}
    return {name: known for name, known in found.items() if known is not None}


def package_url(name: str, version: str) -> "PackageURL":
    """A package as a purl. Only what is PyPI's is called so."""
    from packageurl import PackageURL

    return PackageURL(type="pypi" if name in _PACKAGES else "generic", name=name, version=version)


def _internal(manifest: Manifest) -> dict[str, Any]:
    """What deployctl chose or found, and the user did not say."""
    environment = manifest.environment
    return {
        "format": manifest.format,
        "target": manifest.target.name,
        "architecture": manifest.checkpoint.architecture,
        "platform": environment.platform,
        "cpu": environment.cpu,
        **({"gpu": str(environment.gpu)} if environment.gpu else {}),
    }


def _dependencies(manifest: Manifest) -> list[dict[str, Any]]:
    checkpoint = {"name": manifest.checkpoint.file, "digest": {"sha256": manifest.checkpoint.sha256}}
    known = packages(manifest.environment).items()
    return [checkpoint, *({"name": name, "uri": str(package_url(name, version))} for name, version in known)]
