"""What torch makes of this machine's GPU, and how float32 is computed on it.

Owns the probe that comes before any work, the TF32 switches, and what an artifact's details say of the device; ONNX
Runtime's side is in `providers`. Called by device, the converters, validate and the served backend, in child
processes: CUDA must not be begun before a fork.

fp32 means no TF32. On GPUs from Ampere on, cuDNN rounds the factors of float32 convolutions to TF32's 10 bits unless
told not to, and cuBLAS those of products where it is told to: thousands of times float32's own error. Both are switched
off in every process that compiles or runs a model here.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
import warnings
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from deploy.convert.model import Device
from deploy.convert.providers import cuda_lacks, tensorrt_lacks
from deploy.errors import MissingError
from deploy.gpu import GpuStack, LocalGpu, gpu_listing, parse_gpus

if TYPE_CHECKING:
    from torch import Tensor

_DRIVER_FOLDERS = (Path("/usr/local/nvidia/lib64"), Path("/usr/lib/wsl/lib"))
_PROBE = "#include <cuda.h>\n#include <cuda_runtime_api.h>\nint probe() { return cuInit(0); }\n"


def exact_float32(device: Device) -> None:
    """Compute float32 in float32 in this process from now on, products and convolutions alike."""
    if device == "cpu":
        return
    import torch

    torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cudnn.allow_tf32 = False


def moved(tensors: Sequence[Tensor], device: Device) -> tuple[Tensor, ...]:
    """The tensors on the device; the very same ones where they are there."""
    return tuple(tensor.to(device) for tensor in tensors)


def device_details(device: Device) -> dict[str, str]:
    """What an artifact's details say of the device it was made on and how float32 is meant; nothing on CPU."""
    if device == "cpu":
        return {}
    import torch

    return {
        "device": device,
        "gpu": torch.cuda.get_device_name(0),
        "sm": str(local_sm()),
        "driver": _driver(),
        "cuda": str(torch.version.cuda),
        "tf32": "off",
    }


def local_sm() -> int:
    """The compute capability of this process's first GPU, as digits."""
    import torch

    major, minor = torch.cuda.get_device_capability(0)
    return major * 10 + minor


TOOLKIT_ADVICE = (
    "install the CUDA toolkit of the release that torch has, or name its folder in CUDA_HOME; or use --formats onnx"
)


def look_at_gpu() -> GpuStack:
    """The GPU that this environment computes on, and what either format lacks here. Needs a process of its own.

    Raises MissingError if torch cannot compute on a GPU.
    """
    import torch

    if torch.version.cuda is None:
        raise MissingError(
            f"torch {torch.__version__} is built without CUDA, so --device cuda cannot be had",
            expected="a CUDA build of torch and an NVIDIA GPU with its driver",
            fix="install a CUDA build of torch (see pytorch.org/get-started), or leave out --device",
        )
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        usable = torch.cuda.is_available()
    if not usable:
        reason = f": {' '.join(str(said[0].message).split())}" if said else ""
        raise MissingError(
            f"torch {torch.__version__} (CUDA {torch.version.cuda}) sees no usable GPU{reason}",
            expected="an NVIDIA GPU that nvidia-smi lists, with a driver for that CUDA release",
            fix="run on such a machine (in a container: docker run --gpus all), or leave out --device",
        )
    try:
        torch.ones(8, device="cuda").sum().item()
    except RuntimeError as error:
        raise MissingError(
            f"torch {torch.__version__} cannot compute on the GPU: {str(error).strip().splitlines()[0]}",
            expected="a build of torch with kernels for this GPU",
            fix="install one (see pytorch.org/get-started), or leave out --device",
        ) from error
    facts = torch.cuda.get_device_properties(0)
    gpu = LocalGpu(name=facts.name, sm=local_sm(), driver=_driver(), memory=facts.total_memory, cuda=torch.version.cuda)
    onnx = cuda_lacks()
    return GpuStack(gpu=gpu, aoti=_aoti_lacks(), onnx=onnx, tensorrt=onnx or tensorrt_lacks())


def _driver() -> str:
    return next((gpu.driver for gpu in parse_gpus(gpu_listing())), "unknown")


def toolkit_environment(home: str, environment: Mapping[str, str]) -> dict[str, str]:
    """The variables with which AOTInductor's compiler finds the toolkit in `home` and the driver's library.

    torch looks for the toolkit's stub of it only where CUDA_HOME is set; some containers have the driver's own aside.
    """
    stubs = (Path(home, "lib64/stubs"), Path(home, "targets/x86_64-linux/lib/stubs"), *_DRIVER_FOLDERS)
    known = [str(folder) for folder in stubs if (folder / "libcuda.so").exists()]
    before = environment.get("LIBRARY_PATH")
    return {"CUDA_HOME": home, "LIBRARY_PATH": os.pathsep.join([*([before] if before else []), *known])}


def local_toolkit() -> dict[str, str]:
    """`toolkit_environment` of the toolkit that torch finds here. Raises MissingError if it finds none."""
    from torch.utils.cpp_extension import CUDA_HOME

    if CUDA_HOME is None:
        raise MissingError(
            "torch finds no CUDA toolkit here", expected="a folder in CUDA_HOME, or nvcc on PATH", fix=TOOLKIT_ADVICE
        )
    return toolkit_environment(CUDA_HOME, os.environ)


def _aoti_lacks() -> str:
    """Why AOTInductor cannot compile for the GPU here; empty if nothing is missing that can be told in advance."""
    if find_spec("triton") is None:
        return "triton, which writes the kernels, is not installed"
    try:
        variables = local_toolkit()
    except MissingError as error:
        return error.found
    compiler = shutil.which(os.environ.get("CXX", "g++"))
    # Without one the search for a compiler tells, which comes next.
    return links_with_cuda(compiler, variables) if compiler else ""


def links_with_cuda(compiler: str, variables: Mapping[str, str]) -> str:
    """Why the compiler cannot build what AOTInductor writes for a GPU, in its own words; empty if it can."""
    with tempfile.TemporaryDirectory() as folder:
        done = subprocess.run(
            [compiler, "-x", "c++", "-shared", "-fPIC", "-", f"-I{variables['CUDA_HOME']}/include", "-lcuda",
             "-o", str(Path(folder, "probe.so"))],
            input=_PROBE, env={**os.environ, **variables}, capture_output=True, text=True, check=False,
        )  # fmt: skip
    if done.returncode == 0:
        return ""
    reason = next((line for line in done.stderr.splitlines() if "error" in line or "cannot find" in line), "")
    return f"{Path(compiler).name} cannot build for CUDA with the toolkit in {variables['CUDA_HOME']}: {reason.strip()}"
