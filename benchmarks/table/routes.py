"""The routes by hand as what a race takes: loaded in a process of their own, called on prepared inputs.

Owns the clock round a call and what a route's script is given. Called by measure, in children only.
"""

import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.table.cold import INDUCTOR_CACHE
from benchmarks.table.records import AOTI, BY_HAND, COMPILED, EAGER, ORT
from deploy.errors import UnfinishedError
from deploy.processes import own_peak_memory
from deploy.validate.contenders import Entrant
from deploy.validate.machine import default_threads

Arrays = list[np.ndarray]

# It compiles for as long again at the next batch size, and the table has to end within minutes.
ONE_ROW = (COMPILED,)


@dataclass(frozen=True, slots=True, kw_only=True)
class Made:
    """What the scripts by hand made of a model: the folder of both artifacts, and the one of torch.compile's cache."""

    name: str
    weights: Path
    artifacts: Path
    compiled: Path


class HandModel:
    """A route's model, loaded as its script does; an `Executable` of the race."""

    def __init__(self, route: str, made: Made, *, threads: int) -> None:
        import torch

        started = time.perf_counter()
        self._route = route
        torch.set_num_threads(threads)
        self._bind = _LOADERS[route](made, threads)
        self.load_seconds = time.perf_counter() - started

    def run(self, inputs: Sequence[np.ndarray]) -> Arrays:
        """The outputs for one batch."""
        found = self._bind([np.ascontiguousarray(array) for array in inputs])()
        outputs = found if isinstance(found, tuple | list) else [found]
        return [np.asarray(output) for output in outputs]

    def time_calls(self, inputs: Sequence[np.ndarray], calls: int) -> list[float]:
        """Wall seconds of each of `calls` calls. Raises UnfinishedError for a batch that the route is not raced at."""
        if self._route in ONE_ROW and len(inputs[0]) > 1:
            raise UnfinishedError(f"{self._route} compiles again for another batch size, and is raced at batch 1 alone")
        call = self._bind([np.ascontiguousarray(array) for array in inputs])
        seconds = []
        for _ in range(calls):
            started = time.perf_counter()
            call()
            seconds.append(time.perf_counter() - started)
        return seconds

    def peak_memory(self) -> int:
        """The peak resident set of this process, in bytes."""
        return own_peak_memory()


def hand_entrants(made: Made, *, threads: int, left_out: Sequence[str] = ()) -> list[Entrant]:
    """Every route by hand, eager first."""
    return [
        Entrant(name=route, factory=partial(HandModel, route, made, threads=threads))
        for route in BY_HAND
        if route not in left_out
    ]


def _eager(made: Made, threads: int) -> Any:
    from benchmarks.by_hand import eager

    return eager.load(made.name, made.weights)


def _compiled(made: Made, threads: int) -> Any:
    # What the cold run compiled is there again, as for a second process of a server.
    os.environ["TORCHINDUCTOR_CACHE_DIR"] = str(made.compiled / INDUCTOR_CACHE)
    from benchmarks.by_hand import compiled

    return compiled.load(made.name, made.weights)


def _aoti(made: Made, threads: int) -> Any:
    from benchmarks.by_hand import aoti

    return aoti.load(made.artifacts)


def _onnx_runtime(made: Made, threads: int) -> Any:
    from benchmarks.by_hand import onnx_runtime

    # Its own default is one thread per physical core; to say that number would also switch its pinning off.
    return onnx_runtime.load(made.artifacts, threads=None if threads == default_threads() else threads)


_LOADERS: dict[str, Callable[[Made, int], Any]] = {
    EAGER: _eager,
    COMPILED: _compiled,
    AOTI: _aoti,
    ORT: _onnx_runtime,
}
