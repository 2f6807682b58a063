"""The provenance that lies with a signature is in-toto's and SLSA's, and says what the manifest says."""

import base64
import json
from pathlib import Path
from typing import Any

import pytest
from google.protobuf import json_format
from in_toto_attestation.predicates.provenance.v1.provenance_pb2 import Provenance
from in_toto_attestation.v1.statement import Statement
from in_toto_attestation.v1.statement_pb2 import Statement as StatementMessage

from deploy.errors import DeployError
from deploy.files import sha256_file
from deploy.release.provenance import AttestationRefused, ProvenanceRefused, check_statement, make_statement
from deploy.release.signatures import signed_files
from deploy.repository.manifest import Manifest
from tests.markdown import ROOT
from tests.release.conftest import SignedModel

ATTESTED = "slo-20261101T000000Z.json"
BESIDE = {"bom.cdx.json": "b" * 64, ATTESTED: "c" * 64}


def statement_of(folder: Path) -> dict[str, Any]:
    envelope = json.loads((folder / "provenance.intoto.json").read_text())
    assert envelope["payloadType"] == "application/vnd.in-toto+json"
    found: dict[str, Any] = json.loads(base64.b64decode(envelope["payload"]))
    return found


def made(signed: SignedModel, builder: str = "urn:deployctl:builder:unknown") -> dict[str, Any]:
    version = signed.version()
    manifest = Manifest.read(version.manifest)
    return make_statement(version, manifest, files=signed_files(version, manifest), beside=BESIDE, builder=builder)


def refused(signed: SignedModel, statement: dict[str, Any]) -> DeployError:
    version = signed.version()
    files = signed_files(version, Manifest.read(version.manifest))
    with pytest.raises(ProvenanceRefused) as caught:
        check_statement(statement, version, files=files, beside=BESIDE)
    return caught.value


def test_the_standards_own_schemas_take_it_with_no_field_unknown(signed: SignedModel) -> None:
    statement = statement_of(signed.signature())
    message = json_format.ParseDict(statement, StatementMessage())
    Statement.copy_from_pb(message).validate()
    predicate = json_format.ParseDict(statement["predicate"], Provenance())
    assert predicate.build_definition.build_type == "urn:deployctl:package:v1"
    assert predicate.run_details.builder.id == "urn:deployctl:builder:unknown"
    assert predicate.run_details.metadata.finished_on.seconds > 0
    assert not predicate.run_details.metadata.HasField("started_on"), "nobody knows when it began"


def test_its_subjects_are_every_file_and_the_version(signed: SignedModel) -> None:
    folder = signed.version().folder
    subjects = {one["name"]: one["digest"]["sha256"] for one in statement_of(signed.signature())["subject"]}
    files = {str(path.relative_to(folder)): sha256_file(path) for path in folder.rglob("*") if path.is_file()}
    assert subjects == {"pets:1": files["manifest.json"], **files}


def test_it_says_what_the_manifest_says(signed: SignedModel) -> None:
    predicate = made(signed)["predicate"]
    definition = predicate["buildDefinition"]
    assert definition["externalParameters"] == {"command": ["deployctl", "package", "pets.pt"]}
    dependencies = {one["name"]: one for one in definition["resolvedDependencies"]}
    assert dependencies["pets.pt"]["digest"] == {"sha256": "0" * 64}
    manifest = Manifest.read(signed.version().manifest)
    assert dependencies["onnx"]["uri"] == f"pkg:pypi/onnx@{manifest.environment.onnx}"
    assert predicate["runDetails"]["metadata"]["finishedOn"] == manifest.created


def test_a_local_version_is_escaped_and_what_is_absent_is_left_out(signed: SignedModel) -> None:
    version = signed.version()
    manifest = Manifest.read(version.manifest)
    environment = manifest.environment.model_copy(update={"torch": "2.13.0+cpu", "torchvision": None})
    changed = manifest.model_copy(update={"environment": environment})
    statement = make_statement(version, changed, files=signed_files(version, manifest), beside=BESIDE, builder="urn:b")
    listed = {one["name"]: one for one in statement["predicate"]["buildDefinition"]["resolvedDependencies"]}
    assert listed["torch"]["uri"] == "pkg:pypi/torch@2.13.0%2Bcpu"
    assert "torchvision" not in listed


def test_the_builder_is_who_was_named(signed: SignedModel) -> None:
    builder = "https://ci.example/workflows/release"
    assert made(signed, builder)["predicate"]["runDetails"]["builder"]["id"] == builder


@pytest.mark.parametrize("change", ["more", "less", "other", "twice", "name"])
def test_other_subjects_are_refused(signed: SignedModel, change: str) -> None:
    statement = made(signed)
    subjects = statement["subject"]
    if change == "more":
        subjects.append({"name": "../2/model.onnx", "digest": {"sha256": "0" * 64}})
    elif change == "less":
        subjects.pop()
    elif change == "other":
        subjects[1]["digest"]["sha256"] = "0" * 64
    elif change == "twice":
        subjects.append(subjects[1])
    else:
        subjects[0]["name"] = "pets:2"
    assert "of other files than those of pets:1" in refused(signed, statement).found


def test_another_kind_of_statement_is_refused(signed: SignedModel) -> None:
    other = made(signed) | {"predicateType": "https://model_signing/signature/v1.0"}
    assert "not https://slsa.dev/provenance/v1" in refused(signed, other).found


def test_another_bill_of_materials_is_refused(signed: SignedModel) -> None:
    statement = made(signed)
    statement["predicate"]["runDetails"]["byproducts"][0]["digest"]["sha256"] = "c" * 64
    assert "bom.cdx.json is not the one" in refused(signed, statement).found


def test_the_build_type_is_documented() -> None:
    page = (ROOT / "docs" / "supply-chain.md").read_text()
    assert "urn:deployctl:package:v1" in page
    assert "urn:deployctl:builder:unknown" in page


def test_the_attestations_that_it_names_are_said_to_be_covered(signed: SignedModel) -> None:
    version = signed.version()
    files = signed_files(version, Manifest.read(version.manifest))
    beside = {**BESIDE, "slo-20261102T000000Z.json": "d" * 64}
    assert check_statement(made(signed), version, files=files, beside=beside) == {ATTESTED}


@pytest.mark.parametrize(("digest", "words"), [("d" * 64, "has changed since"), (None, "is missing")])
def test_an_attestation_that_is_not_as_it_was_signed_is_refused(
    signed: SignedModel, digest: str | None, words: str
) -> None:
    version = signed.version()
    files = signed_files(version, Manifest.read(version.manifest))
    there = {name: kept for name, kept in {**BESIDE, ATTESTED: digest}.items() if kept is not None}
    with pytest.raises(AttestationRefused, match=f"the attestation {ATTESTED}, which was signed, {words}"):
        check_statement(made(signed), version, files=files, beside=there)
