"""Whether somebody who is trusted signed exactly the version that lies there.

Owns the verdict, and whom to trust; making a signature is `sign`'s. Called by verify and by promotion policies.
Everything happens offline, and nothing of a version is loaded.

    1. The version is compared with its manifest, and the model's folder round it with what belongs there.
    2. Each signature that lies with it: the signed list must name every file, and no other; a signer could have left
       some out.
    3. OpenSSF model-signing verifies who signed that list, and compares it with the files once more.
    4. The provenance statement must be signed by the same key, for the same files; it names the bill of materials and
       what was attested of the version when it was signed, each as it lies there.

One signature for which all holds is enough, unless an attestation that somebody trusted signed has changed: then none
is. What was signed says which version it is: the name and the number are in the manifest.
"""

import contextlib
import io
import json
import stat
import tempfile
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from deploy.errors import DeployError, UsageError
from deploy.evidence import Judgement
from deploy.files import sha256_bytes, sha256_file, shown
from deploy.release.keys import fingerprint, load_certificates, load_public_key, require_signing
from deploy.release.provenance import AttestationRefused, check_statement, opened_envelope
from deploy.release.seal import check_record
from deploy.repository.attest import attestation_folder, attestations
from deploy.repository.find import read_manifest
from deploy.repository.integrity import changes, config_strays
from deploy.repository.layout import Version
from deploy.repository.manifest import MANIFEST_FILE, Manifest, version_digest
from deploy.repository.signed import BOM_FILE, KIND, PROVENANCE_FILE, SIGNATURE_FILE

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.types import PublicKeyTypes
    from cryptography.x509 import Certificate
    from model_signing.hashing import Config

_LARGEST = 64 * 1024 * 1024
_SAID = 300


