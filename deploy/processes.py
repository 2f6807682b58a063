"""Child processes that may crash, hang, eat memory or be killed without taking the command with them.

Owns isolation, time and memory limits, pausing, and the log each child writes. Knows nothing of models.
Called by package, convert and validate. Children are forked from one server process that has imported the heavy
modules once (multiprocessing's forkserver), so a child costs milliseconds rather than a second `import torch`.
"""

import ctypes
import multiprocessing
import os
import resource
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from multiprocessing import forkserver
from multiprocessing.connection import Connection, wait
from pathlib import Path
from types import TracebackType
from typing import Any, Generic, ParamSpec, Self, TypeVar

import psutil

from deploy.errors import DeployError, UnfinishedError
from deploy.files import disk_error, is_full_disk

P = ParamSpec("P")
T = TypeVar("T")

_context = multiprocessing.get_context("forkserver")
_PR_SET_PDEATHSIG = 1
_POLL_SECONDS = 0.2
_REAP_SECONDS = 30.0
_TAIL_LINES = 25
# As torch's allocators for CPU and GPU, the C++ library and ONNX Runtime say it.
_NO_MEMORY = ("can't allocate memory", "out of memory", "bad_alloc", "Failed to allocate memory")


def prepare(*modules: str) -> None:
    """Start the server that children are forked from, importing `modules` in it while the caller goes on."""
    _context.set_forkserver_preload(list(modules))
    forkserver.ensure_running()


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What a child may use: wall seconds per call, and bytes of its process tree (PSS). None means unlimited."""

    seconds: float | None = None
    memory: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Finished(Generic[T]):
    """What a call in a child gave back, how long it took, and the peak PSS of the child's tree (0 if unwatched)."""

    value: T
    seconds: float
    peak_memory: int


class ChildFailed(UnfinishedError):  # noqa: N818 - named for what happened
    """A child crashed, was killed, or passed a limit. `tail` holds the last lines it wrote."""

    def __init__(self, found: str, *, expected: str = "", fix: str = "", tail: str = "") -> None:
        super().__init__(found, expected=expected, fix=fix)
        self.tail = tail


class OutOfMemory(ChildFailed):
    """What a child was asked for found no room, of the machine or of its GPU; the child itself lives on."""


