"""A network with a head of training's own, from a bare state_dict to a served version."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from deploy.checkpoint.model import CheckpointRequest
from deploy.convert.model import Format
from deploy.errors import ExitCode
from deploy.package import package
from deploy.request import PackageRequest, Resources
from deploy.serve.engines import Engine
from deploy.targets import find_target
from tests.fixtures import calibrate, enliven, image_like

SAID = "Dropout(0.2), Linear, LeakyReLU(0.3), Linear"
SIZE = 64


@pytest.fixture(scope="module")
def asked(tmp_path_factory: pytest.TempPathFactory) -> PackageRequest:
    """A ResNet-18 with two linear layers as its head, and images with what training computed for them."""
    from deploy.checkpoint.vision import import_torchvision

    folder = tmp_path_factory.mktemp("heads")
    torch.manual_seed(0)
    module: nn.Module = import_torchvision().models.resnet18(weights=None)
    head = nn.Sequential(nn.Dropout(0.2), nn.Linear(512, 32), nn.LeakyReLU(0.3), nn.Linear(32, 5))
    module.set_submodule("fc", head)
    enliven(module)
    calibrate(module, lambda rows: image_like(rows, size=SIZE))
    torch.save(module.state_dict(), folder / "birds.pt")
    images = image_like(12, size=SIZE, seed=1)
    with torch.no_grad():
        outputs = module(images)
    np.savez(folder / "a.npz", allow_pickle=False, **{"image": images.numpy(), "expected/output": outputs.numpy()})
    return PackageRequest(
        checkpoint=CheckpointRequest(path=folder / "birds.pt", head=SAID, input_shapes=((3, SIZE, SIZE),)),
        repository=folder / "repository",
        target=find_target("local-cpu"),
        samples=folder / "a.npz",
        formats=("onnx",),
        by_name=True,
        max_batch=4,
        resources=Resources(seconds_per_cell=0.05, threads=1),
    )


@pytest.mark.engine
@pytest.mark.parametrize("formats", [("onnx",), pytest.param(("aoti",), marks=pytest.mark.slow)])
def test_it_is_served_and_answers_as_training_did(
    formats: tuple[Format, ...], asked: PackageRequest, engine: Engine
) -> None:
    result = package(replace(asked, formats=formats, name="-".join(formats)))
    assert result.exit_code is ExitCode.OK, result.outcome.judgement.reason
    assert result.behaviour.status == "confirmed"
    (served,) = result.outcome.served
    assert served.judgement.passed


def test_another_activation_than_training_s_is_no_pass(asked: PackageRequest) -> None:
    wrong = replace(asked.checkpoint, head=SAID.replace("LeakyReLU(0.3)", "ReLU"))
    result = package(replace(asked, checkpoint=wrong, name="wrong", serve_check=False))
    assert result.exit_code is ExitCode.NO
    assert "not the architecture that was trained" in result.outcome.judgement.reason
    assert not result.outcome.published
