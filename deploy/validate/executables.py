"""The ways to run a model in this process: eagerly in some dtype, through AOTInductor, through ONNX Runtime.

Owns loading and calling; judges nothing. Each is made inside a `deploy.processes.Worker`, so that a crash in native
code costs a child, and so that contenders for latency never share a thread pool.
"""

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from deploy.checkpoint.model import Checkpoint
from deploy.processes import own_peak_memory

Arrays = list[np.ndarray]


class Executable(Protocol):
    """A loaded model. Inputs and outputs are arrays in the spec's flattened order."""

    load_seconds: float

    def run(self, inputs: Sequence[np.ndarray]) -> Arrays:
        """The outputs for one batch."""

    def time_calls(self, inputs: Sequence[np.ndarray], calls: int) -> list[float]:
        """Wall seconds of each of `calls` calls on inputs that are already where the model wants them."""

    def peak_memory(self) -> int:
        """The peak resident set of this process, in bytes."""


class _Timed:
    """What the three share: a bound callable over prepared inputs, and a clock round it."""

    load_seconds: float

    def _bind(self, inputs: Sequence[np.ndarray]) -> Callable[[], Any]:
        raise NotImplementedError

    def time_calls(self, inputs: Sequence[np.ndarray], calls: int) -> list[float]:
        call = self._bind(inputs)
        seconds = []
        for _ in range(calls):
            started = time.perf_counter()
            call()
            seconds.append(time.perf_counter() - started)
        return seconds

    def peak_memory(self) -> int:
        return own_peak_memory()


class EagerModel(_Timed):
    """The checkpoint's module, called eagerly. With `dtype="float64"` it is the reference; inputs are upcast to it."""

    def __init__(self, checkpoint: Checkpoint, *, dtype: str | None = None, threads: int) -> None:
        import torch

        from deploy.checkpoint.load import build_module
        from deploy.convert.flatten import positional

        started = time.perf_counter()
        torch.set_num_threads(threads)
        self._dtype = getattr(torch, dtype) if dtype else None
        self._module = positional(build_module(checkpoint, dtype=dtype))
        self.load_seconds = time.perf_counter() - started

    def run(self, inputs: Sequence[np.ndarray]) -> Arrays:
        return [tensor.cpu().numpy() for tensor in self._bind(inputs)()]

    def _bind(self, inputs: Sequence[np.ndarray]) -> Callable[[], Any]:
        import torch

        tensors = [torch.from_numpy(np.ascontiguousarray(array)) for array in inputs]
        if self._dtype is not None:
            tensors = [tensor.to(self._dtype) if tensor.is_floating_point() else tensor for tensor in tensors]

        def call() -> Any:
            with torch.inference_mode():
                return self._module(*tensors)

        return call


class AotiModel(_Timed):
    """An AOTInductor archive (`model.pt2`). It is native code: check its digest before making one."""

    def __init__(self, path: Path, *, threads: int) -> None:
        import torch
        from torch._inductor import aoti_load_package

        started = time.perf_counter()
        torch.set_num_threads(threads)
        self._model = aoti_load_package(str(path))
        self.load_seconds = time.perf_counter() - started

    def run(self, inputs: Sequence[np.ndarray]) -> Arrays:
        return [tensor.cpu().numpy() for tensor in self._bind(inputs)()]

    def _bind(self, inputs: Sequence[np.ndarray]) -> Callable[[], Any]:
        import torch

        tensors = [torch.from_numpy(np.ascontiguousarray(array)) for array in inputs]

        def call() -> Any:
            with torch.inference_mode():
                outputs = self._model(*tensors)
            return [outputs] if isinstance(outputs, torch.Tensor) else list(outputs)

        return call


class OnnxModel(_Timed):
    """An ONNX graph in ONNX Runtime on the CPU."""

    def __init__(self, path: Path, *, threads: int) -> None:
        import onnxruntime

        started = time.perf_counter()
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        options.log_severity_level = 3
        self._session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        self._names = [value.name for value in self._session.get_inputs()]
        self.load_seconds = time.perf_counter() - started

    def run(self, inputs: Sequence[np.ndarray]) -> Arrays:
        return list(self._bind(inputs)())

    def _bind(self, inputs: Sequence[np.ndarray]) -> Callable[[], Any]:
        feed = dict(zip(self._names, (np.ascontiguousarray(array) for array in inputs), strict=True))
        return lambda: self._session.run(None, feed)
