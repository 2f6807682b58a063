"""What a signature says of itself, for people to read: who, with what, when. It proves nothing by itself.

Owns the record, and the names of the files that lie with a signature. Written by release, which alone verifies one;
read by report.
"""

from typing import Literal

from deploy.records import Record

KIND = "signature"
SIGNATURE_FILE = "model.sig"
PROVENANCE_FILE = "provenance.intoto.json"
BOM_FILE = "bom.cdx.json"


class SignatureRecord(Record):
    """One signing of one version. `fingerprint` is the SHA-256 of the public key (SubjectPublicKeyInfo, DER).

    `folder` holds the files, beside this record; `files` are their digests. The names in a certificate are None where a
    bare key signed. `seal` is the same key's signature of the rest, in hex.
    """

    schema_version: Literal[1] = 1
    version: str
    digest: str
    mode: Literal["key", "certificate"]
    fingerprint: str
    subject: str | None = None
    issuer: str | None = None
    tools: dict[str, str]
    created: str
    folder: str
    files: dict[str, str]
    seal: str = ""

    @property
    def signer(self) -> str:
        """Who says to have signed: the certificate's subject, or the key."""
        return self.subject or f"key {self.fingerprint}"
