"""What a command ends with where its output cannot be written, or it is told to end: never with 1, a verdict."""

import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from deploy.evidence import Judgement, Verdict
from tests.repository.samples import Sample, put

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


@pytest.mark.parametrize(
    ("encoding", "shown"), [("ascii", b"\\u05e9"), ("latin-1", b"\\u05e9"), ("utf-8", b"\xd7\xa9")]
)
def test_what_the_terminal_cannot_show_is_escaped(encoding: str, shown: bytes, tmp_path: Path) -> None:
    """A result is not lost with a label of another script."""
    put(tmp_path / "models", Sample(parity=Judgement(verdict=Verdict.PASS, reason="label \u05e9 is right")))
    found = subprocess.run(
        [sys.executable, "-m", "deploy", "report", "models", "pets"],
        check=False, cwd=tmp_path, capture_output=True,
        env={**os.environ, "PYTHONIOENCODING": encoding, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert found.returncode == 0, found.stderr
    assert shown in found.stdout


@pytest.mark.parametrize("closed", ["1", "2"])
def test_a_stream_that_was_closed_beforehand_fails_nothing(closed: str, tmp_path: Path) -> None:
    put(tmp_path / "models", Sample())
    line = f"exec {sys.executable} -m deploy verify {tmp_path}/models --static {closed}>&-"
    found = subprocess.run(["sh", "-c", line], check=False, cwd=ROOT, capture_output=True, text=True)
    assert found.returncode == 0, found.stderr


def test_a_reader_that_went_away_is_no_verdict() -> None:
    read, write = os.pipe()
    os.close(read)
    try:
        found = deployctl("targets", stdout=write)
    finally:
        os.close(write)
    assert found.returncode == 4
    assert found.stderr == ""


@pytest.mark.parametrize(
    ("number", "program", "code"),
    [
        (signal.SIGTERM, ("env",), 130),
        # Whoever runs the tests may have let all their children outlive its terminal.
        (signal.SIGHUP, ("env", "--default-signal=HUP"), 130),
        # It goes on, and ends as it would have.
        (signal.SIGHUP, ("nohup",), 4),
    ],
    ids=["terminated", "hung up", "nohup"],
)
def test_whoever_ends_a_command_finds_it_tidy(
    number: signal.Signals, program: tuple[str, ...], code: int, tmp_path: Path
) -> None:
    """A closed terminal is an interruption like any: the temporary files and what was started go with it."""
    samples = tmp_path / "samples.npz"
    np.savez(samples, allow_pickle=False, INPUT__0=np.zeros((1, 4), np.float32))
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    with socket.create_server(("127.0.0.1", 0)) as mute:
        url = f"127.0.0.1:{mute.getsockname()[1]}"
        command = [*program, sys.executable, "-m", "deploy", "slo", "law", "--url", url, "--samples", str(samples)]
        process = subprocess.Popen(
            [*command, "--p99-ms", "10", "--rate", "10"],
            cwd=ROOT, env={**os.environ, "TMPDIR": str(scratch)}, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        with mute.accept()[0], mute.accept()[0]:
            process.send_signal(number)
            said = process.communicate(timeout=60)[1]
    assert process.returncode == code, said
    assert ("interrupted" in said) == (code == 130)
    assert list(scratch.iterdir()) == []
