"""The execution providers that ONNX Runtime runs a graph with: the CPU's; on a GPU CUDA's, and TensorRT's if asked for.

Owns their options and whether they load here. Called by `cuda`, validate and the served backend, in child processes:
CUDA must not be begun before a fork.

fp32 means no TF32: the factors of a product would be rounded to 10 bits, thousands of times float32's own error.
`use_tf32` is off in every session, and in the config that is published.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from deploy.convert.model import Device
from deploy.convert.ort_session import CUDA, TENSORRT, told
from deploy.errors import UnfinishedError

TENSORRT_PROVIDER = "TensorrtExecutionProvider"
CUDA_PROVIDER = "CUDAExecutionProvider"
CPU_PROVIDER = "CPUExecutionProvider"
# What every session on the GPU is told; the published config says the same to Triton's backend.
EXACT = {"use_tf32": "0"}
_FIRST_GPU = {"device_id": "0"}
# Triton's backend has names of its own for these (onnxruntime_backend, src/onnxruntime.cc); others it passes on.
_PRECISION, _WORKSPACE = "precision_mode", "max_workspace_size_bytes"
_MODES = {
    "FP32": {}, "FP16": {"trt_fp16_enable": "1"}, "BF16": {"trt_bf16_enable": "1"}, "INT8": {"trt_int8_enable": "1"},
}  # fmt: skip
_NONE: Mapping[str, str] = MappingProxyType({})
ONNXRUNTIME_ADVICE = (
    "pip uninstall --yes onnxruntime, then pip install onnxruntime-gpu, of the CUDA release that torch has; "
    "or leave ONNX out: --formats aoti"
)


def providers(device: Device, options: Mapping[str, str] = _NONE) -> list[Any]:
    """ONNX Runtime's execution providers for a session on the device, the first one asked first for each operator.

    What CUDA has no kernel for runs on the CPU. `options` are the session's, by their names in Triton's config: what
    they tell an accelerator goes to its provider, and TensorRT's is there where they tell it anything.
    """
    if device == "cpu":
        return [CPU_PROVIDER]
    on_gpu = [(CUDA_PROVIDER, {**_FIRST_GPU, **EXACT, **told(options, CUDA)})]
    if tensorrt := told(options, TENSORRT):
        on_gpu.insert(0, (TENSORRT_PROVIDER, {**_FIRST_GPU, **_tensorrt_options(tensorrt)}))
    return [*on_gpu, CPU_PROVIDER]


def _tensorrt_options(asked: Mapping[str, str]) -> dict[str, str]:
    """What TensorRT's provider is given for these parameters of Triton's accelerator."""
    given = {name: value for name, value in asked.items() if name not in (_PRECISION, _WORKSPACE)}
    if _WORKSPACE in asked:
        given["trt_max_workspace_size"] = asked[_WORKSPACE]
    return given | _MODES[asked.get(_PRECISION, "FP32")]


def require_provider(session: Any, device: Device, options: Mapping[str, str] = _NONE) -> None:
    """Raises UnfinishedError if a session that was opened for the GPU lacks a provider: it would run on another one."""
    *on_gpu, _cpu = providers(device, options)
    for name, _ in on_gpu:
        if name not in session.get_providers():
            raise UnfinishedError(
                f"ONNX Runtime opened its session on {', '.join(session.get_providers())}: its {name} did not load",
                expected=name,
                fix=ONNXRUNTIME_ADVICE,
            )


def load_cuda_libraries() -> None:
    """Make torch's own CUDA libraries known to this process, so that ONNX Runtime's provider finds them."""
    import onnxruntime
    import torch

    assert torch.version.cuda is not None, "only asked on a GPU"
    if hasattr(onnxruntime, "preload_dlls"):
        onnxruntime.preload_dlls()


def cuda_lacks() -> str:
    """Why ONNX Runtime cannot run on the GPU; empty if it can."""
    return _lacks(CUDA_PROVIDER, {})


def tensorrt_lacks() -> str:
    """Why ONNX Runtime cannot run with TensorRT on the GPU; empty if it can."""
    return _lacks(TENSORRT_PROVIDER, {f"{TENSORRT}{_PRECISION}": "FP32"})


def _lacks(provider: str, options: Mapping[str, str]) -> str:
    """Why the provider cannot be had; a session with these options is opened: only that loads its libraries."""
    try:
        import onnxruntime
    except ImportError as error:
        return f"onnxruntime cannot be imported: {error}"
    if provider not in onnxruntime.get_available_providers():
        return f"onnxruntime {onnxruntime.__version__} has no {provider}: it is the build for CPU"
    load_cuda_libraries()
    opened = onnxruntime.SessionOptions()
    opened.log_severity_level = 4
    session = onnxruntime.InferenceSession(_tiny_graph(), opened, providers=providers("cuda", options))
    if provider in session.get_providers():
        return ""
    built = getattr(onnxruntime, "cuda_version", "") or "another release"
    return f"the {provider} of onnxruntime {onnxruntime.__version__} (built for CUDA {built}) does not load here"


def _tiny_graph() -> bytes:
    from onnx import TensorProto, helper

    sides = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1]) for name in ("x", "y")]
    graph = helper.make_graph([helper.make_node("Relu", ["x"], ["y"])], "tiny", sides[:1], sides[1:])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    serialized: bytes = model.SerializeToString()
    return serialized