@dataclass(frozen=True, slots=True, kw_only=True)
class Trust:
    """Whose signature counts: that of one public key, or of any certificate that the chain leads to.

    The chain holds the root, and what lies between where signers do not send it. With `identity` only a certificate
    of that subject, common name or alternative name (e-mail, URI, DNS) counts.
    """

    public_key: Path | None = None
    certificate_chain: tuple[Path, ...] = ()
    identity: str | None = None

    def __post_init__(self) -> None:
        if (self.public_key is None) == (not self.certificate_chain):
            raise UsageError(
                "it is not said whose signature counts"
                if self.public_key is None
                else "a public key and a certificate chain were both given",
                expected="one of --public-key FILE and --certificate-chain FILE",
                fix="name the key, or the chain, that you trust",
            )
        if self.identity is not None and self.public_key is not None:
            raise UsageError(
                "a key has no identity, only a certificate has",
                expected="--identity beside --certificate-chain",
                fix="leave out --identity",
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class Signatures:
    """What the signatures of a version come to. `attested` are the attestations, by file name, that they cover.

    Only a signature counts for which all holds; where none does the judgement is a fail, and nothing is covered.
    """

    judgement: Judgement
    attested: frozenset[str] = frozenset()


class SignatureRefused(DeployError):  # noqa: N818 - named for what happened
    """One signature does not hold. A verdict is made of it before a user sees it."""


def check_trust(trust: Trust) -> None:
    """Raises MissingError without the extra, UsageError if a file that is trusted is not what it should be."""
    require_signing()
    if trust.public_key is not None:
        load_public_key(trust.public_key)
    else:
        load_certificates(trust.certificate_chain)


def check_signature(version: Version, trust: Trust) -> Judgement:
    """Pass if somebody trusted signed exactly what lies there, else fail with the first thing that does not hold.

    Raises MissingError without the extra, UsageError if a file that is trusted cannot be read; all else is a verdict.
    """
    return check_signatures(version, trust).judgement


def check_signatures(version: Version, trust: Trust) -> Signatures:
    """The same verdict, with the attestations that signatures by somebody trusted cover."""
    check_trust(trust)
    try:
        manifest = read_manifest(version)
        found = (*changes(version, manifest), *config_strays(version))
        folders = tuple(_signature_folders(version))
    except DeployError as error:
        return Signatures(judgement=Judgement.no(error.found))
    if found:
        return Signatures(judgement=Judgement.no("; ".join(found)))
    if not folders:
        return Signatures(judgement=Judgement.no(_unsigned(version)))
    refused, signers, covered = [], [], frozenset[str]()
    for folder in folders:
        try:
            signer, attested = _verify(version, manifest, folder, trust)
        except AttestationRefused as error:
            return Signatures(judgement=Judgement.no(error.found))
        except SignatureRefused as error:
            refused.append(f"{folder.name}: {error.found}")
        else:
            signers.append(signer)
            covered |= attested
    if not signers:
        return Signatures(judgement=Judgement.no("; ".join(refused)))
    more = f" and {len(covered)} attestation{'s' if len(covered) > 1 else ''}" if covered else ""
    said = f"signed by {' and '.join(dict.fromkeys(signers))}, all {len(manifest.files) + 1} files{more}"
    return Signatures(judgement=Judgement.yes(said), attested=covered)


def attested_files(version: Version) -> dict[str, str]:
    """The digest of every attestation that a signature of the version covers, by file name: all but signatures."""
    return {one.path.name: sha256_file(one.path) for one in attestations(version) if one.kind != KIND}


def hashing() -> "Config":
    """How files are hashed, for signing and for verifying: every file, no exception, no link.

    The library's own default leaves out `.git` and its like, which would be a place to hide.
    """
    from model_signing.hashing import Config

    config = Config().use_file_serialization(hashing_algorithm="sha256", allow_symlinks=False)
    return config.set_ignored_paths(paths=[], ignore_git_paths=False)


def check_payload(bundle: Any, version: Version, manifest: Manifest) -> None:
    """Raises SignatureRefused unless the signed list is that of the version's files, the manifest among them."""
    predicate = json.loads(bundle.dsse_envelope.payload)["predicate"]
    listed = [(entry["name"], entry["algorithm"], entry["digest"]) for entry in predicate["resources"]]
    expected = {(name, "sha256", digest) for name, digest in signed_files(version, manifest).items()}
    if len(listed) != len(expected) or set(listed) != expected:
        other = sorted({shown(str(name)) for name, *_ in set(listed) ^ expected})
        raise SignatureRefused(f"what was signed is not this version: {', '.join(other) or 'a file is listed twice'}")


def signed_files(version: Version, manifest: Manifest) -> dict[str, str]:
    """The digest of every file of a version, as the manifest says, and of the manifest itself."""
    return {entry.path: entry.sha256 for entry in manifest.files} | {MANIFEST_FILE: version_digest(version.folder)}


def parse_bundle(data: bytes) -> Any:
    """A Sigstore bundle, read as the library reads it."""
    from sigstore_models.bundle.v1 import Bundle

    return Bundle.from_dict(json.loads(data))


def _signature_folders(version: Version) -> Iterator[Path]:
    folder = attestation_folder(version)
    if folder.is_dir():
        yield from (path for path in sorted(folder.glob(f"{KIND}-*")) if path.is_dir())


def _unsigned(version: Version) -> str:
    others = version.model_folder.glob(f"attestations/*/{KIND}-*/{SIGNATURE_FILE}")
    digest = version_digest(version.folder)
    if any(path.parent.parent.name != digest for path in others):
        return f"{version} is not signed as it lies there; signatures of other digests than {digest} are there"
    return f"{version} is not signed"


def _verify(version: Version, manifest: Manifest, folder: Path, trust: Trust) -> tuple[str, frozenset[str]]:
    """Who signed, and which attestations too.

    Raises AttestationRefused if one of those is not as somebody trusted signed it, SignatureRefused if anything else
    does not hold.
    """
    signature, provenance, bom = (_read(folder / name) for name in (SIGNATURE_FILE, PROVENANCE_FILE, BOM_FILE))
    try:
        bundle = parse_bundle(signature)
        # Before it is known who signed: it can only refuse, and in words that name the file.
        check_payload(bundle, version, manifest)
        _verify_with_library(version, signature, trust)
        key, signer = _signer(bundle, trust)
        check_record(version, folder, key)
        statement = opened_envelope(provenance, key)
        beside = {**attested_files(version), BOM_FILE: sha256_bytes(bom)}
        return signer, check_statement(statement, version, files=signed_files(version, manifest), beside=beside)
    except AttestationRefused:
        raise
    except DeployError as error:
        raise SignatureRefused(error.found) from error
    except Exception as error:
        # Foreign parsers on anybody's bytes: whatever they raise, the signature does not hold.
        raise SignatureRefused(_said(error)) from error


def _verify_with_library(version: Version, signature: bytes, trust: Trust) -> None:
    from model_signing.verifying import Config

    config = Config().set_hashing_config(hashing())
    if trust.public_key is not None:
        config.use_elliptic_key_verifier(public_key=trust.public_key)
    else:
        config.use_certificate_verifier(certificate_chain=trust.certificate_chain)
    # The bytes that were read are the bytes that are verified, whatever happens to the file meanwhile.
    with tempfile.TemporaryDirectory(prefix="deployctl-signature-") as folder:
        copy = Path(folder, SIGNATURE_FILE)
        copy.write_bytes(signature)
        # It prints, and stdout is for results; it calls what Python deprecates, and that is no reason to refuse.
        with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)
            config.verify(version.folder, copy)


