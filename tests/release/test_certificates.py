"""Signatures by certificate: who the chain leads to, who the holder is, and what is not judged."""

from pathlib import Path

import pytest

from deploy.errors import UsageError
from deploy.evidence import Judgement
from deploy.release.keys import SigningKey
from deploy.release.sign import sign
from deploy.release.signatures import Trust, check_signature
from deploy.repository.find import find_version
from deploy.repository.signed import SignatureRecord
from tests.release.conftest import put_full
from tests.release.pki import EMAIL, SUBJECT, URI, Leaf, make_intermediate, make_leaf, make_root
from tests.repository.samples import Sample


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    put_full(tmp_path / "models", Sample())
    return tmp_path / "models"


def sign_with(repository: Path, certificate: Path, *chain: Path) -> SignatureRecord:
    signing = SigningKey(key=certificate.with_suffix(".key"), certificate=certificate, chain=chain)
    return sign(repository, "pets", signing).record


def judged(repository: Path, *chain: Path, identity: str | None = None) -> Judgement:
    return check_signature(find_version(repository, "pets"), Trust(certificate_chain=chain, identity=identity))


def test_a_certificate_of_the_root(repository: Path, tmp_path: Path) -> None:
    root = make_root(tmp_path, "root")
    record = sign_with(repository, make_leaf(tmp_path, "leaf", root))
    assert (record.mode, record.subject, record.issuer) == ("certificate", SUBJECT, "CN=root")
    found = judged(repository, root.path)
    assert found.passed, found.reason
    assert found.reason.startswith(f"signed by {SUBJECT}")


def test_a_certificate_below_another(repository: Path, tmp_path: Path) -> None:
    root = make_root(tmp_path, "root")
    middle = make_intermediate(tmp_path, "middle", root)
    sign_with(repository, make_leaf(tmp_path, "leaf", middle))
    assert not judged(repository, root.path).passed, "the signer did not send what lies between"
    assert judged(repository, root.path, middle.path).passed
    sign_with(repository, make_leaf(tmp_path, "leaf", middle), middle.path)
    assert judged(repository, root.path).passed


def test_the_certificate_between_is_no_root(repository: Path, tmp_path: Path) -> None:
    middle = make_intermediate(tmp_path, "middle", make_root(tmp_path, "root"))
    sign_with(repository, make_leaf(tmp_path, "leaf", middle), middle.path)
    found = judged(repository, middle.path)
    assert not found.passed
    assert found.reason.endswith("unable to get issuer certificate")


def test_another_root_of_the_same_name(repository: Path, tmp_path: Path) -> None:
    root = make_root(tmp_path, "root")
    (tmp_path / "other").mkdir()
    sign_with(repository, make_leaf(tmp_path, "leaf", make_root(tmp_path / "other", "root")))
    found = judged(repository, root.path)
    assert not found.passed
    assert found.reason.endswith("unable to get local issuer certificate")


def test_a_signer_who_brings_a_root_along_is_not_trusted_for_it(repository: Path, tmp_path: Path) -> None:
    own = make_root(tmp_path, "own")
    sign_with(repository, make_leaf(tmp_path, "leaf", own), own.path)
    found = judged(repository, make_root(tmp_path, "root").path)
    assert not found.passed
    assert found.reason.endswith("self-signed certificate in certificate chain")


@pytest.mark.parametrize("identity", [SUBJECT, "release pipeline", URI, EMAIL])
def test_each_name_of_the_holder_counts(repository: Path, tmp_path: Path, identity: str) -> None:
    root = make_root(tmp_path, "root")
    sign_with(repository, make_leaf(tmp_path, "leaf", root))
    assert judged(repository, root.path, identity=identity).passed


@pytest.mark.parametrize("identity", ["someone", "release", URI + "/", EMAIL.upper(), ""])
def test_another_holder_of_the_same_root(repository: Path, tmp_path: Path, identity: str) -> None:
    root = make_root(tmp_path, "root")
    sign_with(repository, make_leaf(tmp_path, "leaf", root))
    found = judged(repository, root.path, identity=identity)
    assert not found.passed
    assert f"not by {identity}" in found.reason


def test_a_certificate_that_is_not_for_signing(repository: Path, tmp_path: Path) -> None:
    root = make_root(tmp_path, "root")
    sign_with(repository, make_leaf(tmp_path, "leaf", root, Leaf(signs=False)))
    found = judged(repository, root.path)
    assert not found.passed
    assert "cannot be used for signing" in found.reason


def test_expiry_is_not_judged(repository: Path, tmp_path: Path) -> None:
    """A version outlives the certificate it was signed with; docs/supply-chain.md says so."""
    root = make_root(tmp_path, "root")
    sign_with(repository, make_leaf(tmp_path, "leaf", root, Leaf(days=1)))
    assert judged(repository, root.path).passed


def test_a_key_and_a_certificate_do_not_stand_in_for_each_other(repository: Path, keys: Path, tmp_path: Path) -> None:
    root = make_root(tmp_path, "root")
    certificate = make_leaf(tmp_path, "leaf", root)
    sign(repository, "pets", SigningKey(key=keys / "release.key"))
    assert not judged(repository, root.path).passed
    sign_with(repository, certificate)
    assert judged(repository, root.path).passed
    version = find_version(repository, "pets")
    assert not check_signature(version, Trust(public_key=certificate.with_suffix(".pub"))).passed


def test_a_chain_that_is_none_is_bad_input(repository: Path, keys: Path) -> None:
    with pytest.raises(UsageError, match="holds no certificate"):
        judged(repository, keys / "release.pub")
