"""The ways that gpu.py runs a model: eager, torch.compile, AOTInductor, ONNX Runtime, the others as CUDA graphs too.

Owns making each and calling it on rows that already lie on the device. Called by gpu_worker, in a child process.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from deploy import spec
from deploy.convert import aoti, onnx
from deploy.convert.aoti_prepack import PREPACK
from deploy.convert.archive import MODEL_NAME
from deploy.convert.compiler import AVX2_MARCH, compiler_run, require_compiler
from deploy.convert.flex import plain_attention
from deploy.convert.model import Device
from deploy.convert.onnx_file import write_model
from deploy.convert.traced import sample_rows, traceable
from deploy.errors import MissingError

EAGER, CONTROL = "eager", "eager (A/A)"
COMPILED, AOTI, ONNX = "torch.compile", "AOTInductor", "ONNX Runtime"
GRAPH = ", CUDA graph"
GRAPHED = (EAGER + GRAPH, COMPILED + GRAPH, AOTI + GRAPH)
CONTENDERS = (EAGER, CONTROL, AOTI, ONNX, COMPILED, *GRAPHED)
"""In the order in which they are prepared: whoever has no time left is last."""

MAX_BATCH = 1024
SAMPLE_BATCH = 2  # one row would be taken for a constant
_OPSET = 20
_INLINE_LIMIT = 1_900_000_000
_WARM_UP = 3
# Of onnx.proto's TensorProto.DataType; numpy has no bfloat16.
_ELEMENTS = {torch.float32: 1, torch.int64: 7, torch.float16: 10, torch.bfloat16: 16}

Call = Callable[[], Tensor]


class Contender(Protocol):
    """A way to run the model."""

    def bind(self, rows: Tensor) -> Call:
        """A function that computes these rows, which stay where they are, and gives the outputs on the device."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Module:
    """The module called from Python, compiled or not."""

    module: Callable[[Tensor], Any]

    def bind(self, rows: Tensor) -> Call:
        """The module's call, without gradients."""

        def call() -> Tensor:
            with torch.inference_mode():
                output: Tensor = self.module(rows)
            return output

        return call


@dataclass(frozen=True, slots=True, kw_only=True)
class Archive:
    """An AOTInductor archive, loaded as Triton's backend loads it, or `alone` as a CUDA graph needs it.

    Else the runtime would ask, during capture, whether earlier calls have ended, which a stream in capture refuses.
    """

    path: Path
    alone: bool = False

    def bind(self, rows: Tensor) -> Call:
        """The archive's call."""
        loader = torch._C._aoti.AOTIModelPackageLoader(str(self.path), MODEL_NAME, self.alone, 1, -1)

        def call() -> Tensor:
            return loader.boxed_run([rows])[0]

        return call


@dataclass(frozen=True, slots=True, kw_only=True)
class Session:
    """An ONNX graph in ONNX Runtime, its input and output bound to memory on the device."""

    session: Any

    def bind(self, rows: Tensor) -> Call:
        """The session's call, which waits for its own stream."""
        import onnxruntime

        (given,), (wanted,) = self.session.get_inputs(), self.session.get_outputs()
        output = torch.full((len(rows), *wanted.shape[1:]), torch.nan, dtype=_float_type(wanted), device=rows.device)
        binding = self.session.io_binding()
        place = rows.device.type, rows.device.index or 0
        binding.bind_input(given.name, *place, _ELEMENTS[rows.dtype], tuple(rows.shape), rows.data_ptr())
        binding.bind_output(wanted.name, *place, _ELEMENTS[output.dtype], tuple(output.shape), output.data_ptr())
        options = onnxruntime.RunOptions()

        def call() -> Tensor:
            self.session.run_with_iobinding(binding, options)
            return output

        return call


@dataclass(frozen=True, slots=True, kw_only=True)
class Graph:
    """Another contender, its kernels captured once and replayed as one."""

    inner: Contender

    def bind(self, rows: Tensor) -> Call:
        """The replay. Raises RuntimeError if the call waits for the device or copies to it, which no graph can hold."""
        call = self.inner.bind(rows)
        aside: Any = torch.cuda.Stream()
        aside.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(aside):
            for _ in range(_WARM_UP):
                call()
        torch.cuda.current_stream().wait_stream(aside)
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            output = call()
        with torch.inference_mode():
            output.fill_(torch.nan)
        return Replay(graph=graph, output=output, captured=call)


