"""Stages as people see them on stderr: a live spinner on a terminal, timestamped lines in a log.

Owns the two displays behind `deploy.progress.Progress`; results are in `terminal`. Called by the commands that take
their time. Imports rich on use, and on a terminal only.
"""

import os
import sys
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from types import TracebackType
from typing import TextIO

from deploy.progress import Progress, Silent


class Stages(AbstractContextManager[Progress]):
    """A display of stages that lasts as long as the block, on stderr unless `stream` says otherwise.

    `quiet` shows nothing. All displays may be used from several threads at once.
    """

    def __init__(self, *, quiet: bool = False, stream: TextIO | None = None) -> None:
        self._display = _display(stream or sys.stderr, quiet=quiet)

    def __enter__(self) -> Progress:
        return self._display.__enter__()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool | None:
        return self._display.__exit__(kind, error, trace)


@contextmanager
def _display(stream: TextIO | None, *, quiet: bool) -> Iterator[Progress]:
    # There is no stderr where it was closed before the command began.
    if quiet or stream is None:
        yield Silent()
    elif stream.isatty() and os.environ.get("TERM") != "dumb":
        with LiveStages(stream).shown() as live:
            yield live
    else:
        yield LineStages(stream)


class _TimedStages(ABC):
    """What both displays share: the clock round a stage, and the words for how it ended."""

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """See `Progress.stage`."""
        started = time.monotonic()
        token = self._begin(name)
        ending = "failed"
        try:
            yield
            ending = "done"
        except KeyboardInterrupt:
            ending = "interrupted"
            raise
        finally:
            self._end(token, name, ending, time.monotonic() - started)

    @abstractmethod
    def note(self, text: str) -> None:
        """See `Progress.note`."""

    @abstractmethod
    def _begin(self, name: str) -> int: ...

    @abstractmethod
    def _end(self, token: int, name: str, ending: str, seconds: float) -> None: ...


class LineStages(_TimedStages):
    """One line when a stage begins and one when it ends, each with the time of day: what a build log wants."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._lock = threading.Lock()

    def note(self, text: str) -> None:
        """See `Progress.note`."""
        with self._lock:
            self._stream.write(f"{time.strftime('%H:%M:%S')}  {text}\n")
            self._stream.flush()

    def _begin(self, name: str) -> int:
        self.note(f"{name} ...")
        return 0

    def _end(self, token: int, name: str, ending: str, seconds: float) -> None:
        self.note(f"{name}: {ending}, {seconds:.1f} s")


class LiveStages(_TimedStages):
    """The running stages at the bottom of the terminal with their time so far; ended ones stay above as lines."""

    def __init__(self, stream: TextIO) -> None:
        from rich.console import Console
        from rich.progress import Progress as RichProgress
        from rich.progress import SpinnerColumn, TextColumn, TimeElapsedColumn

        self._bars = RichProgress(
            SpinnerColumn("line"),
            TextColumn("{task.description}", markup=False),
            TimeElapsedColumn(),
            console=Console(file=stream, highlight=False),
            transient=True,
            # Latency is measured beside this display: it must cost next to nothing.
            refresh_per_second=2,
            redirect_stdout=False,
        )

    @contextmanager
    def shown(self) -> Iterator[Progress]:
        """Keep the live lines on the terminal during the block."""
        with self._bars:
            yield self

    def note(self, text: str) -> None:
        """See `Progress.note`."""
        self._bars.console.print(text, markup=False)

    def _begin(self, name: str) -> int:
        return self._bars.add_task(name, total=None)

    def _end(self, token: int, name: str, ending: str, seconds: float) -> None:
        from rich.progress import TaskID
        from rich.text import Text

        self._bars.remove_task(TaskID(token))
        style = "green" if ending == "done" else "red"
        self._bars.console.print(Text.assemble((f"{ending:<6}", style), f" {seconds:7.1f} s  {name}"))
