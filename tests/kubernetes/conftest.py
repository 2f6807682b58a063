"""The kustomize that builds what is rendered, and what it makes of the examples, since each build takes a process."""

import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import install_kubectl
import pytest
import yaml

from tests.kubernetes.example import EXAMPLES, example

Objects = list[dict[str, Any]]
Build = Callable[[Path], Objects]


class BuildFailed(AssertionError):  # noqa: N818 - named for what happened
    """What kustomize said when it would not build."""


@pytest.fixture(scope="session")
def build() -> Build:
    """Builds a folder with the kustomize of `make kubectl`. A machine without one fails, and skips nothing."""
    kubectl = install_kubectl.find_kubectl()
    assert kubectl is not None, "there is no kubectl; run `make kubectl`"

    def run(folder: Path) -> Objects:
        result = subprocess.run([kubectl, "kustomize", folder], capture_output=True, text=True, check=False)
        if result.returncode != 0:
            raise BuildFailed(result.stderr)
        return [document for document in yaml.safe_load_all(result.stdout) if document]

    return run


@pytest.fixture(scope="session")
def built(build: Build, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Objects]:
    """What is applied of each example, by `example/folder`: every overlay and every folder that stands alone."""
    root = tmp_path_factory.mktemp("rendered")
    found = {}
    for name in EXAMPLES:
        for path, text in example(name).files.items():
            (root / name / path).parent.mkdir(parents=True, exist_ok=True)
            (root / name / path).write_text(text)
        for kustomization in sorted((root / name).rglob("kustomization.yaml")):
            folder = kustomization.parent
            if "kind: Component" not in kustomization.read_text():
                found[folder.relative_to(root).as_posix()] = build(folder)
    return found
