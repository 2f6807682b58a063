"""The lines of docs/supply-chain.md work as they stand, one after the other, with the real openssl."""

import os
import shlex
import subprocess
import sys
from pathlib import Path

from tests.markdown import ROOT, commands
from tests.release.conftest import put_full
from tests.release.pki import PASSWORD
from tests.repository.samples import Sample

PAGE = ROOT / "docs" / "supply-chain.md"


def test_every_line_works_in_its_order(tmp_path: Path) -> None:
    put_full(tmp_path / "model_repository", Sample(name="resnet18"))
    lines = [line for line in commands(PAGE) if not line.startswith("pip ")]
    assert sum(line.startswith("deployctl sign") for line in lines) == 3
    environment = os.environ | {"SIGNING_PASSWORD": PASSWORD}
    for line in lines:
        words = shlex.split(line)
        words[:1] = [sys.executable, "-m", "deploy"] if words[0] == "deployctl" else words[:1]
        result = subprocess.run(
            words, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False, timeout=60
        )
        assert result.returncode == 0, (line, result.stdout, result.stderr)
    for spoil in ("labels.txt", "manifest.json"):
        path = tmp_path / "model_repository" / "resnet18" / "1" / spoil
        path.write_bytes(path.read_bytes() + b" ")
        verify = shlex.split(next(line for line in lines if line.startswith("deployctl verify")))[1:]
        result = subprocess.run(
            [sys.executable, "-m", "deploy", *verify], cwd=tmp_path, capture_output=True, check=False
        )
        assert result.returncode == 1, spoil
