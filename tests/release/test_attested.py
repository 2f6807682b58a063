"""What was attested of a version before it was signed is signed too: changed, swapped or removed it is found out."""

import shutil
from pathlib import Path

import pytest

from deploy.errors import ExitCode
from deploy.evidence import Judgement
from deploy.release.keys import SigningKey
from deploy.release.sign import sign
from deploy.release.signatures import Trust, check_signature, check_signatures
from deploy.repository.attest import attest, attestations
from deploy.repository.layout import promoted_version
from deploy.repository.signed import SignatureRecord
from tests.release.conftest import SignedModel
from tests.release.test_policy import environment, run, slo
from tests.release.test_tampering import flip
from tests.repository.samples import FAIL, PASS

POLICY = '[promote]\nrequire = ["slo", "signature"]\npublic_key = "release.pub"\n'


def attested(model: SignedModel, judgement: Judgement = PASS) -> Path:
    """The second version after a load run with that verdict."""
    return attest(model.version(2), "slo", slo(model.version(2), judgement=judgement))


def signed_again(model: SignedModel) -> None:
    sign(model.repository, "pets:2", SigningKey(key=model.key))


def judged(model: SignedModel) -> Judgement:
    return check_signature(model.version(2), Trust(public_key=model.public))


def promoted(model: SignedModel, folder: Path) -> tuple[int, str]:
    """How promoting the second version under the policy ended, and what was said."""
    shutil.copy(model.public, folder / "release.pub")
    result = run(model.repository, "pets:2", "--environment", environment(folder, POLICY))
    return result.exit_code, result.stdout


def test_what_was_attested_before_is_covered(signed: SignedModel) -> None:
    first, second = attested(signed), attested(signed)
    signed_again(signed)
    later = attested(signed)
    found = check_signatures(signed.version(2), Trust(public_key=signed.public))
    assert found.judgement.reason.endswith("all 6 files and 2 attestations")
    assert found.attested == {first.name, second.name}
    assert later.name not in found.attested


@pytest.mark.parametrize("place", [0, 0.5, 1])
def test_one_bit_of_an_attestation(signed: SignedModel, place: float) -> None:
    """Though the signature of before, which names none, still fits the files."""
    path = attested(signed)
    signed_again(signed)
    flip(path, int(place * (path.stat().st_size - 1)))
    found = judged(signed)
    assert not found.passed
    assert found.reason == f"the attestation {path.name}, which was signed, has changed since"


def test_two_attestations_swapped(signed: SignedModel) -> None:
    yes, no = attested(signed), attested(signed, FAIL)
    signed_again(signed)
    kept = yes.read_bytes()
    yes.write_bytes(no.read_bytes())
    no.write_bytes(kept)
    assert "has changed since" in judged(signed).reason


def test_a_no_that_was_removed(signed: SignedModel) -> None:
    attested(signed)
    no = attested(signed, FAIL)
    signed_again(signed)
    no.unlink()
    assert judged(signed).reason == f"the attestation {no.name}, which was signed, is missing"


def test_a_yes_counts_only_where_it_is_signed(signed: SignedModel, tmp_path: Path) -> None:
    path = attested(signed)
    code, said = promoted(signed, tmp_path)
    assert (code, promoted_version(signed.model)) == (ExitCode.NO, 1)
    assert f"FAIL  slo: {path.name} is covered by no signature that counts" in said
    assert "to do: deployctl sign" in said
    signed_again(signed)
    assert promoted(signed, tmp_path)[0] == ExitCode.OK
    assert promoted_version(signed.model) == 2


def test_a_no_counts_whoever_wrote_it(signed: SignedModel, tmp_path: Path) -> None:
    attested(signed)
    signed_again(signed)
    attested(signed, FAIL)
    code, said = promoted(signed, tmp_path)
    assert (code, promoted_version(signed.model)) == (ExitCode.NO, 1)
    assert f"FAIL  slo: fail, {FAIL.reason}" in said


def test_an_edited_verdict_promotes_nothing(signed: SignedModel, tmp_path: Path) -> None:
    path = attested(signed, FAIL)
    signed_again(signed)
    path.write_text(path.read_text().replace('"fail"', '"pass"'))
    code, said = promoted(signed, tmp_path)
    assert (code, promoted_version(signed.model)) == (ExitCode.NO, 1)
    assert "which was signed, has changed since" in said
    assert "is covered by no signature that counts" in said
    assert [one.kind for one in attestations(signed.version(2))].count("slo") == 1


def test_any_bit_of_the_record_of_who_signed(signed: SignedModel) -> None:
    (record,) = (one.path for one in attestations(signed.version(2)) if one.kind == "signature")
    assert judged(signed).passed
    whole = record.read_bytes()
    for place in range(0, len(whole), 7):
        flip(record, place)
        found = judged(signed)
        assert not found.passed, place
        assert "who signed" in found.reason
        record.write_bytes(whole)
    assert judged(signed).passed


def test_a_record_that_was_written_anew_or_removed(signed: SignedModel) -> None:
    (record,) = (one.path for one in attestations(signed.version(2)) if one.kind == "signature")
    said = SignatureRecord.read(record)
    said.model_copy(update={"subject": "CN=somebody else"}).write(record)
    assert "has changed since, or another key sealed it" in judged(signed).reason
    record.unlink()
    assert "no record says who signed" in judged(signed).reason
