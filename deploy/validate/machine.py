"""What this machine offers to a measurement: the processor's name, and how many threads fit it.

Owns reading /proc, /sys and the container's quota; measures nothing. Called by latency and whoever sets threads.
"""

import math
import os
import platform
import re
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path

# Where a module states its own version. The distribution's name or version says less: PyPI's torch 2.11.0 calls
# itself 2.11.0+cu130, and several distributions bring the module onnxruntime.
_STATED_IN = {"torch": "version.py", "onnxruntime": "__init__.py"}
_STATED = re.compile(r"""^__version__ = ['"]([^'"]+)['"]""", re.MULTILINE)


def cpu_model(root: Path = Path("/")) -> str:
    """The processor's name as the kernel gives it, or its architecture where the kernel gives none (most ARM)."""
    for line in _read(root / "proc/cpuinfo").splitlines():
        key, _, value = line.partition(":")
        if key.strip() == "model name":
            return value.strip()
    return platform.machine()


def default_threads(root: Path = Path("/")) -> int:
    """One thread per physical core that this process may use, and no more than its container's CPU quota.

    A second thread on a core's hyper-thread, or one beyond the quota, makes the others wait.
    """
    allowed = os.sched_getaffinity(0)
    cores = {_siblings(cpu, root) for cpu in allowed}
    return max(1, int(min(len(cores), _quota(root))))


def describe_cpus(root: Path = Path("/")) -> str:
    """One line for a record: the processor's name, how many CPUs there are, and how many this process may use."""
    return f"{cpu_model(root)}, {len(os.sched_getaffinity(0))} of {os.cpu_count()} CPUs"


def identity(root: Path = Path("/")) -> tuple[str, ...]:
    """What tells this machine from others, and from itself after a change that reaches how fast it computes.

    Its processor and the part of it that this process may use, its name and id, and its kernel.
    """
    read = (_read(root / path).strip() for path in ("etc/machine-id", "sys/fs/cgroup/cpu.max"))
    system = f"{platform.system()} {platform.release()} {platform.machine()}"
    return (describe_cpus(root), platform.node(), system, *read)


def installed_versions(distributions: Sequence[str]) -> dict[str, str]:
    """The installed version of each distribution, those that are absent left out; imports none of them.

    Of torch and ONNX Runtime that which the module itself will say once it is imported.
    """
    found = {name: _module_version(name) or _version(name) for name in distributions}
    return {name: known for name, known in found.items() if known is not None}


def _version(distribution: str) -> str | None:
    try:
        return version(distribution)
    except PackageNotFoundError:
        return None


def _module_version(name: str) -> str | None:
    """The version that a module's source states; None where there is no such module, or nobody looks there."""
    spec = find_spec(name) if name in _STATED_IN else None
    if spec is None or spec.origin is None:
        return None
    stated = _STATED.search(_read(Path(spec.origin).parent / _STATED_IN[name]))
    return stated[1] if stated else None


def _siblings(cpu: int, root: Path) -> str:
    """The CPUs on the same core, as the kernel writes them; the CPU itself where it does not say."""
    return _read(root / f"sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list").strip() or str(cpu)


def _quota(root: Path) -> float:
    """How many CPUs' worth of time the container's control group (version 2) grants; infinite without a limit."""
    fields = _read(root / "sys/fs/cgroup/cpu.max").split()
    return int(fields[0]) / int(fields[1]) if len(fields) == 2 and fields[0] != "max" else math.inf


def _read(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""
