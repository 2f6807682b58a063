from pathlib import Path

import pytest

from deploy.processes import prepare
from tests.convert.helpers import Read


@pytest.fixture(scope="session", autouse=True)
def _children_fork_from_a_server_with_torch() -> None:
    prepare("deploy.convert.preload")


@pytest.fixture
def read(tmp_path: Path) -> Read:
    return Read(tmp_path)


@pytest.fixture(autouse=True)
def _failed_jobs_are_kept_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DEPLOYCTL_CACHE", str(tmp_path / "cache"))
