"""The execution providers that ONNX Runtime runs a graph with: the CPU's, and CUDA's on a GPU.

Owns their options and whether they load here. Called by `cuda`, validate and the served backend, in child processes:
CUDA must not be begun before a fork.

fp32 means no TF32: the factors of a product would be rounded to 10 bits, thousands of times float32's own error.
`use_tf32` is off in every session, and in the config that is published.
"""

from __future__ import annotations

from typing import Any

from deploy.convert.model import Device
from deploy.errors import UnfinishedError

CUDA_PROVIDER = "CUDAExecutionProvider"
CPU_PROVIDER = "CPUExecutionProvider"
# What a session on the GPU is given; the published config says the same to Triton's backend.
CUDA_OPTIONS = {"device_id": "0", "use_tf32": "0"}
ONNXRUNTIME_ADVICE = (
    "pip uninstall --yes onnxruntime, then pip install onnxruntime-gpu, of the CUDA release that torch has; "
    "or leave ONNX out: --formats aoti"
)


def providers(device: Device) -> list[Any]:
    """ONNX Runtime's execution providers for a session on the device; what CUDA has no kernel for runs on the CPU."""
    return [CPU_PROVIDER] if device == "cpu" else [(CUDA_PROVIDER, CUDA_OPTIONS), CPU_PROVIDER]


def require_provider(session: Any, device: Device) -> None:
    """Raises UnfinishedError if a session that was opened for the GPU has no CUDA provider: it would run on the CPU."""
    if device == "cuda" and CUDA_PROVIDER not in session.get_providers():
        raise UnfinishedError(
            f"ONNX Runtime opened its session on {', '.join(session.get_providers())}: its CUDA provider did not load",
            expected=CUDA_PROVIDER,
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
    """Why ONNX Runtime cannot run on the GPU; empty if it can. A session is opened: only that loads the libraries."""
    try:
        import onnxruntime
    except ImportError as error:
        return f"onnxruntime cannot be imported: {error}"
    if CUDA_PROVIDER not in onnxruntime.get_available_providers():
        return f"onnxruntime {onnxruntime.__version__} has no {CUDA_PROVIDER}: it is the build for CPU"
    load_cuda_libraries()
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    session = onnxruntime.InferenceSession(_tiny_graph(), options, providers=providers("cuda"))
    if CUDA_PROVIDER in session.get_providers():
        return ""
    built = getattr(onnxruntime, "cuda_version", "") or "another release"
    return f"the {CUDA_PROVIDER} of onnxruntime {onnxruntime.__version__} (built for CUDA {built}) does not load here"


def _tiny_graph() -> bytes:
    from onnx import TensorProto, helper

    sides = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1]) for name in ("x", "y")]
    graph = helper.make_graph([helper.make_node("Relu", ["x"], ["y"])], "tiny", sides[:1], sides[1:])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    serialized: bytes = model.SerializeToString()
    return serialized
