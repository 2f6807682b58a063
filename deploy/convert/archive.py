"""An AOTInductor archive as a callable, loaded as Triton's C++ backend loads it.

Owns the loader's arguments, and the refusal of an archive that is for another device. Called by validate, and by the
served backend, so that what is proven and raced is what serves. `torch._inductor.aoti_load_package` would compile test
programs first, to learn this machine's ISA.
"""

import json
import re
import zipfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from deploy.convert.cuda import local_sm
from deploy.convert.model import Device
from deploy.errors import UsageError
from deploy.gpu import capability

if TYPE_CHECKING:
    from torch import Tensor

MODEL_NAME = "model"
"""The model's name inside the archive; what Triton's PyTorch backend asks the loader for."""

Run = Callable[[Sequence["Tensor"]], Sequence["Tensor"]]


def load_archive(path: Path, device: Device = "cpu") -> Run:
    """A function from flat input tensors to flat output tensors, both on the device.

    The archive is native code: check its digest first. Raises UsageError if it was compiled for another device, or for
    a GPU of another compute capability.
    """
    import torch

    check_device(path, read_metadata(path), device=device, sm=local_sm() if device == "cuda" else None)
    loader = torch._C._aoti.AOTIModelPackageLoader(str(path), MODEL_NAME, False, 1, -1)

    def run(inputs: Sequence["Tensor"]) -> Sequence["Tensor"]:
        return loader.boxed_run(list(inputs))

    return run


def read_metadata(path: Path) -> dict[str, str]:
    """What the archive says of itself, by the compiler's own keys (`AOTI_...`); nothing of it is run.

    Empty where it says nothing. Raises UsageError if the file is no archive.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            name = next((name for name in archive.namelist() if name.endswith("wrapper_metadata.json")), None)
            found = json.loads(archive.read(name)) if name else {}
    except (OSError, zipfile.BadZipFile, ValueError) as error:
        raise UsageError(f"{path} is no AOTInductor archive: {error}", expected="what deployctl packaged") from error
    return {str(key): str(value) for key, value in found.items()}


def check_device(path: Path, facts: Mapping[str, str], *, device: Device, sm: int | None) -> None:
    """Raises UsageError unless the archive, going by its metadata, is for the device and its compute capability `sm`.

    Machine code for another GPU would not load, or not until the first call. An archive that says nothing passes.
    """
    compiled = facts.get("AOTI_DEVICE_KEY", device)
    if compiled != device:
        raise UsageError(
            f"{path.name} is compiled for {compiled}, and it is to run on {device}",
            expected=f"an archive for {device}",
            fix=f"package the checkpoint again with --device {device}, or run it on {compiled}",
        )
    kernels = re.sub(r"\D", "", facts.get("AOTI_COMPUTE_CAPABILITY", ""))
    if device == "cuda" and kernels and kernels != str(sm):
        raise UsageError(
            f"{path.name} has kernels for compute capability {capability(int(kernels))}, and the GPU here has "
            f"{capability(sm)}",
            expected=f"an archive for {capability(sm)}",
            fix="package the checkpoint again with --device cuda on this GPU, or run it on one that it was made for",
        )
