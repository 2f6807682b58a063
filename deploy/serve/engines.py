"""Which real tritonservers this machine can run: the local one from a PyPI wheel, or a native one on PATH.

Owns finding them and what they need of the machine; `install` unpacks the local one, `server` starts either.
Called by package, verify and the commands `engine` and `serve`.
"""

import os
import platform
import re
import shutil
import subprocess
import sys
import sysconfig
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from deploy.cache import cache_folder
from deploy.errors import MissingError, UsageError
from deploy.records import Record
from deploy.targets import all_targets

EngineKind = Literal["local", "native"]
KINDS: tuple[EngineKind, ...] = ("native", "local")

LOCAL_RELEASE = "24.10"
LOCAL_VERSION = "2.51.0"
WHEEL = "nvidia_pytriton-0.7.0-py3-none-manylinux_2_35_x86_64.whl"
WHEEL_SHA256 = "21f063ff93bb426d0c06b7a55e7eb9efcfe62c0dddd9a908e9877e18710128df"
MARKER = "engine.json"
SERVER = "pytriton/tritonserver"
LIBRARIES = "nvidia_pytriton.libs"

_OLDEST_GLIBC = (2, 35)
_UNKNOWN = "unknown"
# The stub of Python 3.13 is linked against a libpython that the wheel itself carries.
_STUBS_NEEDING_LIBPYTHON = ((3, 11), (3, 12))
_STUBS = (*_STUBS_NEEDING_LIBPYTHON, (3, 13))


@dataclass(frozen=True, slots=True, kw_only=True)
class Engine:
    """A tritonserver that can be started. `root` is the unpacked wheel of the local engine, None for a native one.

    `libpython` is the shared library that the local engine's stub loads, None where it needs none.
    """

    kind: EngineKind
    release: str
    server_version: str
    executable: Path
    root: Path | None = None
    libpython: Path | None = None

    @property
    def mode(self) -> str:
        """What served parity by this engine is called."""
        return "served (native)" if self.kind == "native" else "served (adapted)"

    @property
    def stub(self) -> Path:
        """The python backend's stub for the running Python; local engine only."""
        assert self.root is not None
        return self.root / SERVER / "python_backend_stubs" / _python() / "triton_python_backend_stub"


class InstalledWheel(Record):
    """The marker of an unpacked wheel: which one it was, and the size in bytes of each file taken from it."""

    wheel: str
    sha256: str
    release: str
    server_version: str
    files: dict[str, int]


@dataclass(frozen=True, slots=True, kw_only=True)
class Machine:
    """What decides whether the local engine runs: system and processor, C library, Python and its shared library.

    `glibc` is (0, 0) for another C library.
    """

    platform: tuple[str, str]
    glibc: tuple[int, int]
    python: tuple[int, int]
    libpython: Path | None

    @classmethod
    def here(cls) -> "Machine":
        """The machine and the Python that this runs on."""
        return cls(
            platform=(sys.platform, platform.machine()),
            glibc=_glibc(),
            python=(sys.version_info.major, sys.version_info.minor),
            libpython=find_libpython(),
        )


def find_engine(preferred: EngineKind | None = None) -> Engine:
    """The preferred engine, else a native one, else the local one. Raises MissingError if there is none."""
    for kind in (preferred,) if preferred else KINDS:
        if engine := (_native() if kind == "native" else installed_engine()):
            return engine
    if preferred == "native":
        raise MissingError("there is no `tritonserver` on PATH", fix="install Triton, or use --engine local")
    check_machine()
    raise MissingError(
        "no tritonserver was found to serve with",
        expected="the local engine, or a `tritonserver` on PATH",
        fix="run `deployctl engine install` once, or go without served proof: `deployctl package --no-serve-check`",
    )


def list_engines() -> tuple[Engine, ...]:
    """Every engine that is ready to be used on this machine."""
    return tuple(engine for engine in (_native(), installed_engine()) if engine)


def engine_folder() -> Path:
    """Where the local engine lies once it is installed; named after the wheel, so another wheel never collides."""
    return cache_folder("engines", f"triton-{LOCAL_RELEASE}-{WHEEL_SHA256[:12]}")


