"""Which device a packaging run works on, and which formats can be made there: decided before any work.

Owns these decisions; what the GPU is and what lacks comes from `convert.cuda`, asked in a child. Called by package,
bench and verify.
"""

import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from deploy.convert.building import aoti_obstacle
from deploy.convert.cuda import TOOLKIT_ADVICE, look_at_gpu
from deploy.convert.model import Format
from deploy.convert.providers import ONNXRUNTIME_ADVICE
from deploy.errors import DeployError, MissingError, UsageError
from deploy.gpu import GpuStack, LocalGpu, capability
from deploy.processes import Worker, prepare
from deploy.request import PackageRequest
from deploy.targets import LOCAL_CUDA, Target


def look() -> GpuStack:
    """The GPU here and what lacks, looked up in a child. Raises MissingError if torch cannot compute on one.

    Not in this process: one that has begun CUDA can fork no other that uses it, and torch is not imported here.
    """
    prepare("deploy.convert.preload")
    with Worker("the look at the GPU", log=Path(os.devnull)) as worker:
        return worker.run(look_at_gpu).value


def place(request: PackageRequest, look: Callable[[], GpuStack] = look) -> PackageRequest:
    """The request as it is for CPU; for cuda with the GPU that is here, and with that in the local target.

    Raises UsageError if target and device do not go together, MissingError if the GPU is missing or another one.
    """
    target = request.target
    if request.device == "cpu":
        if target.name == LOCAL_CUDA:
            raise UsageError(
                f"target {LOCAL_CUDA} is this machine's GPU, and --device is cpu",
                expected="--device cuda",
                fix="add it, or leave out --target",
            )
        return request
    if target.device != request.device:
        raise UsageError(
            f"--device is cuda, and target {target.name} runs on CPU",
            expected=f"{LOCAL_CUDA}, or a release on a GPU such as 26.08-cuda-sm90",
            fix="leave out --target or --device",
        )
    stack = look()
    return replace(request, target=fitted(target, stack.gpu), gpu=stack)


def fitted(target: Target, gpu: LocalGpu) -> Target:
    """The target with the GPU's compute capability where it is the local one.

    Raises MissingError if a release's target is for another compute capability.
    """
    if target.name == LOCAL_CUDA:
        return target.model_copy(update={"sm": gpu.sm})
    if target.sm != gpu.sm:
        raise MissingError(
            f"target {target.name} is for compute capability {capability(target.sm)}, and here is {gpu}",
            expected="a GPU of the target's compute capability: what is compiled and measured holds for that one",
            fix="run on such a GPU, choose the target of this one, or leave out --device for ONNX proven on CPU",
        )
    return target


def obstacles(request: PackageRequest) -> dict[Format, DeployError]:
    """Why a format that was asked for cannot be made here, as errors that are not raised. Needs a placed request.

    On the GPU everything is proven and measured there, so what cannot run there is not made at all: a model that was
    proven on the CPU while the manifest speaks of a GPU would be a false statement.
    """
    found: dict[Format, DeployError] = {}
    obstacle = aoti_obstacle(request.target, device=request.device)
    if obstacle is None and request.gpu is not None and request.gpu.aoti:
        obstacle = MissingError(request.gpu.aoti, expected="what AOTInductor compiles with", fix=TOOLKIT_ADVICE)
    if obstacle is not None:
        found["aoti"] = obstacle
    if request.gpu is not None and request.gpu.onnx:
        found["onnx"] = MissingError(
            request.gpu.onnx, expected="an onnxruntime that runs on the GPU", fix=ONNXRUNTIME_ADVICE
        )
    return {name: error for name, error in found.items() if name in request.formats}
