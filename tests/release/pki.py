"""Keys and a small authority for the tests of signatures, made in memory and written as PEM."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
)

PASSWORD = "correct horse battery staple"
SUBJECT = "CN=release pipeline,O=Example"
URI = "https://ci.example/workflows/release"
EMAIL = "release@example.org"
_EPOCH = datetime(2026, 1, 1, tzinfo=UTC)


def write_key(folder: Path, name: str, *, curve: ec.EllipticCurve | None = None, password: str = "") -> Path:
    """`<name>.key` and `<name>.pub`, both PEM; gives back the first."""
    key = ec.generate_private_key(curve or ec.SECP256R1())
    return _write_pair(folder / f"{name}.key", key, password)


def write_rsa_key(folder: Path, name: str) -> Path:
    """The same with a kind of key that model-signing does not take."""
    return _write_pair(folder / f"{name}.key", rsa.generate_private_key(public_exponent=65537, key_size=2048), "")


def _write_pair(path: Path, key: ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey, password: str) -> Path:
    encryption = BestAvailableEncryption(password.encode()) if password else NoEncryption()
    path.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, encryption))
    public = key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    path.with_suffix(".pub").write_bytes(public)
    return path


@dataclass(frozen=True, kw_only=True)
class Authority:
    """A certificate that signs others, and the file it lies in."""

    certificate: x509.Certificate
    key: ec.EllipticCurvePrivateKey
    path: Path


@dataclass(frozen=True, kw_only=True)
class Leaf:
    """What a certificate for signing is like; the defaults are right."""

    signs: bool = True
    days: int = 3650
    names: Sequence[x509.GeneralName] = (x509.UniformResourceIdentifier(URI), x509.RFC822Name(EMAIL))


GOOD = Leaf()


def make_root(folder: Path, name: str) -> Authority:
    """A root of its own, as `<name>.pem`."""
    return _authority(folder, name, None)


def make_intermediate(folder: Path, name: str, root: Authority) -> Authority:
    """An authority below the root, as `<name>.pem`."""
    return _authority(folder, name, root)


def make_leaf(folder: Path, name: str, issuer: Authority, leaf: Leaf = GOOD) -> Path:
    """`<name>.key` and its certificate `<name>.pem`; gives back the certificate."""
    key = ec.generate_private_key(ec.SECP384R1())
    _write_pair(folder / f"{name}.key", key, "")
    usage = x509.KeyUsage(
        digital_signature=leaf.signs, content_commitment=False, key_encipherment=not leaf.signs,
        data_encipherment=False, key_agreement=False, key_cert_sign=False, crl_sign=False,
        encipher_only=False, decipher_only=False,
    )  # fmt: skip
    certificate = (
        _builder(x509.Name.from_rfc4514_string(SUBJECT), issuer.certificate.subject, key, days=leaf.days)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(usage, critical=True)
        .add_extension(x509.SubjectAlternativeName(leaf.names), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer.key.public_key()), critical=False)
        .sign(issuer.key, hashes.SHA256())
    )
    path = folder / f"{name}.pem"
    path.write_bytes(certificate.public_bytes(Encoding.PEM))
    return path


def _authority(folder: Path, name: str, issuer: Authority | None) -> Authority:
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)])
    usage = x509.KeyUsage(
        digital_signature=False, content_commitment=False, key_encipherment=False, data_encipherment=False,
        key_agreement=False, key_cert_sign=True, crl_sign=True, encipher_only=False, decipher_only=False,
    )  # fmt: skip
    signer = issuer.key if issuer else key
    certificate = (
        _builder(subject, issuer.certificate.subject if issuer else subject, key, days=7300)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .add_extension(usage, critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(signer.public_key()), critical=False)
        .sign(signer, hashes.SHA256())
    )
    path = folder / f"{name}.pem"
    path.write_bytes(certificate.public_bytes(Encoding.PEM))
    return Authority(certificate=certificate, key=key, path=path)


def _builder(
    subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePrivateKey, *, days: int
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(_EPOCH)
        .not_valid_after(_EPOCH + timedelta(days=days))
    )
