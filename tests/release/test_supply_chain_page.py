"""The lines of docs/supply-chain.md work as they stand, one after the other, with the real openssl."""

import contextlib
import shlex
import subprocess
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from deploy.cli.main import cli
from tests.markdown import ROOT, commands
from tests.release.conftest import put_full
from tests.release.pki import PASSWORD
from tests.repository.samples import Sample

PAGE = ROOT / "docs" / "supply-chain.md"


def deployctl(line: str) -> Result:
    return CliRunner().invoke(cli, shlex.split(line)[1:], prog_name="deployctl")


def test_every_line_works_in_its_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put_full(tmp_path / "model_repository", Sample(name="resnet18"))
    monkeypatch.setenv("SIGNING_PASSWORD", PASSWORD)
    lines = [line for line in commands(PAGE) if not line.startswith("pip ")]
    assert sum(line.startswith("deployctl sign") for line in lines) == 3
    with contextlib.chdir(tmp_path):
        for line in lines:
            if line.startswith("deployctl "):
                result = deployctl(line)
                assert result.exit_code == 0, (line, result.output, result.exception)
            else:
                subprocess.run(shlex.split(line), capture_output=True, check=True)
        labels = Path("model_repository/resnet18/1/labels.txt")
        labels.write_text("other\n")
        verifying = [line for line in lines if line.startswith("deployctl verify")]
        assert verifying
        for line in verifying:
            assert deployctl(line).exit_code == 1, line
