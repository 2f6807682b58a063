"""Folders for the moment: gone with their block, and after a kill gone with the next run."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from deploy.scratch import remove_stale, scratch_folder

_HOLD = """
import sys
from deploy.scratch import scratch_folder
with scratch_folder("load") as folder:
    (folder / "trace").write_text("x")
    print(folder, flush=True)
    sys.stdin.read()
"""


@pytest.fixture(autouse=True)
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", None)
    return tmp_path


def test_a_folder_is_there_for_its_block_alone(tmp_path: Path) -> None:
    with scratch_folder("load") as folder:
        assert folder.parent == tmp_path
        assert remove_stale() == ()
    assert list(tmp_path.iterdir()) == []


def test_what_a_killed_process_left_goes_with_the_next_run(tmp_path: Path) -> None:
    command = [sys.executable, "-c", _HOLD]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        left = Path(process.stdout.readline().strip())
        with scratch_folder("bench"):
            assert left.is_dir(), "it is in use"
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        assert left.is_dir()
    with scratch_folder("bench"):
        assert not left.exists()


def test_what_is_not_ours_stays(tmp_path: Path) -> None:
    (tmp_path / "deployctl-notes").mkdir()
    with scratch_folder("load"):
        pass
    assert (tmp_path / "deployctl-notes").is_dir()
