"""Which engines are found, and what is said where none can be."""

from dataclasses import replace
from pathlib import Path

import pytest

from deploy.errors import MissingError
from deploy.serve.engines import (
    MARKER,
    WHEEL,
    WHEEL_SHA256,
    InstalledWheel,
    Machine,
    check_machine,
    engine_folder,
    find_engine,
    find_libpython,
    installed_engine,
    list_engines,
)

LINUX = Machine(
    platform=("linux", "x86_64"), glibc=(2, 36), python=(3, 11), libpython=Path("/usr/lib/libpython3.11.so.1.0")
)


@pytest.fixture
def bare(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache and a PATH without any server."""
    monkeypatch.setenv("DEPLOYCTL_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    for variable in ("NVIDIA_TRITON_SERVER_VERSION", "TRITON_SERVER_VERSION"):
        monkeypatch.delenv(variable, raising=False)
    return tmp_path


def native(folder: Path, version: str | None) -> Path:
    """What a container has: a server on PATH, and a file with its version."""
    server = folder / "bin" / "tritonserver"
    server.parent.mkdir()
    server.write_text("#!/bin/sh\n")
    server.chmod(0o755)
    if version:
        (folder / "TRITON_VERSION").write_text(f"{version}\n")
    return server


def unpacked(files: dict[str, bytes], sha256: str = WHEEL_SHA256) -> Path:
    """An engine's folder with these files and a marker that names them."""
    folder = engine_folder()
    for name, data in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
    InstalledWheel(
        wheel=WHEEL,
        sha256=sha256,
        release="24.10",
        server_version="2.51.0",
        files={name: len(data) for name, data in files.items()},
    ).write(folder / MARKER)
    return folder


def test_no_engine_names_the_command_and_the_way_without(bare: Path) -> None:
    with pytest.raises(MissingError, match="no tritonserver") as caught:
        find_engine()
    assert "deployctl engine install" in caught.value.fix
    assert "--no-serve-check" in caught.value.fix
    assert list_engines() == ()


def test_a_native_engine_that_was_asked_for_is_not_replaced(bare: Path) -> None:
    unpacked({"a": b"1"})
    with pytest.raises(MissingError, match="on PATH"):
        find_engine("native")


def test_a_server_on_path_is_native_and_comes_first(bare: Path) -> None:
    unpacked({"a": b"1"})
    server = native(bare, "2.70.0")
    engine = find_engine()
    assert (engine.kind, engine.release, engine.server_version) == ("native", "26.06", "2.70.0")
    assert (engine.executable, engine.mode) == (server, "served (native)")
    assert find_engine("local").mode == "served (adapted)"
    assert [engine.kind for engine in list_engines()] == ["native", "local"]


def test_a_native_server_of_no_known_version_is_still_one(bare: Path) -> None:
    native(bare, None)
    assert find_engine().release == "unknown"


@pytest.mark.parametrize("damage", ["file gone", "file cut", "other wheel", "no marker", "marker edited"])
def test_an_engine_that_is_not_whole_is_not_trusted(bare: Path, damage: str) -> None:
    folder = unpacked({"bin/a": b"123", "lib/b": b"45"}, "0" * 64 if damage == "other wheel" else WHEEL_SHA256)
    if damage == "file gone":
        (folder / "lib/b").unlink()
    elif damage == "file cut":
        (folder / "bin/a").write_bytes(b"12")
    elif damage == "no marker":
        (folder / MARKER).unlink()
    elif damage == "marker edited":
        (folder / MARKER).write_text("{}")
    assert installed_engine() is None


def test_a_whole_engine_is_trusted(bare: Path) -> None:
    folder = unpacked({"bin/a": b"123", "lib/b": b"45"})
    engine = installed_engine()
    assert engine is not None
    assert engine.root == folder
    assert engine.libpython == find_libpython()


def test_this_machine_can_run_the_local_engine() -> None:
    check_machine()
    check_machine(LINUX)


@pytest.mark.parametrize(
    ("machine", "found", "remedy"),
    [
        (replace(LINUX, platform=("darwin", "arm64")), "darwin on arm64", "--no-serve-check"),
        (replace(LINUX, glibc=(2, 31)), "glibc 2.31", "Debian 12"),
        (replace(LINUX, glibc=(0, 0)), "not glibc", "Debian 12"),
        (replace(LINUX, python=(3, 14)), "Python 3.14", "3.11 or 3.12"),
        (replace(LINUX, libpython=None), "libpython3", "apt-get install libpython3.11"),
    ],
    ids=["system", "old glibc", "other C library", "new python", "no libpython"],
)
def test_what_a_machine_lacks_is_named_with_its_remedy(machine: Machine, found: str, remedy: str) -> None:
    with pytest.raises(MissingError, match=found) as caught:
        check_machine(machine)
    assert remedy in caught.value.fix


def test_python_313_needs_no_libpython_of_the_system() -> None:
    check_machine(replace(LINUX, python=(3, 13), libpython=None))
