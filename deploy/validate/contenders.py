"""What is raced for latency: eager, artifacts, and one of them once more as the control, each in its own process.

Owns starting, stopping and asking them; the race itself is in `latency`. `SimulatedContender` is the fake that
ships with the seam: it obeys a stated law and a stated machine noise, and takes no time.
"""

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Protocol

import numpy as np

from deploy.checkpoint.model import Checkpoint
from deploy.convert.model import Artifact, Device, Format
from deploy.convert.ort_session import options_in
from deploy.errors import UsageError
from deploy.latency_evidence import EAGER, control_of
from deploy.processes import ChildFailed, Limits, Worker, own_peak_memory
from deploy.spec import BATCH, Spec
from deploy.validate.executables import AotiModel, Arrays, EagerModel, Executable, OnnxModel

# Nothing that a contender is asked for takes so many seconds unless it hangs: a load, or calls of a fraction of one.
_PATIENCE = 600.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Memory:
    """The resident set of a contender's process in bytes: before the model was loaded, and at its peak."""

    base: int
    peak: int


class Contender(Protocol):
    """One model in a process of its own. It is loaded once, and uses no processor while it is paused."""

    @property
    def name(self) -> str:
        """What the tables call it: `eager`, a format, a version; with ` (A/A)` behind it where it is a control."""

    def load(self) -> float:
        """Start the process and load the model; gives the seconds the loading alone took."""

    def first(self) -> float:
        """The wall seconds of the very first call, at batch 1."""

    def time_calls(self, batch: int, calls: int) -> list[float]:
        """The wall seconds of each of `calls` calls, made back to back."""

    def memory(self) -> Memory:
        """What its process holds and held."""

    def pause(self) -> None:
        """Stop it, with every thread it has."""

    def resume(self) -> None:
        """Let it go on."""

    def close(self) -> None:
        """End it for good, whatever state it is in; more than once is no harm."""


class WorkerContender:
    """A real contender: an executable in a `Worker`, which is paused by SIGSTOP. `inputs` maps batch to arrays."""

    def __init__(
        self, name: str, factory: Callable[[], Executable], *, inputs: Mapping[int, Arrays], log: Path, limits: Limits
    ) -> None:
        self.name = name
        self._factory = factory
        self._inputs = inputs
        self._log = log
        self._limits = limits
        self._worker: Worker | None = None

    def load(self) -> float:
        """See `Contender.load`. Raises ChildFailed if the process ends or passes its limits, here and later."""
        self._worker = Worker(f"latency of {self.name}", log=self._log, limits=self._limits)
        self._worker.make(_Loaded, self._factory, self._inputs)
        return float(self._worker.call("load_seconds"))

    def first(self) -> float:
        """See `Contender.first`."""
        return self.time_calls(1, 1)[0]

    def time_calls(self, batch: int, calls: int) -> list[float]:
        """See `Contender.time_calls`."""
        seconds: list[float] = self._running.call("time_calls", batch, calls)
        return seconds

    def memory(self) -> Memory:
        """See `Contender.memory`."""
        memory: Memory = self._running.call("memory")
        return memory

    def pause(self) -> None:
        """See `Contender.pause`."""
        self._running.pause()

    def resume(self) -> None:
        """See `Contender.resume`."""
        self._running.resume()

    @property
    def pid(self) -> int:
        """The id of its process."""
        return self._running.pid

    def close(self) -> None:
        """End the process, if there is one."""
        worker, self._worker = self._worker, None
        if worker is not None:
            worker.close()

    @property
    def _running(self) -> Worker:
        assert self._worker is not None, "a contender is loaded before it is used"
        return self._worker


class _Loaded:
    """The child's side: the model, and its inputs kept where it is, so that no call waits for a pipe."""

    def __init__(self, factory: Callable[[], Executable], inputs: Mapping[int, Arrays]) -> None:
        self._base = own_peak_memory()
        self._model = factory()
        self._inputs = inputs

    def load_seconds(self) -> float:
        return self._model.load_seconds

    def time_calls(self, batch: int, calls: int) -> list[float]:
        return self._model.time_calls(self._inputs[batch], calls)

    def memory(self) -> Memory:
        return Memory(base=self._base, peak=self._model.peak_memory())


@dataclass(frozen=True, slots=True, kw_only=True)
class Surroundings:
    """What every contender is given alike. `inputs` maps each batch that is measured to arrays in the spec's order.

    Without a limit of seconds, one that takes ten minutes over one thing is taken to hang.
    """

    inputs: Mapping[int, Arrays]
    threads: int
    logs: Path
    limits: Limits = field(default_factory=Limits)
    device: Device = "cpu"


@dataclass(frozen=True, slots=True, kw_only=True)
class Entrant:
    """Who takes part in a race: what the tables call it, and the function that loads it in its child."""

    name: str
    factory: Callable[[], Executable]

    def control(self) -> "Entrant":
        """The same once more, for a second process.

        Rather than the first one counted twice: two processes differ in memory layout and thread placement as any two
        contenders do (Mytkowicz et al., ASPLOS 2009), and one counted twice would hide that.
        """
        return Entrant(name=control_of(self.name), factory=self.factory)