class Worker:
    """A child process that runs calls one at a time, in a session of its own, logging to a file.

    Use it as a context manager; leaving it ends the child and everything the child started.
    """

    def __init__(self, name: str, *, log: Path, limits: Limits = Limits(), watch_memory: bool = False) -> None:
        self.name = name
        self._log = log
        self._limits = limits
        self._watch = watch_memory or limits.memory is not None
        self._over_memory = False
        self._peak = 0
        log.parent.mkdir(parents=True, exist_ok=True)
        self._connection, theirs = _context.Pipe()
        self._process = _context.Process(target=_child_main, args=(theirs, str(log)), name=name, daemon=True)
        self._process.start()
        theirs.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def pid(self) -> int:
        """The child's process id."""
        assert self._process.pid is not None
        return self._process.pid

    @property
    def alive(self) -> bool:
        """False once the child has ended, by itself or because it was ended."""
        return self._process.is_alive()

    def run(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> Finished[T]:
        """Call a module-level function in the child.

        Raises the DeployError that it raised, or ChildFailed for anything else that became of it.
        """
        return self._exchange(("run", function, args, kwargs))

    def make(self, factory: Callable[P, object], *args: P.args, **kwargs: P.kwargs) -> Finished[None]:
        """Create the object that later `call`s go to; it lives in the child."""
        return self._exchange(("make", factory, args, kwargs))

    def call(self, method: str, *args: object, **kwargs: object) -> Any:
        """Call a method of the object made by `make`, and give back its value."""
        return self._exchange(("call", method, args, kwargs)).value

    def pause(self) -> None:
        """Stop the child and all it started, so that they use no processor at all."""
        self._signal(signal.SIGSTOP)

    def resume(self) -> None:
        """Let a paused child go on."""
        self._signal(signal.SIGCONT)

    def kill(self) -> None:
        """End the child at once, from any thread; a call that is under way raises ChildFailed."""
        self._signal(signal.SIGKILL)

    def close(self) -> None:
        """End the child and all it started."""
        self._connection.close()
        self._signal(signal.SIGCONT)
        self._process.join(timeout=0.5)
        self._signal(signal.SIGKILL)
        self._process.join()

    def _signal(self, number: signal.Signals) -> None:
        # The group outlives its leader, so that a compiler left behind is reached too.
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(self.pid, number)
            return
        if self._process.is_alive():
            os.kill(self.pid, number)

    def _exchange(self, message: tuple[object, ...]) -> Finished[Any]:
        started = time.monotonic()
        done = threading.Event()
        watcher = threading.Thread(target=self._watch_memory, args=(done,), daemon=True) if self._watch else None
        if watcher:
            watcher.start()
        try:
            try:
                self._connection.send(message)
                heard = wait([self._connection, self._process.sentinel], self._limits.seconds)
                if not self._connection.poll():
                    raise self._failure(timed_out=not heard)
                kind, value = self._connection.recv()
            except (EOFError, BrokenPipeError, ConnectionResetError):
                raise self._failure(timed_out=False) from None
        finally:
            done.set()
            if watcher:
                watcher.join()
        if kind == "deploy-error":
            raise value
        if kind == "error":
            summary, trace = value
            raise ChildFailed(f"{self.name} failed: {summary}", tail=trace)
        if kind == "no-memory":
            summary, trace = value
            fix = "free memory for it, or lower --max-batch or --jobs"
            raise OutOfMemory(f"{self.name} ran out of memory: {summary}", fix=fix, tail=trace)
        return Finished(value=value, seconds=time.monotonic() - started, peak_memory=self._peak)

    def _failure(self, *, timed_out: bool) -> ChildFailed:
        """Why no answer came; ends the child if it is still there."""
        # A child's end of the pipe closes before its exit code is known, on a busy machine long before.
        self._process.join(timeout=0 if timed_out else _REAP_SECONDS)
        code = self._process.exitcode
        self._signal(signal.SIGKILL)
        self._process.join()  # so that `alive` is False from here on
        if self._over_memory:
            found = f"{self.name} used {self._peak / 1e9:.1f} GB and was ended"
            limit = f"at most {(self._limits.memory or 0) / 1e9:.1f} GB (--memory-limit)"
            return ChildFailed(found, expected=limit, fix="raise --memory-limit or use --jobs 1", tail=self._tail())
        if code is None and not timed_out:
            return ChildFailed(f"{self.name} closed its connection without an answer and was ended", tail=self._tail())
        if code is None:
            found = f"{self.name} did not end within {self._limits.seconds:g} s and was ended"
            return ChildFailed(found, expected="an end within --timeout", fix="raise --timeout", tail=self._tail())
        if code < 0:
            name = signal.Signals(-code).name
            hint = "the kernel may have run out of memory" if name == "SIGKILL" else "a crash in native code"
            return ChildFailed(f"{self.name} was killed by {name} ({hint})", tail=self._tail())
        return ChildFailed(f"{self.name} ended by itself with exit code {code}", tail=self._tail())

    def _tail(self) -> str:
        if not self._log.exists():
            return ""
        return "\n".join(self._log.read_text(errors="replace").splitlines()[-_TAIL_LINES:])

    def _watch_memory(self, done: threading.Event) -> None:
        while not done.is_set():
            self._peak = max(self._peak, tree_memory(self.pid))
            if self._limits.memory is not None and self._peak > self._limits.memory:
                self._over_memory = True
                self._signal(signal.SIGKILL)
                return
            done.wait(_POLL_SECONDS)


def run_alone(name: str, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> Finished[T]:
    """Run one function in a child of its own without limits, its log discarded."""
    with Worker(name, log=Path(os.devnull)) as worker:
        return worker.run(function, *args, **kwargs)


def tree_memory(pid: int) -> int:
    """The proportional set size, in bytes, of a process and all its descendants; 0 once it is gone.

    Where the kernel keeps that to itself, the resident set, which counts what they share once for each.
    """
    total = 0
    with suppress(psutil.NoSuchProcess):
        root = psutil.Process(pid)
        for process in (root, *root.children(recursive=True)):
            with suppress(psutil.NoSuchProcess):
                total += _memory(process)
    return total


def _memory(process: psutil.Process) -> int:
    try:
        return int(process.memory_full_info().pss)
    except psutil.AccessDenied:
        return int(process.memory_info().rss)


@contextmanager
def called_after(seconds: float, function: Callable[[], object], *, every: float | None = None) -> Iterator[None]:
    """A block; a thread calls the function if it lasts longer than that, and again `every` seconds where given."""
    ended = threading.Event()

    def wait_and_call() -> None:
        if ended.wait(max(0.0, seconds)):
            return
        function()
        while every is not None and not ended.wait(every):
            function()

    threading.Thread(target=wait_and_call, daemon=True).start()
    try:
        yield
    finally:
        ended.set()


def own_peak_memory() -> int:
    """The peak resident set of this process, in bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _child_main(connection: Connection, log: str) -> None:
    """The child: a session of its own, output to the log, calls served until the other end is closed."""
    os.setsid()
    # Die with the server that forked us, which dies with the command: a kill -9 leaves nobody behind. The server waits
    # for whoever holds this end of its pipe to close it, as a stopped child never would.
    os.close(forkserver._forkserver._forkserver_alive_fd)  # type: ignore[attr-defined]
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    for stream in (1, 2):
        os.dup2(descriptor, stream)
    sys.stdout = open(1, "w", buffering=1, closefd=False)  # noqa: SIM115 - lives as long as the child
    sys.stderr = open(2, "w", buffering=1, closefd=False)  # noqa: SIM115
    target: object = None
    while True:
        try:
            kind, what, args, kwargs = connection.recv()
        except EOFError:
            return
        try:
            if kind == "make":
                target, value = what(*args, **kwargs), None
            elif kind == "call":
                value = getattr(target, what)(*args, **kwargs)
            else:
                value = what(*args, **kwargs)
            connection.send(("ok", value))
        except Exception as error:  # noqa: BLE001 - told to the caller, whatever it is
            connection.send(_told(error))


def _told(error: Exception) -> tuple[str, object]:
    """What the caller hears, who translates it for the user. The whole stack goes to the log, if that has room."""
    with suppress(OSError):
        traceback.print_exc()
    if isinstance(error, OSError) and is_full_disk(error):
        error = disk_error(error, "working in a child process") or error
    if isinstance(error, DeployError):
        return "deploy-error", error
    summary = " ".join("".join(traceback.format_exception_only(error)).split())
    kind = "no-memory" if _is_out_of_memory(error) else "error"
    return kind, (summary, "".join(traceback.format_exception(error)))


def _is_out_of_memory(error: Exception) -> bool:
    """Whether it is Python's, torch's or a runtime's way to say that no memory was left; none of these is imported."""
    named = isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError"
    return named or any(words in str(error) for words in _NO_MEMORY)
