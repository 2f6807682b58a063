import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest

from deploy.convert.job import ConversionJob, Converter
from deploy.convert.model import Artifact, Format, Program
from deploy.convert.precision import Lowering
from deploy.convert.run import Conversion, convert, jobs_at_once
from deploy.errors import ExitCode, UnfinishedError
from deploy.progress import Silent
from tests.convert import converters
from tests.convert.helpers import Read, plan, target
from tests.models import DataDependent, OverTheBatch, Segfault, TwoTowers
from tests.notes import Notes

SECONDS = 60.0  # generous for a busy machine


def run(
    read: Read, aoti: Converter, onnx: Converter = converters.well, *, jobs: int = 2, timeout: float | None = None
) -> Conversion:
    return convert(
        read(TwoTowers, (6,), (3,)),
        plan(read.folder, jobs=jobs, limits=(timeout, 1_500_000_000)),
        Silent(),
        converters={"aoti": aoti, "onnx": onnx},
    )


@pytest.mark.parametrize("jobs", [1, 2])
@pytest.mark.parametrize(
    ("converter", "words", "last_line"),
    [
        (converters.segfault, "killed by SIGSEGV", "about to touch address 0"),
        (converters.leave, "exit code 7", ""),
        (converters.bug, "KeyError", "no lowering for aten.frobnicate"),
        (converters.refuse, "has no translation", "use another format"),
    ],
)
def test_format_that_dies_leaves_the_other_alive(
    read: Read, converter: Converter, words: str, last_line: str, jobs: int
) -> None:
    conversion = run(read, converter, jobs=jobs)

    assert list(conversion.artifacts) == ["onnx"]
    assert conversion.artifacts["onnx"].path.read_text() == "made"
    failure = conversion.failures["aoti"]
    assert words in failure.message
    assert last_line in failure.tail
    assert failure.tail in failure.log.read_text()


def test_child_that_hangs_is_ended_at_the_timeout(read: Read) -> None:
    conversion = run(read, converters.well, converters.hang, timeout=20)

    assert list(conversion.artifacts) == ["aoti"]
    assert "did not end within 20 s" in conversion.failures["onnx"].message
    assert "a lock that nobody gives back" in conversion.failures["onnx"].tail


def test_one_that_takes_long_is_said_to_and_how_to_do_without(read: Read, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("deploy.convert.run._LONG", 0.2)
    notes = Notes()
    conversion = convert(
        read(TwoTowers, (6,), (3,)),
        plan(read.folder),
        notes,
        converters={"aoti": converters.dawdle, "onnx": converters.well},
    )

    assert set(conversion.artifacts) == {"aoti", "onnx"}
    (said,) = [text for text in notes.said if text.startswith("aoti takes its time")]
    assert "torch at work on the graph" in said
    assert "--formats onnx does without it" in said
    assert any(text.startswith("aoti goes on: ") and "torch at work" in text for text in notes.said)


def test_child_that_eats_memory_is_ended_at_the_limit(read: Read) -> None:
    conversion = run(read, converters.well, converters.devour)

    assert list(conversion.artifacts) == ["aoti"]
    assert "and was ended" in conversion.failures["onnx"].message
    assert "--memory-limit" in conversion.failures["onnx"].message


def test_both_may_fail_each_with_its_own_reason(read: Read) -> None:
    conversion = run(read, converters.segfault, converters.refuse)

    assert not conversion.artifacts
    assert "SIGSEGV" in conversion.failures["aoti"].message
    assert "no translation" in conversion.failures["onnx"].message


def test_two_jobs_work_at_the_same_time(read: Read) -> None:
    conversion = run(read, converters.meet_as_aoti, converters.meet_as_onnx, jobs=2)

    assert {made.details["met"] for made in conversion.artifacts.values()} == {"True"}


@pytest.mark.parametrize(
    ("dtype", "size", "jobs"),
    [("float32", 999_999_999, 2), ("float32", 1_000_000_000, 1)]
    + [(half, size, jobs) for half in ("float16", "bfloat16") for size, jobs in ((499_999_999, 2), (500_000_000, 1))],
)
def test_large_weights_are_converted_one_after_the_other(
    dtype: str, size: int, jobs: int, read: Read, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0, 1})
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=64_000_000_000))
    checkpoint = read(OverTheBatch, (6,)).model_copy(update={"dtype": dtype, "size": size})

    assert jobs_at_once(replace(plan(read.folder), jobs=None), checkpoint) == jobs


