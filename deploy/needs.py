"""What this machine must have before anything is installed, each lack named with its remedy.

Owns the list of requirements. Uses the standard library alone, since it runs before the venv exists, and syntax that
older Pythons parse, so that they are told their version rather than shown a syntax error. Called by
`scripts/check_machine.py`, which `make setup` runs, and by doctor.
"""

from __future__ import annotations

import ctypes
import importlib.util
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from pathlib import Path
from typing import NamedTuple

OLDEST = (3, 11)
NEWEST = (3, 12)
GLIBC = (2, 35)  # what the server's wheel (manylinux_2_35) was built for
VENV_GB = 3.0  # the venv takes 1.7 GB, more while pip unpacks
WORK_GB = 2.0  # engine, checkpoints, stages and compiler caches

_PROGRAM = "#include <vector>\nint main() { std::vector<int> v(3, 0); return v[0]; }\n"


class Finding(NamedTuple):
    """One requirement: what was found, and what to do about it; an empty remedy means that it is met."""

    what: str
    found: str
    remedy: str = ""


def check_python(version: tuple[int, ...]) -> Finding:
    """Whether this Python is one that torch, the engine and deployctl share."""
    found = "{}.{}".format(*version)
    if OLDEST <= version <= NEWEST:
        return Finding("Python", found)
    return Finding("Python", found, "install Python 3.11 or 3.12, then run `make PYTHON=python3.11 ...`")


def check_platform(system: str, machine: str) -> Finding:
    """Whether the wheels of the server exist for this platform."""
    found = f"{system} on {machine}"
    if (system, machine) == ("Linux", "x86_64"):
        return Finding("platform", found)
    return Finding("platform", found, "use Linux on x86-64: the bundled tritonserver exists for no other")


def check_venv() -> Finding:
    """Whether `python -m venv` can make an environment that has pip; Debian ships the two parts apart."""
    lacking = [name for name in ("venv", "ensurepip") if importlib.util.find_spec(name) is None]
    if not lacking:
        return Finding("venv module", "present")
    return Finding(
        "venv module",
        "no module {}".format(" and ".join(lacking)),
        "install python{}.{}-venv with the system's package manager".format(*sys.version_info[:2]),
    )


def check_compiler(compiler: str) -> Finding:
    """Whether a C++ program can be built: AOTInductor compiles every model with this compiler."""
    remedy = "install a C++ compiler (Debian: `apt-get install g++`), or name yours in CXX"
    if shutil.which(compiler) is None:
        return Finding("C++ compiler", f"no {compiler} on PATH", remedy)
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder, "probe.cpp")
        source.write_text(_PROGRAM)
        command = [compiler, "-std=c++17", "-fopenmp", str(source), "-o", str(Path(folder, "probe"))]
        result = subprocess.run(command, capture_output=True, text=True, check=False)
    if result.returncode == 0:
        return Finding("C++ compiler", compiler)
    reason = (result.stderr.strip().splitlines() or ["it said nothing"])[0]
    return Finding("C++ compiler", f"{compiler} cannot build an OpenMP program: {reason}", remedy)


def check_glibc(libc: tuple[str, str]) -> Finding:
    """Whether the C library is new enough for the server's wheel."""
    name, version = libc
    found = "{} {}".format(name or "unknown C library", version).strip()
    if name == "glibc" and tuple(int(part) for part in version.split(".")[:2]) >= GLIBC:
        return Finding("C library", found)
    return Finding("C library", found, "use a system with glibc 2.35 or newer (Debian 12, Ubuntu 22.04)")


def check_libpython(version: tuple[int, ...]) -> Finding:
    """Whether the shared Python library exists: the server's Python stub links against it."""
    name = "libpython{}.{}.so.1.0".format(*version)
    beside = Path(sysconfig.get_config_var("LIBDIR") or "", name)
    if beside.exists():
        return Finding("libpython", str(beside))
    try:
        ctypes.CDLL(name)
    except OSError:
        package = "libpython{}.{}".format(*version)
        remedy = f"install {package} (Debian: `apt-get install {package}`), or build Python with --enable-shared"
        return Finding("libpython", f"no {name}", remedy)
    return Finding("libpython", name)


def check_disk(folder: Path, gigabytes: float) -> Finding:
    """Whether the filesystem of `folder` has room for the venv, the engine and the models."""
    existing = next(path for path in (folder.resolve(), *folder.resolve().parents) if path.exists())
    free = shutil.disk_usage(existing).free / 1e9
    found = f"{free:.1f} GB free at {existing}"
    if free >= gigabytes:
        return Finding("disk space", found)
    return Finding("disk space", found, f"free {gigabytes - free:.1f} GB more, or clone onto a larger disk")
