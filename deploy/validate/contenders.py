"""What is raced for latency: eager, each artifact, and eager once more as the control, each in its own process.

Owns starting, stopping and asking them; the race itself is in `latency`. `SimulatedContender` is the fake that
ships with the seam: it obeys a stated law and a stated machine noise, and takes no time.
"""

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Protocol

import numpy as np

from deploy.checkpoint.model import Checkpoint
from deploy.convert.model import Artifact
from deploy.evidence import CONTROL, EAGER
from deploy.processes import Limits, Worker, own_peak_memory
from deploy.spec import BATCH, Spec
from deploy.validate.executables import AotiModel, Arrays, EagerModel, Executable, OnnxModel


@dataclass(frozen=True, slots=True, kw_only=True)
class Memory:
    """The resident set of a contender's process in bytes: before the model was loaded, and at its peak."""

    base: int
    peak: int


class Contender(Protocol):
    """One model in a process of its own. It is loaded once, and uses no processor while it is paused."""

    @property
    def name(self) -> str:
        """What the tables call it: `eager`, `eager (A/A)` or a format."""

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
        if self._worker is not None:
            self._worker.close()

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
    """What every contender is given alike. `inputs` maps each batch that is measured to arrays in the spec's order."""

    inputs: Mapping[int, Arrays]
    threads: int
    logs: Path
    limits: Limits = field(default_factory=Limits)


@contextmanager
def open_contenders(
    checkpoint: Checkpoint, artifacts: Sequence[Artifact], surroundings: Surroundings
) -> Iterator[list[WorkerContender]]:
    """Eager, the control and the artifacts, none of them started yet; on leaving, every process is ended.

    The control is eager in a second process rather than the same one counted twice: two processes differ in memory
    layout and thread placement as any two contenders do (Mytkowicz et al., ASPLOS 2009), and one counted twice
    would hide that.
    """
    threads = surroundings.threads
    factories: dict[str, Callable[[], Executable]] = {
        EAGER: partial(EagerModel, checkpoint, threads=threads),
        CONTROL: partial(EagerModel, checkpoint, threads=threads),
    }
    for artifact in artifacts:
        model = AotiModel if artifact.format == "aoti" else OnnxModel
        factories[artifact.format] = partial(model, artifact.path, threads=threads)
    with ExitStack() as stack:
        contenders = [_contender(name, factory, surroundings) for name, factory in factories.items()]
        for contender in contenders:
            stack.callback(contender.close)
        yield contenders


def _contender(name: str, factory: Callable[[], Executable], given: Surroundings) -> WorkerContender:
    log = given.logs / f"latency-{re.sub(r'[^a-z]+', '-', name.lower()).strip('-')}.log"
    return WorkerContender(name, factory, inputs=given.inputs, log=log, limits=given.limits)


def inputs_by_batch(samples: Arrays, spec: Spec, batches: Sequence[int]) -> dict[int, Arrays]:
    """The samples' rows, repeated or cut to each batch size; inputs without a batch dim as they are."""
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

    Counts what was asked of it, and refuses calls while paused, as a stopped process would.
    """

    name: str
    law: Callable[[int], float]
    noise: Callable[[], float] = lambda: 1.0
    load_seconds: float = 0.5
    first_seconds: float = 0.2
    paused: bool = False
    calls: dict[int, int] = field(default_factory=dict)

    def load(self) -> float:
        """The stated seconds."""
        return self.load_seconds

    def first(self) -> float:
        """The stated seconds."""
        return self.first_seconds

    def time_calls(self, batch: int, calls: int) -> list[float]:
        """Seconds by the law and the noise."""
        assert not self.paused, f"{self.name} was asked while it was stopped"
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
