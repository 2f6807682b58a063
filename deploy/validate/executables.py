"""The ways to run a model in this process, on the CPU or the GPU: eagerly, through AOTInductor, through ONNX Runtime.

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
from deploy.convert.cuda import exact_float32
from deploy.convert.model import Device, Precision, Program
from deploy.convert.ort_session import session_options
from deploy.convert.providers import load_cuda_libraries, providers, require_provider
from deploy.errors import UnfinishedError
from deploy.processes import own_peak_memory
from deploy.spec import wire_input, wire_output
from deploy.validate.frugal import ExactModule, Nudges

Arrays = list[np.ndarray]


class Executable(Protocol):
    """A loaded model. Inputs and outputs are arrays in the spec's flattened order."""

    load_seconds: float

    def run(self, inputs: Sequence[np.ndarray]) -> Arrays:
        """The outputs for one batch."""

    def time_calls(self, inputs: Sequence[np.ndarray], calls: int) -> list[float]:
        """Wall seconds of each of `calls` calls on inputs that are already where the model wants them.

        A call has ended when its outputs are there: on a GPU the clock waits for the device.
        """

    def peak_memory(self) -> int:
        """The peak resident set of this process, in bytes."""


class _Timed:
    """What the three share: a bound callable over prepared inputs, and a clock round it."""

    load_seconds: float
    device: Device = "cpu"

    def _bind(self, inputs: Sequence[np.ndarray]) -> Callable[[], Any]:
        raise NotImplementedError

    def run(self, inputs: Sequence[np.ndarray]) -> Arrays:
        raise NotImplementedError

    def run_twice(self, inputs: Sequence[np.ndarray]) -> tuple[Arrays, Arrays]:
        """The outputs for one batch, and those of the same call again: one message for both."""
        return self.run(inputs), self.run(inputs)

    def time_calls(self, inputs: Sequence[np.ndarray], calls: int) -> list[float]:
        call, finish = self._bind(inputs), self._finish()
        seconds = []
        finish()
        for _ in range(calls):
            started = time.perf_counter()
            call()
            finish()
            seconds.append(time.perf_counter() - started)
        return seconds

    def _finish(self) -> Callable[[], object]:
        """What waits until all that was asked of the device is done; on the CPU a call that returns is done."""
        if self.device == "cpu":
            return lambda: None
        import torch

        return torch.cuda.synchronize

    def peak_memory(self) -> int:
        return own_peak_memory()


class _TorchModel(_Timed):
    """What those share that torch runs: tensors in, tensors out, and no gradients."""

    def run(self, inputs: Sequence[np.ndarray]) -> Arrays:
        """The outputs for one batch."""
        return [tensor.cpu().numpy() for tensor in self._bind(inputs)()]

    def _tensors(self, inputs: Sequence[np.ndarray]) -> list[Any]:
        """The inputs where and as the model takes them; on the CPU they share the arrays' memory."""
        import torch

        return [torch.from_numpy(np.ascontiguousarray(array)).to(self.device) for array in inputs]

    def _call(self, tensors: list[Any]) -> Any:
        raise NotImplementedError

    def _bind(self, inputs: Sequence[np.ndarray]) -> Callable[[], Any]:
        import torch

        tensors = self._tensors(inputs)

        def call() -> Any:
            with torch.inference_mode():
                return self._call(tensors)

        return call


