"""docs/getting-started.md works as it is written: its commands run in order, on a network fine-tuned for real."""

import os
import shlex
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from deploy.serve.engines import Engine
from tests.markdown import ROOT, commands

PAGE = ROOT / "docs" / "getting-started.md"
ENVIRONMENT = {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}


@contextmanager
def serving(line: str, folder: Path) -> Iterator[None]:
    """The page's server, ready, until the block ends."""
    command = shlex.split(line)
    with (
        (folder / "server.log").open("w") as log,
        subprocess.Popen(command, cwd=folder, env=ENVIRONMENT, stdout=subprocess.PIPE, stderr=log, text=True) as server,
    ):
        assert server.stdout is not None
        assert "ready in" in server.stdout.readline(), (folder / "server.log").read_text()
        yield
        server.send_signal(signal.SIGINT)
        server.communicate(timeout=60)
        assert server.returncode == 0


def run(line: str, folder: Path) -> str:
    result = subprocess.run(shlex.split(line), cwd=folder, env=ENVIRONMENT, capture_output=True, text=True, check=False)
    assert result.returncode == 0, f"{line}\n{result.stdout[-2000:]}{result.stderr[-2000:]}"
    return result.stdout


@pytest.mark.slow
@pytest.mark.engine
@pytest.mark.timeout(1800)
def test_the_first_fifteen_minutes(engine: Engine, tmp_path: Path) -> None:
    lines = [line for line in commands(PAGE) if line.startswith("deployctl ")]
    package = next(line for line in lines if "package" in line)
    # What `make demo` leaves behind, and the configuration of the pipelines in a folder laid out as theirs.
    run(f"{sys.executable} {ROOT}/examples/finetune.py --out .demo/training", tmp_path)
    run(package, tmp_path)
    shutil.copy(ROOT / "examples" / "pipelines" / "deploy.toml", tmp_path)
    (tmp_path / "training").symlink_to(".demo/training")
    server = next(line for line in lines if line.startswith("deployctl serve"))
    at = lines.index(server)
    said = {line: run(line, tmp_path) for line in lines[:at]}
    inspect = next(line for line in lines if line.startswith("deployctl inspect"))
    assert "behaviour unconfirmed" in said[inspect]
    assert "digits_resnet18/2 (not promoted" in said[package]
    assert (tmp_path / "digits.html").exists()
    slo = lines[at + 1]
    assert slo.startswith("deployctl slo")
    with serving(server, tmp_path):
        assert "PASS" in run(slo, tmp_path)
    for line in lines[at + 2 :]:
        run(line, tmp_path)
