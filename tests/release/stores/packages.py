"""Versions that are worth sending: several files of a megabyte, and things attested of them."""

from pathlib import Path

from deploy.evidence import Judgement, Verdict
from deploy.repository.attest import attest, attestation_folder
from deploy.repository.layout import Version
from deploy.repository.publish import publish
from deploy.repository.stage import open_stage
from tests.repository.samples import Sample, put

MEGABYTE = 1_000_000
BIG = 6


def put_big(repository: Path, weights: bytes = b"weights") -> Version:
    """A version with files big enough to be told of one by one, the artifact above the size of one request."""
    sample = Sample(weights=weights * (17 * MEGABYTE // len(weights)))
    with open_stage(repository, sample.name) as stage:
        sample.populate(stage)
        for index in range(BIG - 1):
            stage.add_evidence(f"samples-{index}.npz", bytes([index]) * MEGABYTE)
        return publish(stage, sample.manifest()).version


def put_attested(repository: Path, weights: bytes = b"weights") -> Version:
    """A small version with a record and a folder attested of it, as `slo` and `sign` leave them."""
    version = put(repository, Sample(weights=weights)).version
    folder = attestation_folder(version) / "signature-20261101T000000Z"
    folder.mkdir(parents=True)
    (folder / "model.sig").write_bytes(b"signed")
    attest(version, "slo", Judgement(verdict=Verdict.PASS, reason="kept"))
    return version


def files_below(folder: Path) -> dict[str, bytes]:
    """The bytes of every file, by path."""
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
