"""A version is signed: OpenSSF model-signing over its files, provenance, and a bill of materials, all beside it.

Owns the order of the steps; the version itself is never touched. Called by the command `sign`. Everything happens
offline; a key is read, and neither copied nor logged.

    1. What is needed is there, and the key can sign: found out before any work.
    2. The version is as it was published: nothing else is ever signed.
    3. The bill of materials, the provenance that names it, and the signature of the files, in a folder of their own.
    4. The signed list is compared with the manifest, then the folder gets its name in one rename.
    5. A record says who signed, for people and the report, sealed by the same key.
"""

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version as installed_version
from pathlib import Path
from typing import TYPE_CHECKING

from deploy import __version__
from deploy.errors import UnfinishedError
from deploy.files import disk_errors_explained, rename_new, sha256_bytes, sha256_file, sync_tree
from deploy.release.bom import make_bom
from deploy.release.keys import (
    SigningKey,
    check_certificate,
    fingerprint,
    load_private_key,
    require_signing,
)
from deploy.release.provenance import UNKNOWN_BUILDER, make_statement, sealed_envelope
from deploy.release.seal import sealed
from deploy.release.signatures import attested_files, check_payload, hashing, parse_bundle, signed_files
from deploy.repository.attest import attest, attestation_folder
from deploy.repository.find import find_version
from deploy.repository.integrity import require_intact
from deploy.repository.layout import Version
from deploy.repository.manifest import Manifest, created_now, version_digest
from deploy.repository.signed import BOM_FILE, KIND, PROVENANCE_FILE, SIGNATURE_FILE, SignatureRecord

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey

_TOOLS = ("model-signing", "securesystemslib", "cyclonedx-python-lib")


@dataclass(frozen=True, slots=True, kw_only=True)
class Signed:
    """What was made: the folder with the three files, and the record beside it."""

    version: Version
    record: SignatureRecord
    folder: Path
    attestation: Path


@dataclass(frozen=True, slots=True, kw_only=True)
class _Signer:
    """Who signs: the files of key and certificates, the key that was read from there, and the builder they name."""

    signing: SigningKey
    key: "EllipticCurvePrivateKey"
    builder: str


def sign(repository: Path, reference: str, signing: SigningKey, *, builder: str = UNKNOWN_BUILDER) -> Signed:
    """Sign the version that `NAME[:N]` means. `builder` is a URI for who built it, which the provenance repeats.

    Raises MissingError without the extra; UsageError if there is no such version, it is not as it was published, or
    the key cannot sign.
    """
    require_signing("cyclonedx.output.json")  # 1
    key = load_private_key(signing)
    certificate = check_certificate(signing, key)
    version = find_version(repository, reference)
    manifest = require_intact(version)  # 2
    parent = attestation_folder(version)
    with disk_errors_explained(f"signing {version}"), _private_folder(parent) as folder:
        _fill(folder, version, manifest, _Signer(signing=signing, key=key, builder=builder))  # 3
        digests = {path.name: sha256_file(path) for path in sorted(folder.iterdir())}
        final = parent / f"{KIND}-{digests[SIGNATURE_FILE][:16]}"
        sync_tree(folder)
        rename_new(folder, final)  # 4
    record = SignatureRecord(
        version=str(version),
        digest=version_digest(version.folder),
        mode="certificate" if certificate else "key",
        fingerprint=fingerprint(key.public_key()),
        subject=certificate.subject.rfc4514_string() if certificate else None,
        issuer=certificate.issuer.rfc4514_string() if certificate else None,
        tools={"deployctl": __version__, **{name: installed_version(name) for name in _TOOLS}},
        created=created_now(),
        folder=final.name,
        files=digests,
    )
    record = sealed(record, key)
    with disk_errors_explained(f"signing {version}"):
        kept = attest(version, KIND, record)  # 5
    return Signed(version=version, record=record, folder=final, attestation=kept)


def _fill(folder: Path, version: Version, manifest: Manifest, by: _Signer) -> None:
    files = signed_files(version, manifest)
    bom = make_bom(version, manifest)
    beside = {BOM_FILE: sha256_bytes(bom), **attested_files(version)}
    statement = make_statement(version, manifest, files=files, beside=beside, builder=by.builder)
    (folder / BOM_FILE).write_bytes(bom)
    (folder / PROVENANCE_FILE).write_bytes(sealed_envelope(statement, by.key))
    _sign_files(version, by.signing, folder / SIGNATURE_FILE)
    for path in folder.iterdir():
        # Others verify what one signs, whatever the umask.
        path.chmod(0o644)
    try:
        check_payload(parse_bundle((folder / SIGNATURE_FILE).read_bytes()), version, manifest)
    except (ValueError, KeyError) as error:
        raise UnfinishedError(
            f"{version} was signed in a way that cannot be read back: {error}",
            fix="report it, with the releases of model-signing and sigstore-models: `pip list` shows them",
        ) from error


def _sign_files(version: Version, signing: SigningKey, signature: Path) -> None:
    from model_signing.signing import Config

    config = Config().set_hashing_config(hashing())
    if signing.certificate is not None:
        # Release 1.1.1 cannot read a chain of nothing; the certificate once more changes nothing for who verifies.
        chain = signing.chain or (signing.certificate,)
        config.use_certificate_signer(
            private_key=signing.key, signing_certificate=signing.certificate, certificate_chain=chain
        )
    else:
        try:
            config.use_elliptic_key_signer(private_key=signing.key, password=signing.password)
        except TypeError:
            # Release 1.1.1 hands the text on to cryptography, which wants bytes.
            assert signing.password is not None
            password = signing.password.encode()
            config.use_elliptic_key_signer(private_key=signing.key, password=password)  # type: ignore[arg-type]
    config.sign(version.folder, signature)


@contextmanager
def _private_folder(parent: Path) -> Iterator[Path]:
    """A new folder in `parent`, which others may read once it has its name; gone if it never gets one."""
    parent.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix=".signing-", dir=parent))
    try:
        folder.chmod(0o755)
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
