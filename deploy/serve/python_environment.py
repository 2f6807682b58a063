"""The environment that the local engine gives to models of Triton's python backend: this one, with an older numpy.

Owns fetching it once, pinned by SHA-256, and finding it. Called by `engine install`, and by `local` for such models.

The stub of release 24.10 was compiled against numpy 1: beside numpy 2 it hands empty arrays out and wrong ones in, and
images and texts as bytes cannot go round it by DLPack. Newer releases pin `numpy<2` in their images themselves.
"""

import shutil
import sys
import sysconfig
import tempfile
import zipfile
from contextlib import suppress
from pathlib import Path

from deploy.cache import cache_folder
from deploy.errors import MissingError
from deploy.files import disk_errors_explained, rename_new, sha256_bytes, sync_tree
from deploy.serve.install import PinnedWheel, check_member, only_one

ENVIRONMENT_PARAMETER = "EXECUTION_ENV_PATH"
_DIGESTS = {
    (3, 11): "666dbfb6ec68962c033a450943ded891bed2d54e6755e35e5835d63f4f6931d5",
    (3, 12): "675d61ffbfa78604709862923189bad94014bef562cc35cf61d3a07bba02a7ed",
}
_PLATFORM = "manylinux_2_17_x86_64"
_SITE = "site"
_WHOLE = ".whole"


def numpy_wheel() -> PinnedWheel:
    """The wheel for the running Python. Raises MissingError for a Python that has none."""
    python = (sys.version_info.major, sys.version_info.minor)
    if python not in _DIGESTS:
        raise MissingError(
            f"this is Python {python[0]}.{python[1]}, which numpy 1.26 has no pinned wheel for",
            expected="Python 3.11 or 3.12",
            fix="make the virtual environment with one of them",
        )
    tag = f"cp{python[0]}{python[1]}"
    return PinnedWheel(
        requirement="numpy==1.26.4",
        platform=_PLATFORM,
        file=f"numpy-1.26.4-{tag}-{tag}-{_PLATFORM}.manylinux2014_x86_64.whl",
        sha256=_DIGESTS[python],
    )


def find_python_environment() -> Path:
    """The folder to name in a model's EXECUTION_ENV_PATH. Raises MissingError if numpy was not installed."""
    numpy = _folder()
    if not (numpy / _WHOLE).is_file():
        raise MissingError(
            "the local engine lacks numpy 1.26, which its python backend needs to exchange bytes",
            expected=str(numpy),
            fix="run `deployctl engine install` again: it fetches what is missing",
        )
    # Of this environment and of no other: it leads to the packages that are installed here.
    folder = numpy / f"for-{sha256_bytes(sys.prefix.encode())[:12]}"
    if not folder.exists():
        with tempfile.TemporaryDirectory(dir=numpy, prefix=".stage-") as stage:
            made = Path(stage, "environment")
            _write_environment(made, folder, numpy / _SITE)
            with suppress(FileExistsError):
                rename_new(made, folder)
    return folder


def install_python_environment(from_file: Path | None = None) -> Path:
    """The folder, made now unless it was before, from the wheel at hand or by pip.

    Raises as `PinnedWheel.fetch` and `PinnedWheel.check` do.
    """
    wheel, folder = numpy_wheel(), _folder()
    if from_file is not None:
        wheel.check(from_file)
    with disk_errors_explained("installing the engine's numpy"), only_one(folder.parent):
        if not (folder / _WHOLE).is_file():
            with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".stage-") as stage:
                made = Path(stage, "environment")
                _unpack(from_file or wheel.fetch(Path(stage)), made)
                shutil.rmtree(folder, ignore_errors=True)
                rename_new(made, folder)
    return folder


def _folder() -> Path:
    wheel = numpy_wheel()
    return cache_folder("environments", f"numpy-1.26.4-{wheel.sha256[:12]}")


def _unpack(wheel: Path, made: Path) -> None:
    """The wheel without its tests."""
    with zipfile.ZipFile(wheel) as archive:
        wanted = [member for member in archive.infolist() if "/tests/" not in member.filename]
        for member in wanted:
            check_member(member)
        archive.extractall(made / _SITE, members=wanted)
    (made / _WHOLE).touch()
    sync_tree(made)


def _write_environment(made: Path, place: Path, numpy: Path) -> None:
    """A virtual environment as far as an embedded interpreter looks at one, which heeds no PYTHONPATH.

    It finds its home by the first python3 on PATH, and its packages by the path file: numpy's before all others.
    """
    programs = made / "bin"
    programs.mkdir(parents=True)
    (programs / "activate").write_text(f'export PATH="{place / "bin"}:$PATH"\n')
    (programs / "python3").symlink_to(Path(sys.executable).resolve())
    (made / "pyvenv.cfg").write_text(f"home = {Path(sys.base_prefix, 'bin')}\ninclude-system-site-packages = false\n")
    packages = made / "lib" / f"python{sys.version_info.major}.{sys.version_info.minor}" / "site-packages"
    packages.mkdir(parents=True)
    own = dict.fromkeys((sysconfig.get_path("purelib"), sysconfig.get_path("platlib")))
    (packages / "deployctl.pth").write_text("".join(f"{path}\n" for path in (numpy, *own)))