def eager_entrant(checkpoint: Checkpoint, *, threads: int, device: Device = "cpu") -> Entrant:
    """The checkpoint, run eagerly."""
    return Entrant(name=EAGER, factory=partial(EagerModel, checkpoint, threads=threads, device=device))


def artifact_entrant(
    name: str, path: Path, *, format: Format, threads: int, device: Device = "cpu", details: Mapping[str, str] = {}
) -> Entrant:
    """An artifact's main file, run as its `details` say. A `model.pt2` is native code: check its digest first.

    Raises UsageError for a format that was not converted, and so has no reference to be measured against.
    """
    if format == "torchscript":
        raise UsageError(
            f"{name} is a TorchScript archive, served as it is",
            expected="a version that was converted from a checkpoint",
            fix="measure it as it is served: deployctl slo",
        )
    if format == "aoti":
        return Entrant(name=name, factory=partial(AotiModel, path, threads=threads, device=device))
    options = options_in(details)
    return Entrant(name=name, factory=partial(OnnxModel, path, threads=threads, device=device, options=options))


@contextmanager
def open_contenders(
    checkpoint: Checkpoint, artifacts: Sequence[Artifact], surroundings: Surroundings
) -> Iterator[list[WorkerContender]]:
    """Eager, its control and the artifacts, none of them started yet; on leaving, every process is ended."""
    threads, device = surroundings.threads, surroundings.device
    eager = eager_entrant(checkpoint, threads=threads, device=device)
    made = [
        artifact_entrant(one.format, one.path, format=one.format, threads=threads, device=device, details=one.details)
        for one in artifacts
    ]
    with open_entrants([eager, eager.control(), *made], surroundings) as contenders:
        yield contenders


@contextmanager
def open_entrants(entrants: Sequence[Entrant], surroundings: Surroundings) -> Iterator[list[WorkerContender]]:
    """The entrants as contenders, none of them started yet; on leaving, every process is ended."""
    with ExitStack() as stack:
        contenders = [_contender(one.name, one.factory, surroundings) for one in entrants]
        for contender in contenders:
            stack.callback(contender.close)
        yield contenders


def _contender(name: str, factory: Callable[[], Executable], given: Surroundings) -> WorkerContender:
    limits = given.limits if given.limits.seconds is not None else replace(given.limits, seconds=_PATIENCE)
    log = given.logs / f"latency-{re.sub(r'[^a-z0-9]+', '-', name.lower()).strip('-')}.log"
    return WorkerContender(name, factory, inputs=given.inputs, log=log, limits=limits)


def inputs_by_batch(samples: Arrays, spec: Spec, batches: Sequence[int]) -> dict[int, Arrays]:
    """The samples' rows, repeated or cut to each batch size; inputs without a batch dim as they are.

    A static program takes the first row.
    """
    if spec.batch is None:
        return {batch: [array[:1] for array in samples] for batch in batches}
    return {
        batch: [
            np.take(array, range(batch), axis=tensor.shape.index(BATCH), mode="wrap")
            if BATCH in tensor.shape
            else array
            for tensor, array in zip(spec.inputs, samples, strict=True)
        ]
        for batch in batches
    }


@dataclass(slots=True, kw_only=True)
class SimulatedContender:
    """A contender that follows `law(batch)` in seconds per call, times `noise()`, what the machine does meanwhile.

    Counts what was asked of it, and refuses calls while paused, as a stopped process would. `fails_at` is the batch
    size at which it crashes, 0 for while it is loaded.
    """

    name: str
    law: Callable[[int], float]
    noise: Callable[[], float] = lambda: 1.0
    load_seconds: float = 0.5
    first_seconds: float = 0.2
    paused: bool = False
    fails_at: int | None = None
    closed: bool = False
    calls: dict[int, int] = field(default_factory=dict)

    def load(self) -> float:
        """The stated seconds."""
        self._fail(0)
        return self.load_seconds

    def first(self) -> float:
        """The stated seconds."""
        return self.first_seconds

    def time_calls(self, batch: int, calls: int) -> list[float]:
        """Seconds by the law and the noise."""
        assert not self.paused, f"{self.name} was asked while it was stopped"
        self._fail(batch)
        self.calls[batch] = self.calls.get(batch, 0) + calls
        noise = self.noise()
        return [self.law(batch) * noise for _ in range(calls)]

    def memory(self) -> Memory:
        """A fixed 100 and 150 MB."""
        return Memory(base=100_000_000, peak=150_000_000)

    def pause(self) -> None:
        """Refuse calls from now on."""
        self.paused = True

    def resume(self) -> None:
        """Take calls again."""
        self.paused = False

    def close(self) -> None:
        """Take no calls from now on."""
        self.closed = True

    def _fail(self, batch: int) -> None:
        assert not self.closed, f"{self.name} was asked after its end"
        if batch == self.fails_at:
            raise ChildFailed(f"latency of {self.name} was killed by SIGSEGV (a crash in native code)")
