"""Whether an AOTInductor archive that is compiled here may be published for a target.

Owns that rule. An archive is machine code against the C++ interface of one build of torch, and nothing promises that
it holds for another build: it must be the target's own. Called by package, before any work.
"""

from importlib.metadata import PackageNotFoundError, version

from deploy.convert.model import Device
from deploy.errors import DeployError, MissingError, UsageError
from deploy.targets import Target, same_torch, targets_like

_ONNX = "package with --formats onnx"


def aoti_obstacle(target: Target, *, device: Device = "cpu", torch: str | None = None) -> DeployError | None:
    """What forbids it, as an error that is not raised; None where nothing does.

    `device` is the one that would be compiled on. `torch` is the version that would compile, by default the installed
    one, read without importing it. A target without a Triton release is this machine, whose torch serves too.
    """
    if not target.aoti.loads:
        return not_loaded(target)
    if target.device != device:
        return UsageError(
            f"target {target.name} runs on {target.device}, and AOTInductor archives are compiled on the device they "
            f"run on, which is {device} here",
            expected="--device cuda on a machine with the target's GPU, or ONNX",
            fix=f"add --device cuda there, or {_ONNX}",
        )
    if target.triton is None:
        return None
    built = torch or _installed_torch()
    if target.torch is None:
        return UsageError(
            f"which torch {target.name} runs is not known, so the one here ({built}) cannot be compared with it",
            expected=f"one of the targets whose torch is known: {targets_like(target, _torch_is_known)}",
            fix=_ONNX,
        )
    if same_torch(built, target.torch):
        return None
    return MissingError(
        f"target {target.name} runs torch {target.torch}, and the one here is {built}",
        expected="the target's own build of torch (release, commit and month are compared): an AOTInductor archive "
        "is not known to run on another",
        fix=f"run deployctl in {target.pytorch_container}, or {_ONNX}",
    )


def not_loaded(target: Target) -> UsageError:
    """What to say of a target that loads no archive at all."""
    return UsageError(
        f"target {target.name} cannot load an AOTInductor artifact",
        expected=f"one of the targets {targets_like(target, lambda other: other.aoti.loads)}",
        fix=f"choose one of them with --target, or {_ONNX}",
    )


def _torch_is_known(target: Target) -> bool:
    return target.aoti.loads and target.torch is not None


def _installed_torch() -> str:
    try:
        return version("torch")
    except PackageNotFoundError as error:
        raise MissingError("torch is not installed", fix="pip install torch") from error
