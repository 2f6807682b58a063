"""The record of who signed, sealed by the key that signed the files: no byte of it can be changed unseen.

Owns the seal and the look at it. Called by sign and signatures.
"""

from pathlib import Path
from typing import TYPE_CHECKING

from deploy.errors import DeployError
from deploy.repository.attest import attestations
from deploy.repository.layout import Version
from deploy.repository.signed import KIND, SignatureRecord

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.types import PrivateKeyTypes, PublicKeyTypes


class RecordRefused(DeployError):  # noqa: N818 - named for what happened
    """The record of a signature is absent, or not as it was written."""


def sealed(record: SignatureRecord, key: "PrivateKeyTypes") -> SignatureRecord:
    """The record with its seal: the key's signature, in hex, of its JSON with an empty seal."""
    from securesystemslib.signer import CryptoSigner

    return record.model_copy(update={"seal": CryptoSigner(key).sign(_unsealed(record)).signature})


def check_record(version: Version, folder: Path, key: "PublicKeyTypes") -> None:
    """Raises RecordRefused unless a record of the signature in `folder` is there, each as the key sealed it."""
    from securesystemslib.exceptions import UnverifiedSignatureError, VerificationError
    from securesystemslib.signer import Signature, SSlibKey

    public = SSlibKey.from_crypto(key)
    found = [record for record in map(_read, _paths(version)) if record and record.folder == folder.name]
    if not found:
        raise RecordRefused(f"no record says who signed {folder.name}, or it has changed")
    for record in found:
        try:
            public.verify_signature(Signature(public.keyid, record.seal), _unsealed(record))
        except (UnverifiedSignatureError, VerificationError, ValueError) as error:
            raise RecordRefused("the record of who signed has changed since, or another key sealed it") from error


def _paths(version: Version) -> list[Path]:
    return [one.path for one in attestations(version) if one.kind == KIND]


def _read(path: Path) -> SignatureRecord | None:
    """The record, None where its bytes are not what is written for one."""
    try:
        # One read, so that what is compared is what was parsed; whoever reads a pipe waits for ever.
        data = path.read_bytes() if path.is_file() else b""
        record = SignatureRecord.model_validate_json(data)
    except (OSError, ValueError):
        return None
    return record if record.to_json().encode() == data else None


def _unsealed(record: SignatureRecord) -> bytes:
    return record.model_copy(update={"seal": ""}).to_json().encode()
