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
from deploy.repository.manifest import verify_files
from tests.report.samples import slo, tell


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
    with pytest.raises(UsageError, match="is a folder"):
        write_report(version.repository, "pets", tmp_path)
