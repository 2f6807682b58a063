"""What the README promises: the demo's script fine-tunes, packages, serves and classifies, for real."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from deploy.serve.engines import Engine
from tests.markdown import ROOT


@pytest.mark.slow
@pytest.mark.engine
def test_the_demo_ends_with_a_served_network_that_reads_digits(engine: Engine, tmp_path: Path) -> None:
    assert engine.executable.exists()
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    command = ["bash", "scripts/demo.sh", str(tmp_path)]
    result = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout[-4000:] + result.stderr[-4000:]
    trained, served = (float(share) for share in re.findall(r"(?:held-out|served) accuracy: ([\d.]+)%", result.stdout))
    assert trained >= 90.0
    # The artifact is not the checkpoint bit for bit: one image on the edge may fall the other way.
    assert abs(served - trained) < 0.5
    assert (tmp_path / "model_repository/digits_resnet18/1/manifest.json").exists()
