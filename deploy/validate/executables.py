"""The ways to run a model in this process: eagerly in some dtype, through AOTInductor, through ONNX Runtime.

Owns loading and calling; judges nothing. Each is made inside a `deploy.processes.Worker`, so that a crash in native
code costs a child, and so that contenders for latency never share a thread pool.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, Protocol

import numpy as np

from deploy.checkpoint.model import Checkpoint
from deploy.convert.archive import load_archive
from deploy.convert.ort_session import set_options
from deploy.errors import UnfinishedError
from deploy.processes import own_peak_memory
from deploy.spec import wire_input, wire_output

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
    """The checkpoint's module, called eagerly, behind training's own transforms where preprocessing is fused.

    With `dtype="float64"` it is the reference; inputs are upcast to it.
    """

    def __init__(self, checkpoint: Checkpoint, *, dtype: str | None = None, threads: int) -> None:
        import torch

        from deploy.convert.flatten import flat_module

        started = time.perf_counter()
        torch.set_num_threads(threads)
        self._dtype = getattr(torch, dtype) if dtype else None
        self._module = flat_module(checkpoint, dtype, as_in_training=True)
        self.load_seconds = time.perf_counter() - started

    def run(self, inputs: Sequence[np.ndarray]) -> Arrays:
        """The outputs for one batch."""
        return [tensor.cpu().numpy() for tensor in self._bind(inputs)()]

    def run_nudged(self, inputs: Sequence[np.ndarray], *, draw: int) -> Arrays:
        """The outputs with every weight off by two epsilons, up or down, drawn by the seed `draw`.

        Even draws nudge channel by channel, as other roundings do; odd ones tensor by tensor, as do activation
        functions that another library approximates with a bias.
        """
        import torch

        generator = torch.Generator().manual_seed(draw)
        with torch.inference_mode():
            weights = {
                name: _nudged(tensor, generator, whole=draw % 2 == 1)
                for name, tensor in self._module.state_dict().items()
            }
            tensors = tuple(torch.from_numpy(np.ascontiguousarray(array)) for array in inputs)
            return [tensor.cpu().numpy() for tensor in torch.func.functional_call(self._module, weights, tensors)]

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

        started = time.perf_counter()
        torch.set_num_threads(threads)
        self._archive = load_archive(path)
        self.load_seconds = time.perf_counter() - started

    def run(self, inputs: Sequence[np.ndarray]) -> Arrays:
        """The outputs for one batch."""
        return [tensor.cpu().numpy() for tensor in self._bind(inputs)()]

    def _bind(self, inputs: Sequence[np.ndarray]) -> Callable[[], Any]:
        import torch

        tensors = [torch.from_numpy(np.ascontiguousarray(array)) for array in inputs]

        def call() -> Any:
            with torch.inference_mode():
                return self._archive(tensors)

        return call


class OnnxModel(_Timed):
    """An ONNX graph in ONNX Runtime on the CPU, called by the wire names, as a server calls it.

    `options` are those of the session, by their names in Triton's config. Raises UnfinishedError if the graph's inputs
    or outputs are named otherwise.
    """

    def __init__(self, path: Path, *, threads: int, options: Mapping[str, str] = MappingProxyType({})) -> None:
        import onnxruntime

        started = time.perf_counter()
        session = onnxruntime.SessionOptions()
        session.intra_op_num_threads = threads
        session.inter_op_num_threads = 1
        session.log_severity_level = 3
        set_options(session, options)
        self._session = onnxruntime.InferenceSession(str(path), session, providers=["CPUExecutionProvider"])
        self._inputs = [wire_input(index) for index in range(len(self._session.get_inputs()))]
        self._outputs = [wire_output(index) for index in range(len(self._session.get_outputs()))]
        _check_names("inputs", self._inputs, self._session.get_inputs())
        _check_names("outputs", self._outputs, self._session.get_outputs())
        self.load_seconds = time.perf_counter() - started

    def run(self, inputs: Sequence[np.ndarray]) -> Arrays:
        """The outputs for one batch."""
        return list(self._bind(inputs)())

    def _bind(self, inputs: Sequence[np.ndarray]) -> Callable[[], Any]:
        feed = dict(zip(self._inputs, (np.ascontiguousarray(array) for array in inputs), strict=True))
        return lambda: self._session.run(self._outputs, feed)


def _nudged(tensor: Any, generator: Any, *, whole: bool) -> Any:
    """The tensor scaled by 1 ± 2 epsilons: as a whole, or each slice along its first axis, an output channel."""
    import torch

    if not tensor.is_floating_point() or tensor.dim() == 0:
        return tensor
    channels = 1 if whole else len(tensor)
    signs = 2 * torch.randint(0, 2, (channels, *[1] * (tensor.dim() - 1)), generator=generator) - 1
    return tensor * (1 + 2 * torch.finfo(tensor.dtype).eps * signs).to(tensor.dtype)


def _check_names(side: str, wanted: list[str], values: Sequence[Any]) -> None:
    found = [value.name for value in values]
    if set(found) != set(wanted):
        raise UnfinishedError(f"the ONNX graph's {side} are named {', '.join(found)}", expected=", ".join(wanted))
