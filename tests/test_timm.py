"""timm's models from a bare state_dict to a served version."""

from pathlib import Path
from typing import Any

import pytest
import torch

from deploy.checkpoint.model import CheckpointRequest
from deploy.checkpoint.timm_entries import import_timm
from deploy.errors import ExitCode
from deploy.package import package
from deploy.repository.manifest import verify_files
from deploy.request import PackageRequest, Resources
from deploy.serve.engines import Engine
from deploy.targets import find_target
from tests.fixtures import calibrate, enliven, image_like


@pytest.mark.slow
@pytest.mark.engine
@pytest.mark.parametrize(("name", "arch"), [("test_efficientnet", None), ("test_vit", "timm/test_vit")])
def test_a_state_dict_becomes_a_served_version(name: str, arch: str | None, tmp_path: Path, engine: Engine) -> None:
    torch.manual_seed(0)
    module: Any = import_timm().create_model(name, pretrained=False, num_classes=5)
    enliven(module)
    calibrate(module, lambda rows: image_like(rows, size=160))
    torch.save(module.state_dict(), tmp_path / "birds.pt")
    request = PackageRequest(
        checkpoint=CheckpointRequest(path=tmp_path / "birds.pt", arch=arch),
        repository=tmp_path / "repository",
        target=find_target("local-cpu"),
        by_name=True,
        max_batch=4,
        resources=Resources(seconds_per_cell=0.05, threads=1),
    )
    result = package(request)
    assert result.exit_code is ExitCode.OK, result.outcome.judgement.reason
    assert {evidence.format for evidence in result.parity if evidence.judgement.passed} == {"aoti", "onnx"}
    manifest = verify_files(result.outcome.published[0].version.folder)
    assert manifest.checkpoint.architecture == f"timm/{name}"
    assert manifest.preprocessing.source.startswith(f"timm {name}.")
    assert manifest.verdicts.served is not None
    assert manifest.verdicts.served.passed
