"""`deployctl report`: one file outside the repository, and its verdicts on stdout."""

import json
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from deploy.cli.main import cli
from deploy.errors import UsageError
from deploy.evidence import Verdict
from deploy.report.write import write_report
from deploy.repository.attest import attest
from deploy.repository.layout import Version
from deploy.repository.manifest import verify_files, version_digest
from deploy.repository.signed import SignatureRecord
from tests.report.samples import HOSTILE, slo, tell


@pytest.fixture
def version(tmp_path: Path) -> Version:
    return tell(tmp_path / "models")


def run(version: Version, *arguments: str) -> Result:
    return CliRunner().invoke(cli, ["report", str(version.repository), *arguments], catch_exceptions=False)


def test_it_writes_one_page_and_says_how_the_version_stands(
    version: Version, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    attest(version, "slo", slo(Verdict.UNDECIDED))
    result = run(version, "pets")
    assert result.exit_code == 0
    lines = result.output.splitlines()
    assert lines[-1] == "written: pets-1.html"
    assert [line.split()[0] for line in lines if line.startswith(("PASS", "UNDECIDED"))] == ["PASS"] * 5 + [
        "UNDECIDED"
    ] * 2
    assert "<title>UNDECIDED: pets:1</title>" in (tmp_path / "pets-1.html").read_text()
    verify_files(version.folder)


def test_json_names_the_file_and_every_verdict(version: Version, tmp_path: Path) -> None:
    attest(version, "slo", slo(Verdict.FAIL))
    output = tmp_path / "new" / "page.html"
    found = json.loads(run(version, "pets:1", "--output", str(output), "--json").stdout)
    assert (found["version"], found["verdict"], found["output"]) == ("pets:1", "fail", str(output))
    assert found["checks"][-1]["verdict"] == "fail"
    assert output.read_text().startswith("<!DOCTYPE html>")


def test_a_version_takes_no_more_files(version: Version) -> None:
    with pytest.raises(UsageError, match="lies in the repository"):
        write_report(version.repository, "pets", version.evidence / "report.html")


def test_a_version_that_is_not_there_is_named(version: Version, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="pets has no version 7"):
        write_report(version.repository, "pets:7", tmp_path / "page.html")


def test_a_folder_is_no_file(version: Version, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no regular file"):
        write_report(version.repository, "pets", tmp_path)


def test_who_says_to_have_signed_it_is_one_line_and_nobody_else_s_words(version: Version, tmp_path: Path) -> None:
    output = tmp_path / "page.html"
    assert "pets:1 not signed\n" in run(version, "pets", "--output", str(output)).output
    assert "not signed" in output.read_text()
    record = SignatureRecord(
        version="pets:1",
        digest=version_digest(version.folder),
        mode="certificate",
        fingerprint="sha256:0",
        subject=f"CN={HOSTILE}",
        tools={},
        created="2026-11-23T10:00:00Z",
        folder="signature-0",
        files={},
    )
    attest(version, "signature", record.model_copy(update={"digest": "0" * 64, "subject": "CN=of another version"}))
    attest(version, "signature", record)
    lines = run(version, "pets", "--output", str(output)).output.splitlines()
    (line,) = [line for line in lines if line.startswith("pets:1 says to be signed by CN=")]
    assert line.endswith("`deployctl verify --signature` finds out")
    assert "\x1b" not in line
    page = output.read_text()
    assert "CN=&lt;script&gt;" in page
    assert "<script" not in page
    assert "of another version" not in page


def test_what_lies_beside_the_versions_is_a_fail(version: Version, tmp_path: Path) -> None:
    (version.model_folder / "libtriton_onnxruntime.so").write_bytes(b"")
    found = json.loads(run(version, "pets", "--output", str(tmp_path / "page.html"), "--json").stdout)
    (files,) = [check for check in found["checks"] if check["name"] == "files"]
    assert files["verdict"] == "fail"
    assert "pets/libtriton_onnxruntime.so does not belong" in files["reason"]