def _signer(bundle: Any, trust: Trust) -> "tuple[PublicKeyTypes, str]":
    """The key that a verified bundle was signed with, and whose it is. Raises SignatureRefused if not who was named."""
    if trust.public_key is not None:
        key = load_public_key(trust.public_key)
        return key, f"key {fingerprint(key)}"
    from cryptography.x509 import load_der_x509_certificate

    chain = bundle.verification_material.x509_certificate_chain
    certificate = load_der_x509_certificate(chain.certificates[0].raw_bytes)
    _check_identity(certificate, trust.identity)
    return certificate.public_key(), shown(certificate.subject.rfc4514_string())


def _check_identity(certificate: "Certificate", identity: str | None) -> None:
    if identity is None:
        return
    names = certificate_names(certificate)
    if identity not in names:
        raise SignatureRefused(f"signed by {' / '.join(names)}, not by {identity}")


def certificate_names(certificate: "Certificate") -> tuple[str, ...]:
    """What a certificate calls its holder: the subject, its common names, and the alternative names."""
    from cryptography import x509

    subject = certificate.subject
    names = [subject.rfc4514_string()]
    names += [str(name.value) for name in subject.get_attributes_for_oid(x509.NameOID.COMMON_NAME)]
    with contextlib.suppress(x509.ExtensionNotFound):
        others = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        for kind in (x509.RFC822Name, x509.UniformResourceIdentifier, x509.DNSName):
            names += others.get_values_for_type(kind)
    return tuple(dict.fromkeys(names))


def _read(path: Path) -> bytes:
    try:
        about = path.lstat()
    except FileNotFoundError as error:
        raise SignatureRefused(f"{path.name} is missing") from error
    if not stat.S_ISREG(about.st_mode) or about.st_size > _LARGEST:
        raise SignatureRefused(f"{path.name} is no regular file of at most {_LARGEST} bytes")
    try:
        return path.read_bytes()
    except PermissionError as error:
        raise SignatureRefused(f"{path.name} may not be read") from error


def _said(error: Exception) -> str:
    """A foreign error in one line."""
    if type(error).__name__ == "InvalidSignature":
        return "the signature is not by the trusted key, or what was signed has changed"
    text = " ".join(str(error).split())[:_SAID]
    return f"the signature cannot be verified: {type(error).__name__}{f': {text}' if text else ''}"
