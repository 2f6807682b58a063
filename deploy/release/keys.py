"""Keys and certificates from files: read, checked, and named by their fingerprints.

Owns what can be wrong with them, in words that show no secret; nothing read here is ever written. Called by sign and
signatures. Imports cryptography on use.
"""

import importlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from deploy.errors import MissingError, UsageError
from deploy.files import sha256_bytes

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey, EllipticCurvePublicKey
    from cryptography.x509 import Certificate

# What OpenSSF model-signing takes.
_CURVES = {"secp256r1": "P-256", "secp384r1": "P-384", "secp521r1": "P-521"}
_WANTED = f"an EC key on {', '.join(_CURVES.values())}, as PEM"
_MAKE_KEY = "make one: openssl ecparam -name prime256v1 -genkey -noout -out signing.key"
_LARGEST = 1024 * 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class SigningKey:
    """Where the key that signs lies, and the certificate that says whose it is.

    `chain` holds the certificates between that one and the root. `password` opens an encrypted key.
    """

    key: Path
    password: str | None = field(default=None, repr=False)
    certificate: Path | None = None
    chain: tuple[Path, ...] = ()

    def __post_init__(self) -> None:
        if self.chain and self.certificate is None:
            raise UsageError(
                "a certificate chain was given without a certificate",
                expected="--chain beside --certificate",
                fix="add --certificate FILE",
            )
        if self.password is not None and self.certificate is not None:
            raise UsageError(
                "an encrypted key cannot sign with a certificate: model-signing takes no password for it",
                expected="--password-env with a key alone, or --certificate with a key that is not encrypted",
                fix="decrypt the key into a place that only this job can read, for example a tmpfs",
            )


def require_signing(*more: str) -> None:
    """Raises MissingError unless what signs and verifies, and the modules in `more`, are installed."""
    for name in ("model_signing.signing", "model_signing.verifying", "securesystemslib.dsse", *more):
        try:
            importlib.import_module(name)
        except ImportError as error:
            raise MissingError(
                f"signatures need the package {(error.name or name).partition('.')[0]}, which is not installed",
                expected="the extra `sign`",
                fix='pip install "deployctl[sign]"',
            ) from error


def load_private_key(signing: SigningKey) -> "EllipticCurvePrivateKey":
    """The key that signs. Raises UsageError if the file holds none that can, or the password does not open it."""
    from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    data = read_small(signing.key)
    password = signing.password.encode() if signing.password is not None else None
    try:
        key = load_pem_private_key(data, password)
    except TypeError as error:
        # Its two reasons: a password is missing, or there is nothing for it to open.
        if password is None:
            raise UsageError(f"{signing.key} is encrypted", **_without_password(signing)) from error
        raise UsageError(
            f"{signing.key} is not encrypted, and a password was given for it",
            expected="a password for an encrypted key only",
            fix="leave out --password-env",
        ) from error
    except ValueError as error:
        what = "is no private key" if password is None else "is no private key that this password opens"
        raise UsageError(f"{signing.key} {what}", expected=_WANTED, fix=_MAKE_KEY) from error
    if not isinstance(key, EllipticCurvePrivateKey):
        raise UsageError(f"{signing.key} is no EC key", expected=_WANTED, fix=_MAKE_KEY)
    _check_curve(key.curve.name, signing.key)
    return key


def _without_password(signing: SigningKey) -> dict[str, str]:
    if signing.certificate is not None:
        return {"expected": "a key that is not encrypted beside a certificate", "fix": "decrypt it for this job only"}
    return {"expected": "--password-env VAR", "fix": "name the environment variable that holds its password"}


def load_public_key(path: Path) -> "EllipticCurvePublicKey":
    """The key that a signature is verified by. Raises UsageError if the file holds none that can."""
    from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePublicKey
    from cryptography.hazmat.primitives.serialization import load_pem_public_key

    data = read_small(path)
    public = "take the public part: openssl pkey -in signing.key -pubout -out signing.pub"
    if b"PRIVATE KEY" in data:
        raise UsageError(f"{path} holds a private key", expected="a public key as PEM", fix=public)
    try:
        key = load_pem_public_key(data)
    except ValueError as error:
        raise UsageError(f"{path} is no public key", expected=_WANTED, fix=public) from error
    if not isinstance(key, EllipticCurvePublicKey):
        raise UsageError(f"{path} is no EC key", expected=_WANTED, fix=public)
    _check_curve(key.curve.name, path)
    return key


def load_certificates(paths: Sequence[Path]) -> "list[Certificate]":
    """Every certificate in these PEM files, in their order. Raises UsageError if one of them holds none."""
    from cryptography.x509 import load_pem_x509_certificates

    found = []
    for path in paths:
        try:
            found += load_pem_x509_certificates(read_small(path))
        except ValueError as error:
            raise UsageError(
                f"{path} holds no certificate", expected="one or more X.509 certificates as PEM"
            ) from error
    return found


def check_certificate(signing: SigningKey, key: "EllipticCurvePrivateKey") -> "Certificate | None":
    """The certificate of the key, None where a bare key signs. Raises UsageError if it belongs to another key."""
    if signing.certificate is None:
        return None
    certificate, *_ = load_certificates([signing.certificate])
    load_certificates(signing.chain)
    if fingerprint(certificate.public_key()) != fingerprint(key.public_key()):
        raise UsageError(
            f"{signing.certificate} is not the certificate of {signing.key}",
            expected="a certificate for the key that signs",
            fix="name the two that belong together",
        )
    return certificate


def fingerprint(key: object) -> str:
    """`sha256:` and the digest of a public key as DER, which `openssl pkey -pubin -outform DER | sha256sum` shows."""
    from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

    encoded: bytes = key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)  # type: ignore[attr-defined]
    return f"sha256:{sha256_bytes(encoded)}"


def read_small(path: Path) -> bytes:
    """The bytes of a key or certificate file. Raises UsageError if it cannot be read, or is too large to be one."""
    try:
        # A device or a pipe could keep us for ever.
        if not path.is_file():
            raise UsageError(f"{path} is no file", expected="a key or a certificate as PEM")
        if path.stat().st_size > _LARGEST:
            raise UsageError(f"{path} is too large for a key or a certificate", expected="a PEM file")
        return path.read_bytes()
    except PermissionError as error:
        raise UsageError(f"{path} may not be read", expected="a file this user may read") from error


def _check_curve(name: str, path: Path) -> None:
    if name not in _CURVES:
        raise UsageError(f"{path} is an EC key on {name}", expected=_WANTED, fix=_MAKE_KEY)
