"""The version that docker/ is rendered from: the demo's contract, on bytes that are the same everywhere.

Owns the fixture below tests/containers/repository, which was made once (`make_fixture`) and is read since: its manifest
changes neither with the machine nor with the date. Run as a script it renders docker/ again:
`python -m tests.containers.example`.
"""

import shutil
import tempfile
from pathlib import Path

from deploy.containers.render import DockerRequest, Rendered, render, write
from deploy.monitoring.objective import Objective
from deploy.repository.find import find_version
from tests.markdown import ROOT

NAME = "digits_resnet18"
REPOSITORY = Path(__file__).parent / "repository"
OUTPUT = ROOT / "docker"
TARGET = "26.08-cpu"
OBJECTIVE = Objective(model=NAME, bound_ms=15.0, quantile=0.99)


def example(folder: Path) -> Rendered:
    """docker/ as it should be. In `folder` repository and output lie to each other as the demo's do."""
    repository = folder / ".demo" / "model_repository"
    shutil.copytree(REPOSITORY, repository)
    version = find_version(repository, NAME)
    return render(DockerRequest(versions=(version,), output=folder / "docker", target=TARGET, objectives=(OBJECTIVE,)))


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as temporary:
        for path in write(example(Path(temporary)), OUTPUT):
            print(path)
