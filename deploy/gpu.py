"""The GPU of this machine: what it is, and what of this environment runs on it.

Owns the facts and the listing they are read from; torch's own view of it is looked up in `convert.cuda`, in a child.
Called by device, serve, verify and doctor.
"""

import os
import re
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from deploy.records import Record

# For a server: Triton's PyTorch backend leaves TF32 on for convolutions and has no parameter for it, while what
# was proven is float32. Half precisions are not touched by it.
EXACT_FLOAT32 = {"NVIDIA_TF32_OVERRIDE": "0"}

_QUERY = ("nvidia-smi", "--query-gpu=name,driver_version,compute_cap,memory.total", "--format=csv,noheader")
_CAPABILITY = re.compile(r"(\d+)\.(\d+)")
_MEMORY = re.compile(r"(\d+) MiB")
_SECONDS = 30
_LIBRARIES = tuple(f"lib{name}.so*" for name in ("cuda", "cudart", "cublas*", "cudnn*", "cufft*", "curand*", "nvrtc*"))
_MIB = 1024 * 1024
_NONE_VISIBLE = ("", "-1")


class LocalGpu(Record):
    """One NVIDIA GPU: its name, compute capability as digits (90 for 9.0), driver, and memory in bytes.

    `cuda` is the release that torch is built for, None where torch was not asked.
    """

    name: str
    sm: int
    driver: str
    memory: int
    cuda: str | None = None

    def __str__(self) -> str:
        cuda = f", CUDA {self.cuda}" if self.cuda else ""
        return f"{self.name} (compute capability {capability(self.sm)}, driver {self.driver}{cuda})"


@dataclass(frozen=True, slots=True, kw_only=True)
class GpuStack:
    """A GPU that torch computes on, and per format what is missing here to build and run it there; empty if nothing.

    `tensorrt` is what ONNX Runtime's provider of that name lacks, without which its tactic is not tried.
    """

    gpu: LocalGpu
    aoti: str = ""
    onnx: str = ""
    tensorrt: str = "nobody looked for TensorRT"


def capability(sm: int | None) -> str:
    """A compute capability as people write it: 9.0 for 90."""
    return "unknown" if sm is None else f"{sm // 10}.{sm % 10}"


def gpu_folders(environment: Mapping[str, str]) -> tuple[str, ...]:
    """The folders of LD_LIBRARY_PATH with the driver's or CUDA's libraries: a process with another path needs them."""
    folders = environment.get("LD_LIBRARY_PATH", "").split(os.pathsep)
    return tuple(folder for folder in folders if folder and any(any(Path(folder).glob(name)) for name in _LIBRARIES))


@cache
def gpu_listing() -> str:
    """What nvidia-smi lists, a line per GPU: name, driver, compute capability, memory; empty where there is none."""
    try:
        return subprocess.run(_QUERY, capture_output=True, text=True, check=False, timeout=_SECONDS).stdout
    except (OSError, subprocess.TimeoutExpired):
        return ""


def parse_gpus(listing: str) -> tuple[LocalGpu, ...]:
    """The GPUs of a listing, in its order; lines that describe none are left out."""
    found = []
    for line in listing.splitlines():
        cells = [cell.strip() for cell in line.split(",")]
        if len(cells) != 4:
            continue
        name, driver, compute, size = cells
        major_minor, mebibytes = _CAPABILITY.fullmatch(compute), _MEMORY.fullmatch(size)
        if major_minor is None:
            continue
        found.append(
            LocalGpu(
                name=name,
                sm=int(major_minor[1]) * 10 + int(major_minor[2]),
                driver=driver,
                memory=int(mebibytes[1]) * _MIB if mebibytes else 0,
            )
        )
    return tuple(found)


def visible_gpu(listing: str | None = None, environment: Mapping[str, str] = os.environ) -> LocalGpu | None:
    """The GPU that a process here gets as its first, None where there is none. Asks nvidia-smi, not torch.

    CUDA_VISIBLE_DEVICES is heeded where it is a number; a GPU named otherwise is taken to be like the first.
    """
    gpus = parse_gpus(gpu_listing() if listing is None else listing)
    chosen = environment.get("CUDA_VISIBLE_DEVICES", "0").split(",")[0].strip()
    if chosen in _NONE_VISIBLE:
        return None
    index = int(chosen) if chosen.isdigit() else 0
    return gpus[index] if index < len(gpus) else None