def installed_engine() -> Engine | None:
    """The local engine if the pinned wheel was unpacked whole and this Python can run its stub; else None.

    Raises MissingError if it is installed but this machine or this Python cannot run it.
    """
    folder = engine_folder()
    if not _is_whole(folder):
        return None
    check_machine()
    return Engine(
        kind="local",
        release=LOCAL_RELEASE,
        server_version=LOCAL_VERSION,
        executable=folder / SERVER / "bin" / "tritonserver",
        root=folder,
        libpython=find_libpython(),
    )


def check_machine(machine: "Machine | None" = None) -> None:
    """Raises MissingError if the local engine cannot run on the machine (this one by default), naming the remedy."""
    here = machine or Machine.here()
    elsewhere = "put a `tritonserver` on PATH, or go without served proof: `deployctl package --no-serve-check`"
    if here.platform != ("linux", "x86_64"):
        raise MissingError(f"this is {' on '.join(here.platform)}", expected="x86-64 Linux", fix=elsewhere)
    if here.glibc < _OLDEST_GLIBC:
        raise MissingError(
            f"the C library here is {f'glibc {_dotted(here.glibc)}' if any(here.glibc) else 'not glibc'}",
            expected=f"glibc {_dotted(_OLDEST_GLIBC)} or newer, which the local engine is built for",
            fix=f"use Debian 12, Ubuntu 22.04 or newer, {elsewhere}",
        )
    if here.python not in _STUBS:
        raise MissingError(
            f"this is Python {_dotted(here.python)}",
            expected=f"one that the local engine has a stub for: {', '.join(map(_dotted, _STUBS))}",
            fix="make the virtual environment with Python 3.11 or 3.12",
        )
    if here.python in _STUBS_NEEDING_LIBPYTHON and here.libpython is None:
        raise MissingError(
            f"{_libpython_name()} was not found for {sys.executable}",
            expected="the shared library of the running Python, which the local engine's stub loads",
            fix=f"run `apt-get install libpython{_dotted(here.python)}`, or use a Python built with --enable-shared",
        )


def find_libpython() -> Path | None:
    """The shared library of the running Python, beside it or known to the dynamic linker; None if there is none."""
    for folder in (sysconfig.get_config_var("LIBDIR"), Path(sys.base_prefix, "lib")):
        if folder and (candidate := Path(folder, _libpython_name())).is_file():
            return candidate
    return _known_to_linker(_libpython_name())


def _known_to_linker(library: str) -> Path | None:
    ldconfig = shutil.which("ldconfig", path=f"{os.environ.get('PATH', '')}:/sbin:/usr/sbin")
    if ldconfig is None:
        return None
    listing = subprocess.run([ldconfig, "-p"], capture_output=True, text=True, check=False).stdout
    match = re.search(rf"^\s*{re.escape(library)} .*=> (.+)$", listing, re.MULTILINE)
    return Path(match[1]) if match else None


def _is_whole(folder: Path) -> bool:
    """Whether the folder has the marker of the pinned wheel and every file that the marker names, in its size."""
    try:
        marker = InstalledWheel.read(folder / MARKER)
        sizes = {name: (folder / name).stat().st_size for name in marker.files}
    except (UsageError, OSError):
        return False
    return marker.sha256 == WHEEL_SHA256 and sizes == marker.files


def _native() -> Engine | None:
    found = shutil.which("tritonserver")
    if found is None:
        return None
    executable = Path(found).resolve()
    version = _first_line(executable.parents[1] / "TRITON_VERSION") or os.environ.get("TRITON_SERVER_VERSION")
    releases = {target.server_version: target.triton for target in all_targets().values()}
    release = os.environ.get("NVIDIA_TRITON_SERVER_VERSION") or releases.get(version)
    return Engine(kind="native", release=release or _UNKNOWN, server_version=version or _UNKNOWN, executable=executable)


def _first_line(path: Path) -> str | None:
    try:
        return path.read_text().strip().splitlines()[0]
    except (OSError, IndexError):
        return None


def _glibc() -> tuple[int, int]:
    try:
        name = os.confstr("CS_GNU_LIBC_VERSION") or ""
    except (ValueError, OSError):
        return (0, 0)
    match = re.search(r"(\d+)\.(\d+)", name)
    return (int(match[1]), int(match[2])) if match else (0, 0)


def _dotted(version: tuple[int, int]) -> str:
    return f"{version[0]}.{version[1]}"


def _python() -> str:
    return _dotted((sys.version_info.major, sys.version_info.minor))


def _libpython_name() -> str:
    return f"libpython{_python()}.so.1.0"
