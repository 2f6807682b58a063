"""What this machine can build, serve and measure, and what to do about each thing that it lacks.

Owns the list of things looked at. Changes nothing, and imports nothing heavy here: a child tells about torch. Called by
the command `doctor`. What must be there before anything is installed is in `needs`.

    1. Python, and the packages that convert and compare.
    2. The compiler, and for which targets an AOTInductor archive may be built here.
    3. The tritonservers that serve for real.
    4. The processor, memory, disk, and a GPU if there is one.
    5. The extras, each for commands of its own.
"""

import importlib
import importlib.metadata
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import psutil

from deploy.convert.building import aoti_obstacle
from deploy.convert.compiler import require_compiler
from deploy.errors import DeployError, ExitCode, MissingError
from deploy.gpu import gpu_listing
from deploy.needs import check_python
from deploy.processes import Limits, Worker
from deploy.serve.engines import find_engine, list_engines
from deploy.targets import all_targets
from deploy.validate.machine import cpu_model, default_threads, installed_versions

State = Literal["ok", "missing", "absent"]

# The extras of pyproject.toml and what each brings; without one, only its own commands are refused.
EXTRAS: dict[str, tuple[str, ...]] = {
    "examples": ("scikit-learn",),
    "s3": ("fsspec", "s3fs"),
    "gcs": ("fsspec", "gcsfs"),
    "azure": ("fsspec", "adlfs"),
    "oci": ("oras",),
    "sign": ("model-signing", "pyopenssl", "securesystemslib", "cyclonedx-python-lib"),
    "timm": ("timm",),
    "transformers": ("transformers",),
    "torchao": ("torchao",),
}
_PACKAGES = ("torch", "torchvision", "onnx", "onnxruntime", "onnxscript", "tritonclient.grpc", "mlperf_loadgen")
_ISAS = {"avx2": "AVX2", "avx512f": "AVX-512", "amx_tile": "AMX"}
_LEAST_DISK = 2.0  # GB for a stage with its artifacts, logs and compiler cache
_LEAST_MEMORY = 2.0  # GB for one conversion beside its server
_LEAST_SHARED = 0.064  # GB, what a container has by default; too little for large batches, which `serve` checks
_SHARED_MEMORY = Path("/dev/shm")  # noqa: S108 - the kernel's shared memory, looked at only
_PROBE_SECONDS = 300.0  # a cold disk under `import torch`


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One thing looked at. `missing` is what the main job needs, `absent` what only some work needs."""

    what: str
    state: State
    found: str
    remedy: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Examination:
    """Everything that was found, and what follows for each kind of work: `yes`, `no`, or with what."""

    findings: tuple[Finding, ...]
    can: dict[str, str]

    @property
    def exit_code(self) -> ExitCode:
        """0 where the main job can run: what it needs is there."""
        lacking = any(finding.state == "missing" for finding in self.findings)
        return ExitCode.MISSING if lacking else ExitCode.OK


def examine(folder: Path) -> Examination:
    """What this machine has for work in `folder`."""
    packages, temporary = _probe(), Path(tempfile.gettempdir())
    findings = (
        _python(),
        *package_findings(packages),
        _tried("C++ compiler", require_compiler),
        _tried("tritonserver", _engine_words),
        cpu_finding(Path("/proc/cpuinfo").read_text()),
        memory_finding(psutil.virtual_memory().total / 1e9),
        disk_finding("disk", folder, _LEAST_DISK),
        disk_finding("shared memory", _SHARED_MEMORY, _LEAST_SHARED),
        temporary_finding(temporary, os.statvfs(temporary).f_flag),
        gpu_finding(gpu_listing(), packages.get("cuda", "")),
        *extra_findings(_installed),
    )
    return Examination(findings=findings, can=_abilities(findings))


def probe_packages() -> dict[str, str]:
    """The version of each package that can be imported, else `error: ` and why; run in a child.

    `torchvision ops` and `cuda` say what of torchvision and of torch's CUDA works, empty if nothing does.
    """
    found = {name: _import(name) for name in _PACKAGES if name != "torchvision"}
    if not found["torch"].startswith("error"):
        import torch

        from deploy.checkpoint.vision import import_torchvision, native_ops_load

        found["cuda"] = str(torch.version.cuda or "") if torch.cuda.is_available() else ""
        try:
            found["torchvision"] = import_torchvision().__version__
            found["torchvision ops"] = "load" if native_ops_load() else ""
        except MissingError as error:
            found["torchvision"] = f"error: {error.found}"
    if not found["onnxruntime"].startswith("error"):
        import onnxruntime

        found["providers"] = ", ".join(onnxruntime.get_available_providers())
    return found


def package_findings(packages: Mapping[str, str]) -> Iterator[Finding]:
    """A finding per package that converts, compares or asks; `packages` is what `probe_packages` gave."""
    for name in _PACKAGES:
        version = packages.get(name, "error: not tried, since torch cannot be imported")
        if version.startswith("error: "):
            yield Finding(
                what=name,
                state="missing",
                found=version.removeprefix("error: "),
                remedy="install what requirements/lock.txt pins: `make setup`, or pip install deployctl",
            )
            continue
        more = {"torchvision": _ops_words(packages), "onnxruntime": f" ({packages.get('providers', '')})"}
        yield Finding(what=name, state="ok", found=version + more.get(name, ""))


def cpu_finding(cpuinfo: str) -> Finding:
    """The processor, the instruction sets that matter here, and how many threads fit it."""
    flags = next((line.partition(":")[2].split() for line in cpuinfo.splitlines() if line.startswith("flags")), [])
    isas = [name for flag, name in _ISAS.items() if flag in flags]
    found = f"{cpu_model()}, {default_threads()} threads, {', '.join(isas) or 'none of ' + ', '.join(_ISAS.values())}"
    if "AVX2" in isas:
        return Finding(what="processor", state="ok", found=found)
    return Finding(
        what="processor",
        state="absent",
        found=found,
        remedy="package with --formats onnx: AOTInductor archives are compiled for AVX2 and cannot be proven here",
    )


def memory_finding(gigabytes: float) -> Finding:
    """Whether one conversion fits beside a server."""
    found = f"{gigabytes:.1f} GB"
    if gigabytes >= _LEAST_MEMORY:
        return Finding(what="memory", state="ok", found=found)
    return Finding(what="memory", state="missing", found=found, remedy=f"use a machine with {_LEAST_MEMORY:.0f} GB")


def disk_finding(what: str, folder: Path, least: float) -> Finding:
    """Whether the filesystem of `folder` has `least` GB free."""
    existing = next(path for path in (folder.resolve(), *folder.resolve().parents) if path.exists())
    free = shutil.disk_usage(existing).free / 1e9
    found = f"{free:.1f} GB free at {existing}"
    if free >= least:
        return Finding(what=what, state="ok", found=found)
    return Finding(what=what, state="missing", found=found, remedy=f"free {least - free:.2f} GB more there")


def temporary_finding(folder: Path, mount_flags: int) -> Finding:
    """Whether programs may run from the temporary folder: archives and the local engine are unpacked there."""
    if not mount_flags & os.ST_NOEXEC:
        return Finding(what="temporary folder", state="ok", found=str(folder))
    return Finding(
        what="temporary folder",
        state="missing",
        found=f"{folder} is mounted noexec",
        remedy="set TMPDIR to a folder where programs may run",
    )


def gpu_finding(listing: str, cuda: str) -> Finding:
    """The GPUs that nvidia-smi lists, and whether torch sees them.

    `listing` has a line per GPU with name, driver, compute capability and memory, separated by commas; `cuda` is the
    CUDA release of a torch that has a device, else empty.
    """
    gpus = [[cell.strip() for cell in line.split(",")] for line in listing.splitlines() if line.count(",") == 3]
    if not gpus:
        return Finding(
            what="GPU",
            state="absent",
            found="none that nvidia-smi lists",
            remedy="nothing for CPU targets; for a GPU target ONNX is built and proven on CPU, and nothing measured",
        )
    names = "; ".join(
        f"{name}, driver {driver}, sm {sm.replace('.', '')}, {memory}" for name, driver, sm, memory in gpus
    )
    if cuda:
        return Finding(what="GPU", state="ok", found=f"{names}; torch has CUDA {cuda}")
    return Finding(
        what="GPU",
        state="absent",
        found=f"{names}; this torch cannot use it",
        remedy="install a CUDA build of torch, or run in the target's PyTorch image: see `deployctl targets NAME`",
    )


def extra_findings(installed: Callable[[str], bool]) -> Iterator[Finding]:
    """A finding per extra, `ok` where all of it is installed."""
    for extra, distributions in EXTRAS.items():
        lacking = [name for name in distributions if not installed(name)]
        if lacking:
            remedy = f'pip install "deployctl[{extra}]"'
            yield Finding(what=f"extra {extra}", state="absent", found=f"no {', '.join(lacking)}", remedy=remedy)
        else:
            yield Finding(what=f"extra {extra}", state="ok", found=", ".join(distributions))


def _python() -> Finding:
    found = check_python(sys.version_info[:2])
    return Finding(what="Python", state="missing" if found.remedy else "ok", found=found.found, remedy=found.remedy)


def _tried(what: str, look: Callable[[], str]) -> Finding:
    """What `look` finds, or the MissingError that it raises as a finding."""
    try:
        return Finding(what=what, state="ok", found=look())
    except MissingError as error:
        return Finding(what=what, state="missing", found=error.found, remedy=error.fix)


def _engine_words() -> str:
    find_engine()
    return "; ".join(f"{engine.kind} {engine.server_version} (release {engine.release})" for engine in list_engines())


def _ops_words(packages: Mapping[str, str]) -> str:
    return "" if packages.get("torchvision ops") else " (without its C++ ops: a build for another torch; models work)"


def _probe() -> dict[str, str]:
    try:
        with Worker("packages", log=Path(os.devnull), limits=Limits(seconds=_PROBE_SECONDS)) as worker:
            return worker.run(probe_packages).value
    except DeployError as error:
        return dict.fromkeys(_PACKAGES, f"error: {error.found}")


def _import(name: str) -> str:
    try:
        importlib.import_module(name)
        distribution = _DISTRIBUTIONS.get(name, name)
        return installed_versions([distribution]).get(distribution) or importlib.metadata.version(distribution)
    except Exception as error:  # noqa: BLE001 - a package for another numpy or protobuf raises ValueError or TypeError
        return f"error: {type(error).__name__}: {error}"


_DISTRIBUTIONS = {"tritonclient.grpc": "tritonclient", "mlperf_loadgen": "mlcommons-loadgen"}


def _installed(distribution: str) -> bool:
    try:
        importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return False
    return True


def _abilities(findings: tuple[Finding, ...]) -> dict[str, str]:
    """What can be built, served and measured, from what was found."""
    lacking = {finding.what for finding in findings if finding.state == "missing"}
    states = {finding.what: finding for finding in findings}
    converts = not lacking & {"Python", "torch", "onnx", "onnxscript", "onnxruntime", "memory", "disk"}
    compiles = converts and states["C++ compiler"].state == states["processor"].state == "ok"
    server = states["tritonserver"]
    return {
        "build ONNX": "for every target" if converts else "no",
        "build AOTInductor": f"for {', '.join(_aoti_targets())}" if compiles else "no",
        "serve for real": server.found if server.state == "ok" else "no",
        "measure": _measures(on_gpu=states["GPU"].state == "ok") if converts else "no",
    }


def _measures(*, on_gpu: bool) -> str:
    return "latency on CPU targets; " + (
        "on this GPU with --device cuda" if on_gpu else "on GPU targets it stays not measured"
    )


def _aoti_targets() -> list[str]:
    return [name for name, target in all_targets().items() if aoti_obstacle(target) is None]
