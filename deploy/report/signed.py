"""What the signatures of a version say of themselves, in one line.

Owns the line. Nothing is verified here: a report is read by people who hold no key. Called by `findings`.
"""

from collections.abc import Iterator
from contextlib import suppress

from deploy.errors import DeployError
from deploy.report.words import printable
from deploy.repository.attest import attestations
from deploy.repository.layout import Version
from deploy.repository.manifest import version_digest
from deploy.repository.signed import KIND, SignatureRecord


def signature_line(version: Version) -> str:
    """`not signed`, or who says to have signed exactly this version, and how to find out whether that is so."""
    signers = dict.fromkeys(printable(record.signer) for record in _records(version))
    if not signers:
        return "not signed"
    return f"says to be signed by {', '.join(signers)}; `deployctl verify --signature` finds out"


def _records(version: Version) -> Iterator[SignatureRecord]:
    digest = version_digest(version.folder)
    for one in attestations(version):
        if one.kind == KIND:
            # A damaged record is listed among the attestations, and says nothing here.
            with suppress(DeployError):
                record = SignatureRecord.read(one.path)
                if record.digest == digest:
                    yield record
