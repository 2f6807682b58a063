"""The rounds of serving_overhead.py: each contender measured in short blocks, in random order, the others stopped.

Owns who runs when, and what a block gave. Starts no server; those come as `Contender`s.
"""

import random
import signal
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import psutil


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """How much is measured: so many rounds, each with a block of so many seconds per cell."""

    rounds: int
    seconds: float
    concurrencies: tuple[int, ...] = (1, 4, 16)
    seed: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """What one block gave. Latencies in ms; CPU in ms per request of the client and of everything that served it."""

    latencies: tuple[float, ...]
    throughput: float
    batch: float
    client_cpu: float
    server_cpu: float


class Contender(Protocol):
    """Somebody who computes images. `parallel` is False for the one that has no clients."""

    name: str
    parallel: bool

    @property
    def pid(self) -> int:
        """The root of all its processes."""

    def measure(self, size: int, seconds: float) -> Sample:
        """One block: `size` concurrent clients, or images per call where it has none."""

    def answer(self) -> np.ndarray:
        """Its scores for the benchmark's image, as it last gave them."""


Cell = tuple[str, int]
"""A contender's name, and its concurrency or batch."""


def pause(pid: int) -> None:
    """Stop a process and all it started, so that they use no processor at all."""
    _signal(pid, signal.SIGSTOP)


def resume(pid: int) -> None:
    """Let them go on."""
    _signal(pid, signal.SIGCONT)


def cpu_seconds(pid: int) -> float:
    """User and system time of a process and its living descendants so far."""
    total = 0.0
    for process in _tree(pid):
        with suppress(psutil.NoSuchProcess):
            times = process.cpu_times()
            total += times.user + times.system
    return total


def run_block(contender: Contender, size: int, seconds: float) -> Sample:
    """One block, everybody else being stopped already."""
    resume(contender.pid)
    try:
        return contender.measure(size, seconds)
    finally:
        pause(contender.pid)


def run_rounds(
    contenders: Sequence[Contender], cells: Sequence[Cell], plan: Plan, note: Callable[[str], None]
) -> dict[Cell, list[Sample]]:
    """The samples of each cell, one per round: those of the same place in two lists met the same conditions."""
    by_name = {contender.name: contender for contender in contenders}
    order, chance = list(cells), random.Random(plan.seed)
    samples: dict[Cell, list[Sample]] = {cell: [] for cell in cells}
    for number in range(plan.rounds):
        chance.shuffle(order)
        for name, size in order:
            samples[name, size].append(run_block(by_name[name], size, plan.seconds))
        note(f"round {number + 1} of {plan.rounds}")
    return samples


def _signal(pid: int, number: signal.Signals) -> None:
    for process in _tree(pid):
        with suppress(psutil.NoSuchProcess):
            process.send_signal(number)


def _tree(pid: int) -> list[psutil.Process]:
    with suppress(psutil.NoSuchProcess):
        root = psutil.Process(pid)
        return [root, *root.children(recursive=True)]
    return []
