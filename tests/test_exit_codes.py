"""What a command ends with where its output cannot be written: never with 1, which is a verdict."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def deployctl(*arguments: str, stdout: int, stderr: int = subprocess.PIPE) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-m", "deploy", *arguments]
    return subprocess.run(command, check=False, text=True, cwd=ROOT, stdout=stdout, stderr=stderr)


@pytest.mark.parametrize("arguments", [("targets",), ("targets", "--json"), ("targets", "nowhere", "--json")])
def test_a_full_disk_under_stdout_is_no_verdict(arguments: tuple[str, ...]) -> None:
    with Path("/dev/full").open("w") as full:
        found = deployctl(*arguments, stdout=full.fileno())
    assert found.returncode == (2 if "nowhere" in arguments else 4)
    assert found.stderr.startswith("error: ") and "Traceback" not in found.stderr
    if "nowhere" not in arguments:
        assert "the disk is full while running the command" in found.stderr


def test_where_nothing_at_all_can_be_written_the_code_still_says_it() -> None:
    with Path("/dev/full").open("w") as full:
        assert deployctl("targets", stdout=full.fileno(), stderr=full.fileno()).returncode == 4
        assert deployctl("targets", "--nonsense", stdout=full.fileno(), stderr=full.fileno()).returncode == 2


def test_a_reader_that_went_away_is_no_verdict() -> None:
    read, write = os.pipe()
    os.close(read)
    try:
        found = deployctl("targets", stdout=write)
    finally:
        os.close(write)
    assert found.returncode == 4
    assert found.stderr == ""
