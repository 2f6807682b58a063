"""Stages on a terminal and in a log: begun, ended, failed, several at once."""

import io
import re
import threading
import time

import pytest

from deploy.progress import Silent
from deploy.report.stages import LineStages, LiveStages, Stages


class Terminal(io.StringIO):
    """A stream that says it is a terminal."""

    def isatty(self) -> bool:
        return True


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> Terminal:
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setenv("COLUMNS", "80")
    return Terminal()


def plain(stream: io.StringIO) -> str:
    """The text without colours and cursor movements."""
    return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", stream.getvalue())


def test_a_log_gets_one_timed_line_for_each_begin_and_end() -> None:
    log = io.StringIO()
    with Stages(stream=log) as stages, stages.stage("convert aoti"):
        stages.note("AVX2 code")
    lines = log.getvalue().splitlines()
    assert [re.sub(r"^\d\d:\d\d:\d\d  ", "", line) for line in lines[:2]] == ["convert aoti ...", "AVX2 code"]
    assert re.fullmatch(r"\d\d:\d\d:\d\d  convert aoti: done, \d+\.\d s", lines[2])
    assert len(lines) == 3


@pytest.mark.parametrize(("error", "word"), [(ValueError("no"), "failed"), (KeyboardInterrupt(), "interrupted")])
def test_a_stage_left_by_an_exception_says_so_and_lets_it_pass(error: BaseException, word: str) -> None:
    log = io.StringIO()
    with pytest.raises(type(error)), Stages(stream=log) as stages, stages.stage("parity onnx"):
        raise error
    assert f"parity onnx: {word}" in log.getvalue()
    assert "done" not in log.getvalue()


def test_a_terminal_shows_running_stages_together_and_keeps_ended_ones(terminal: Terminal) -> None:
    with Stages(stream=terminal) as stages:
        assert isinstance(stages, LiveStages)
        with stages.stage("convert onnx"):
            with stages.stage("convert aoti"):
                stages.note("found [bold] in a name")
                stages._bars.refresh()
            running = plain(terminal)
    shown = plain(terminal)
    assert re.search(r"convert onnx\s+0:00:00\s.*convert aoti\s+0:00:00", running, re.DOTALL)
    assert "found [bold] in a name" in shown
    assert re.search(r"done\s+\d+\.\d s  convert aoti\s", shown)
    assert re.search(r"done\s+\d+\.\d s  convert onnx\s", shown)


def test_a_terminal_shows_a_failed_stage_as_failed(terminal: Terminal) -> None:
    with pytest.raises(ValueError, match="no"), Stages(stream=terminal) as stages, stages.stage("convert onnx"):
        raise ValueError("no")
    assert re.search(r"failed\s+\d+\.\d s  convert onnx", plain(terminal))


def test_a_dumb_terminal_gets_lines(terminal: Terminal, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "dumb")
    with Stages(stream=terminal) as stages:
        assert isinstance(stages, LineStages)


def test_quiet_shows_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    with Stages(quiet=True) as stages, stages.stage("convert onnx"):
        stages.note("a secret")
        assert isinstance(stages, Silent)
    assert capsys.readouterr() == ("", "")


def test_stages_go_to_stderr(capsys: pytest.CaptureFixture[str]) -> None:
    with Stages() as stages, stages.stage("convert onnx"):
        pass
    printed = capsys.readouterr()
    assert printed.out == ""
    assert "convert onnx: done" in printed.err


class Slow(io.StringIO):
    """A log that lets other threads in between any two characters."""

    def write(self, text: str) -> int:
        for character in text:
            super().write(character)
            time.sleep(0)
        return len(text)


@pytest.mark.parametrize("stream", [Slow(), Terminal()], ids=["log", "terminal"])
def test_stages_of_many_threads_are_all_told_and_no_line_is_torn(
    stream: io.StringIO, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TERM", "xterm-256color")

    def work(number: int) -> None:
        for turn in range(20):
            with stages.stage(f"job {number}.{turn};"):
                pass

    with Stages(stream=stream) as stages:
        threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    ended = [line for line in plain(stream).splitlines() if "done" in line]
    assert len(ended) == 160
    assert all(len(re.findall(r"job \d\.\d+;", line)) == 1 for line in ended)