@dataclass(frozen=True, slots=True, kw_only=True)
class Replay:
    """A captured call, run again. It keeps what was captured: a graph holds the weights' addresses, not the weights."""

    graph: Any
    output: Tensor
    captured: Call

    def __call__(self) -> Tensor:
        """The output, written anew."""
        self.graph.replay()
        return self.output


def compiled(module: nn.Module, rows: Tensor) -> Module:
    """The module behind `torch.compile` in its default mode, compiled for one row and for any number above one."""
    contender = Module(module=torch.compile(module))
    contender.bind(rows[:1].clone())()
    several = rows[:SAMPLE_BATCH].clone()
    torch._dynamo.mark_dynamic(several, 0)
    contender.bind(several)()
    return contender


def exported(module: nn.Module, rows: Tensor) -> ExportedProgram:
    """The module's program for any batch, as `deployctl package` exports it."""
    dims = ({0: Dim("batch", min=1, max=MAX_BATCH)},)
    batch = spec.Dim(name=spec.BATCH, minimum=1, maximum=MAX_BATCH)
    shown = rows[: sample_rows((batch,), "cuda" if rows.is_cuda else "cpu")].clone()
    with torch.no_grad(), traceable():
        return torch.export.export(module, (shown,), dynamic_shapes=dims, strict=False)


def archived(program: ExportedProgram, folder: Path, *, threads: int) -> Path:
    """The program's archive, by the converter's own settings and passes; `threads` compile GPU kernels."""
    device: Device = "cuda" if program.example_inputs[0][0].is_cuda else "cpu"
    settings = {**aoti.compiler_settings(device), "compile_threads": threads, PREPACK: device == "cpu"}
    if device == "cuda":
        # No kernel runs on the CPU, and trying each of its instruction sets takes as long as all else.
        settings |= {"cpp.simdlen": 256, "cpp.vec_isa_ok": True}
    with compiler_run(require_compiler(), folder, march=AVX2_MARCH, device=device) as runs_it:
        compiled, way = aoti._compile(program, {**settings, **runs_it})
    print(f"FlexAttention, if there is any: {way}")
    path = folder / "model.pt2"
    aoti._package(compiled.files, path)
    return path


def graph_file(module: nn.Module, rows: Tensor, folder: Path) -> Path:
    """The module as an ONNX graph, by the converter's own passes; both on the CPU, where weights are written from."""
    import onnx_ir as ir

    path = folder / "model.onnx"
    model = onnx._translate(plain_attention(exported(module, rows)), opset=_OPSET)
    onnx._strip(model)
    for value in model.graph.outputs:
        # Rewritten attention is traced with the sample's own rows, which are then said to be all there can be.
        assert value.shape is not None
        value.shape = ir.Shape(["batch", *value.shape[1:]])
    write_model(model, path, inline_limit=_INLINE_LIMIT)
    return path


def session(path: Path, device: str, *, tf32: bool) -> Session:
    """The graph in ONNX Runtime. Raises MissingError if it has no provider for the device."""
    import onnxruntime

    providers: list[Any] = ["CPUExecutionProvider"]
    if device == "cuda":
        providers = [("CUDAExecutionProvider", {"use_tf32": str(int(tf32))}), *providers]
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.log_severity_level = 3
    made = onnxruntime.InferenceSession(str(path), options, providers=providers)
    if device == "cuda" and made.get_providers()[0] != "CUDAExecutionProvider":
        raise MissingError("this ONNX Runtime did not load its CUDA provider", fix="pip install onnxruntime-gpu")
    return Session(session=made)


def _float_type(value: Any) -> torch.dtype:
    names = {"tensor(float)": torch.float32, "tensor(float16)": torch.float16, "tensor(bfloat16)": torch.bfloat16}
    return names[value.type]
