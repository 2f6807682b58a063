"""Known architectures from a bare state_dict to answers of a real tritonserver, both formats, with no false alarm."""

from pathlib import Path

import pytest

from deploy.checkpoint.model import CheckpointRequest
from deploy.evidence import Verdict
from deploy.package import package
from deploy.request import PackageRequest, Resources
from deploy.serve.engines import Engine
from deploy.targets import find_target
from tests.fixtures import save_state_dict, seeded_module

QUICK = ("mobilenet_v3_small",)
SLOW = ("resnet18", "efficientnet_b0", "vit_b_16", "swin_t", "convnext_tiny", "densenet121", "regnet_y_400mf")


@pytest.mark.engine
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("name", [*QUICK, *(pytest.param(name, marks=pytest.mark.slow) for name in SLOW)])
def test_a_bare_state_dict_is_identified_proven_and_served(name: str, tmp_path: Path, engine: Engine) -> None:
    checkpoint = save_state_dict(seeded_module(name), tmp_path / "weights.pt")
    result = package(
        PackageRequest(
            checkpoint=CheckpointRequest(path=checkpoint),
            repository=tmp_path / "repository",
            target=find_target("local-cpu"),
            name=name,
            all_formats=True,
            by_name=True,
            max_batch=4,
            resources=Resources(seconds_per_cell=0.3),
        )
    )
    assert result.checkpoint.architecture == f"torchvision/{name}"
    assert result.checkpoint.how == "inferred"
    assert result.outcome.judgement.verdict is Verdict.PASS, result.outcome.judgement.reason
    assert {published.version.name for published in result.outcome.published} == {f"{name}_aoti", f"{name}_onnx"}
    assert len(result.outcome.served) == 2
    assert all(served.judgement.passed and served.executions < served.inferences for served in result.outcome.served)
    assert result.behaviour.status == "unconfirmed"