class EagerModel(_TorchModel):
    """The checkpoint's module, called eagerly, behind training's own transforms where preprocessing is fused.

    With `dtype="float64"` it is the reference; inputs are upcast to it. In a half `precision` its edges are cast.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        *,
        dtype: str | None = None,
        threads: int,
        device: Device = "cpu",
        precision: Precision = "fp32",
    ) -> None:
        import torch

        from deploy.convert.flatten import flat_module
        from deploy.convert.precision import HALVES, half_module

        started = time.perf_counter()
        torch.set_num_threads(threads)
        exact_float32(device)
        self.device = device
        self._dtype = getattr(torch, dtype) if dtype else None
        self._module: Any
        if precision in HALVES:
            self._module = half_module(checkpoint, precision, as_in_training=True).to(device)
        elif dtype:
            self._module = ExactModule(checkpoint, dtype, device=device)
        else:
            self._module = flat_module(checkpoint, as_in_training=True).to(device)
        self._nudges: Nudges | None = None
        self._halved = precision in HALVES
        self.load_seconds = time.perf_counter() - started

    def run_nudged(self, inputs: Sequence[np.ndarray], *, draw: int) -> Arrays:
        """The outputs with every weight off by two epsilons, up or down, drawn by the seed `draw` (see `Nudges`).

        In a half precision that was asked for its weights are as if rounded once more instead.
        """
        import torch

        self._nudges = self._nudges or Nudges(self._module, rounded=self._halved)
        tensors = tuple(super()._tensors(inputs))
        with torch.inference_mode():
            return [tensor.cpu().numpy() for tensor in self._nudges(tensors, draw=draw)]

    def _tensors(self, inputs: Sequence[np.ndarray]) -> list[Any]:
        tensors = super()._tensors(inputs)
        if self._dtype is None:
            return tensors
        return [tensor.to(self._dtype) if tensor.is_floating_point() else tensor for tensor in tensors]

    def _call(self, tensors: list[Any]) -> Any:
        return self._module(*tensors)


class AotiModel(_TorchModel):
    """An AOTInductor archive (`model.pt2`). It is native code: check its digest before making one."""

    def __init__(self, path: Path, *, threads: int, device: Device = "cpu") -> None:
        import torch

        started = time.perf_counter()
        torch.set_num_threads(threads)
        exact_float32(device)
        self.device = device
        self._archive = load_archive(path, device)
        self.load_seconds = time.perf_counter() - started

    def _call(self, tensors: list[Any]) -> Any:
        return self._archive(tensors)


class ProgramModel(_TorchModel):
    """An exported program on disk, run as it is: what every artifact is compiled from."""

    def __init__(self, program: Program, *, threads: int, device: Device = "cpu") -> None:
        import torch

        from deploy.convert.export import load_program

        started = time.perf_counter()
        torch.set_num_threads(threads)
        exact_float32(device)
        self.device = device
        self._module = load_program(program).module()
        self.load_seconds = time.perf_counter() - started

    def _call(self, tensors: list[Any]) -> Any:
        return self._module(*tensors)


class OnnxModel(_Timed):
    """An ONNX graph in ONNX Runtime, called by the wire names, as a server calls it.

    On the GPU inputs and outputs stay in its memory between the calls that are timed. `options` are those of the
    session, by their names in Triton's config. Raises UnfinishedError if the graph's inputs or outputs are named
    otherwise, or the GPU's provider does not load.
    """

    def __init__(
        self, path: Path, *, threads: int, device: Device = "cpu", options: Mapping[str, str] = MappingProxyType({})
    ) -> None:
        import onnxruntime

        if device == "cuda":
            load_cuda_libraries()
        self.device = device

        started = time.perf_counter()
        opened = session_options(options, threads=threads)
        self._session = onnxruntime.InferenceSession(str(path), opened, providers=providers(device, options))
        require_provider(self._session, device, options)
        self._inputs = [wire_input(index) for index in range(len(self._session.get_inputs()))]
        self._outputs = [wire_output(index) for index in range(len(self._session.get_outputs()))]
        _check_names("inputs", self._inputs, self._session.get_inputs())
        _check_names("outputs", self._outputs, self._session.get_outputs())
        self.load_seconds = time.perf_counter() - started

    def run(self, inputs: Sequence[np.ndarray]) -> Arrays:
        """The outputs for one batch."""
        if self.device == "cpu":
            return list(self._bind(inputs)())
        binding = self._bind(inputs)()
        outputs: Arrays = binding.copy_outputs_to_cpu()
        return outputs

    def _bind(self, inputs: Sequence[np.ndarray]) -> Callable[[], Any]:
        if self.device == "cuda":
            return self._bind_on_gpu(inputs)
        feed = dict(zip(self._inputs, (np.ascontiguousarray(array) for array in inputs), strict=True))
        return lambda: self._session.run(self._outputs, feed)

    def _bind_on_gpu(self, inputs: Sequence[np.ndarray]) -> Callable[[], Any]:
        """A call on inputs in the GPU's memory that leaves its outputs there; it gives back what holds both."""
        import onnxruntime

        binding = self._session.io_binding()
        for name, array in zip(self._inputs, inputs, strict=True):
            value = onnxruntime.OrtValue.ortvalue_from_numpy(np.ascontiguousarray(array), "cuda", 0)
            binding.bind_ortvalue_input(name, value)
        for name in self._outputs:
            binding.bind_output(name, "cuda", 0)

        def call() -> Any:
            self._session.run_with_iobinding(binding)
            return binding

        return call


def _check_names(side: str, wanted: list[str], values: Sequence[Any]) -> None:
    found = [value.name for value in values]
    if set(found) != set(wanted):
        raise UnfinishedError(f"the ONNX graph's {side} are named {', '.join(found)}", expected=", ".join(wanted))
