"""The examples to edit are valid: the image's flags are known, and the repository page shows what is rendered."""

import json
import re
import subprocess
from pathlib import Path

import digits
import pytest

from deploy.repository.config import ConfigPlan, build_config
from deploy.serve import local
from deploy.serve.engines import Engine
from deploy.spec import BATCH, Dim, Spec, TensorSpec
from deploy.targets import all_targets, find_target
from tests.markdown import ROOT, fenced

DOCKERFILE = ROOT / "docker" / "server.Dockerfile"


def server_flags() -> list[str]:
    """The arguments that the image gives to tritonserver."""
    text = DOCKERFILE.read_text().replace("\\\n", " ")
    match = re.search(r"^CMD (\[.*\])$", text, re.MULTILINE)
    assert match
    flags = json.loads(match[1])
    assert flags
    return [str(flag) for flag in flags]


def test_the_image_is_that_of_a_known_target() -> None:
    base = re.findall(r"^FROM (\S+)$", DOCKERFILE.read_text(), re.MULTILINE)
    assert len(base) == 1
    assert base[0] in {target.container for target in all_targets().values()}


@pytest.mark.engine
def test_a_real_server_knows_each_flag_of_the_image(engine: Engine, tmp_path: Path) -> None:
    variables = None
    if engine.kind == "local":
        local.fill_library_folder(engine, tmp_path / "lib")
        variables = local.environment(engine, tmp_path / "lib")
    command = [str(engine.executable), "--help"]
    result = subprocess.run(command, env=variables, capture_output=True, text=True, check=False)
    known = set(re.findall(r"--[a-z][a-z-]+", result.stdout + result.stderr))
    assert "--model-repository" in known, result.stderr
    assert {flag.split("=")[0] for flag in server_flags()} - known == set()


def test_the_config_that_the_repository_page_shows_is_the_one_that_is_rendered() -> None:
    """Prints the right text on failure, to be pasted into model_repository/README.md."""
    page = ROOT / "model_repository" / "README.md"
    rendered = build_config(
        ConfigPlan(
            name="digits_resnet18",
            version=1,
            format="onnx",
            spec=Spec(
                inputs=(TensorSpec(name="image", dtype="float32", shape=(BATCH, 3, 64, 64)),),
                outputs=(TensorSpec(name="output", dtype="float32", shape=(BATCH, 10), decision_axis=1),),
                dims=(Dim(name=BATCH, minimum=1, maximum=8),),
            ),
            target=find_target("26.08-cpu"),
            threads=2,
            classes=digits.CLASSES,
        )
    )
    assert fenced(page, "protobuf") == [rendered], rendered