def test_one_job_works_after_the_other(read: Read) -> None:
    conversion = run(read, converters.meet_nobody, converters.be_there, jobs=1)

    assert conversion.artifacts["aoti"].details["met"] == "False"
    assert conversion.artifacts["onnx"].details["first_left"] == "True"


def test_cost_of_each_step_is_recorded(read: Read) -> None:
    conversion = run(read, converters.well)

    steps: list[Program | Artifact] = [conversion.program, *conversion.artifacts.values()]
    assert len(steps) == 3
    for step in steps:
        assert step.seconds > 0
        assert step.peak_memory > 10_000_000


@pytest.mark.parametrize(
    ("factory", "words"),
    [(DataDependent, r"if x\.sum\(\) > 0:"), (Segfault, r"killed by SIGSEGV(.|\n)*python.* -m deploy\.convert .*json")],
)
def test_failed_export_loses_every_format(read: Read, factory: type[OverTheBatch], words: str) -> None:
    checkpoint = read(factory, (6,))

    with pytest.raises(UnfinishedError, match=words) as caught:
        convert(checkpoint, plan(read.folder), Silent())

    assert caught.value.exit_code is ExitCode.UNFINISHED


def test_failure_names_one_command_that_repeats_it_alone_when_the_stage_is_gone(read: Read, tmp_path: Path) -> None:
    conversion = run(read, converters.well, converters.bug)
    shutil.rmtree(read.folder / "out")

    command = shlex.split(conversion.failures["onnx"].reproduce)
    done = subprocess.run(command, capture_output=True, text=True, check=False)

    assert done.returncode == 0, done.stderr
    path = Path(done.stdout.splitlines()[-1])
    assert path.is_relative_to(tmp_path / "cache" / "failed")
    assert path.exists()


def test_failure_in_int8_keeps_its_calibration_rows_and_the_other_format(read: Read, tmp_path: Path) -> None:
    rows = tmp_path / "calibration.npz"
    rows.write_bytes(b"rows")
    lowered = replace(plan(read.folder), lowering=Lowering(precision="int8", calibration=rows))

    conversion = convert(
        read(TwoTowers, (6,), (3,)), lowered, Silent(), converters={"aoti": converters.refuse, "onnx": converters.well}
    )

    assert list(conversion.artifacts) == ["onnx"]
    assert conversion.failures["aoti"].log.with_name("calibration.npz").read_bytes() == b"rows"


def test_failure_that_cannot_be_kept_costs_the_other_format_nothing(
    read: Read, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("DEPLOYCTL_CACHE", str(tmp_path / "file" / "cache"))

    conversion = run(read, converters.well, converters.bug)

    assert list(conversion.artifacts) == ["aoti"]
    assert conversion.failures["onnx"].log.is_relative_to(read.folder)


def test_job_run_alone_ends_in_the_errors_exit_code(read: Read) -> None:
    job = _job(read, "onnx", max_batch=0)

    done = subprocess.run([sys.executable, "-m", "deploy.convert", job], capture_output=True, text=True, check=False)

    assert done.returncode == ExitCode.USAGE
    assert "the largest batch is 0" in done.stderr
    assert "Traceback" not in done.stderr


def test_command_without_a_job_says_its_usage() -> None:
    done = subprocess.run([sys.executable, "-m", "deploy.convert"], capture_output=True, text=True, check=False)

    assert done.returncode == ExitCode.USAGE
    assert "JOB.json" in done.stderr


def test_interrupt_ends_the_children_at_once(read: Read) -> None:
    job = _job(read, "onnx")
    command = [sys.executable, "-m", "tests.convert.interrupted", job]

    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, start_new_session=True) as process:
        assert process.stdout is not None
        children = [int(pid) for pid in process.stdout.readline().split()]
        process.send_signal(signal.SIGINT)
        process.wait(timeout=SECONDS)

    assert process.returncode == -signal.SIGINT
    assert len(children) == 2
    deadline = time.monotonic() + SECONDS
    while any(_runs(pid) for pid in children) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not any(_runs(pid) for pid in children)


def _runs(pid: int) -> bool:
    return psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE


def _job(read: Read, format_: Format, *, max_batch: int = 4) -> str:
    path = read.folder / "job.json"
    ConversionJob(
        checkpoint=read(TwoTowers, (6,), (3,)),
        format=format_,
        target=target(),
        max_batch=max_batch,
        folder=read.folder / "alone",
    ).write(path)
    return os.fspath(path)
