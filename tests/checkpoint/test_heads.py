"""A network whose head training replaced by one of its own: told from its weights, or from what is said of it."""

from collections import OrderedDict
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from deploy.checkpoint.load import build_module, read_checkpoint
from deploy.checkpoint.model import Checkpoint
from deploy.errors import UsageError
from tests.checkpoint.checkpoints import saved, seeded

IMAGES = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))


def headed(head: nn.Module, *, builder: str = "resnet18", path: str = "fc") -> nn.Module:
    """A seeded network with a head of training's own at the path."""
    module = seeded(builder)
    module.set_submodule(path, head)
    return module.eval()


def read(path: Path, content: object, **asked: Any) -> Checkpoint:
    request = saved(path, content)
    return read_checkpoint(type(request)(path=request.path, **asked))


def refusal(path: Path, content: object, **asked: Any) -> str:
    with pytest.raises(UsageError) as error:
        read(path, content, **asked)
    return str(error.value)


def answers(checkpoint: Checkpoint) -> Tensor:
    with torch.no_grad():
        found = build_module(checkpoint)(IMAGES)
    assert isinstance(found, Tensor)
    return found


def trained(module: nn.Module) -> Tensor:
    with torch.no_grad():
        found = module(IMAGES)
    assert isinstance(found, Tensor)
    return found


@pytest.mark.parametrize(
    ("builder", "path", "head", "classes"),
    [
        ("resnet18", "fc", nn.Sequential(nn.Dropout(0.5), nn.Linear(512, 5)), 5),
        ("resnet18", "fc", nn.Linear(512, 3, bias=False), 3),
        ("resnet18", "fc", nn.Sequential(nn.LayerNorm(512), nn.Linear(512, 32), nn.BatchNorm1d(32)), 32),
        ("mobilenet_v3_small", "classifier", nn.Linear(576, 4), 4),
        ("mobilenet_v3_small", "classifier.3", nn.Sequential(nn.Dropout(), nn.Linear(1024, 4)), 4),
        ("efficientnet_b0", "classifier", nn.Linear(1280, 2), 2),
        ("shufflenet_v2_x0_5", "fc", nn.Sequential(OrderedDict(drop=nn.Dropout(), out=nn.Linear(1024, 6))), 6),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, nn.Module) else str(value),
)
def test_a_head_of_layers_that_weights_tell_answers_as_trained(
    builder: str, path: str, head: nn.Module, classes: int, tmp_path: Path
) -> None:
    module = headed(head, builder=builder, path=path)
    checkpoint = read(tmp_path / "a.pt", module.state_dict())
    assert (checkpoint.architecture, checkpoint.how) == (f"torchvision/{builder}", "inferred")
    assert checkpoint.num_classes == classes
    assert any(note.startswith(f"the head is training's own: {path} is ") for note in checkpoint.notes)
    torch.testing.assert_close(answers(checkpoint), trained(module), rtol=0, atol=0)


def test_wrappers_and_other_channels_are_taken_off_as_ever(tmp_path: Path) -> None:
    module = headed(nn.Sequential(nn.Dropout(), nn.Linear(512, 5)))
    module.set_submodule("conv1", nn.Conv2d(1, 64, 7, 2, 3, bias=False))
    state = {f"module.model.{name}": tensor for name, tensor in module.state_dict().items()}
    checkpoint = read(tmp_path / "a.pt", {"epoch": 3, "state_dict": state})
    assert checkpoint.options["in_channels"] == 1
    assert checkpoint.options["head"] == {"fc": {"0": "Dropout", "1": "Linear(512, 5)"}}
    # Without the names of the modules, nobody knows what may have stood behind.
    assert any("a softmax behind it" in note for note in checkpoint.notes)


def test_what_stands_between_layers_is_asked_for_and_taken_as_said(tmp_path: Path) -> None:
    head = nn.Sequential(nn.Dropout(0.2), nn.Linear(512, 16), nn.LeakyReLU(0.3), nn.Linear(16, 5), nn.Softmax(dim=1))
    module = headed(head)
    message = refusal(tmp_path / "a.pt", module.state_dict())
    assert "fc.1 is Linear(512, 16), fc.3 is Linear(16, 5); fc.0, fc.2, fc.4 without weights" in message
    assert "--head 'Dropout, Linear, ReLU, Linear, Softmax(dim=1)'" in message
    said = "nn.Dropout(0.2), Linear, torch.nn.LeakyReLU(0.3), Linear, Softmax"
    checkpoint = read(tmp_path / "a.pt", module.state_dict(), head=said)
    torch.testing.assert_close(answers(checkpoint), trained(module), rtol=0, atol=0)
    other = read(tmp_path / "a.pt", module.state_dict(), head=said.replace("LeakyReLU(0.3)", "ReLU"), arch="resnet18")
    assert not torch.allclose(answers(other), trained(module))


def test_layers_with_names_are_said_in_their_order(tmp_path: Path) -> None:
    head = nn.Sequential(OrderedDict(fc1=nn.Linear(512, 16), act=nn.GELU(), fc2=nn.Linear(16, 4), out=nn.LogSoftmax(1)))
    module = headed(head)
    said = "Linear(512, 16), GELU, Linear, LogSoftmax(dim=1)"
    for content in (module.state_dict(), dict(module.state_dict())):  # with the names of the modules, and without
        assert "fc.fc1 is Linear(512, 16), fc.fc2 is Linear(16, 4)" in refusal(tmp_path / "a.pt", content)
        checkpoint = read(tmp_path / "a.pt", content, head=said)
        torch.testing.assert_close(answers(checkpoint), trained(module), rtol=0, atol=0)


def test_a_named_layer_is_said_with_what_stands_round_it(tmp_path: Path) -> None:
    module = headed(nn.Sequential(OrderedDict(act=nn.Tanh(), out=nn.Linear(512, 4), prob=nn.Softmax(1))))
    assert "fc.act, fc.prob without weights" in refusal(tmp_path / "a.pt", module.state_dict())
    for content in (module.state_dict(), dict(module.state_dict())):
        checkpoint = read(tmp_path / "a.pt", content, head="Tanh, Linear, Softmax(dim=1)")
        torch.testing.assert_close(answers(checkpoint), trained(module), rtol=0, atol=0)


def test_a_softmax_behind_the_builder_s_own_head_can_be_said(tmp_path: Path) -> None:
    module = seeded("efficientnet_b0", num_classes=3).eval()
    module.get_submodule("classifier").append(nn.Softmax(1))  # type: ignore[operator]
    assert "goes on behind its last layer" in refusal(tmp_path / "a.pt", module.state_dict())
    checkpoint = read(tmp_path / "a.pt", module.state_dict(), head="Dropout, Linear, Softmax(dim=1)")
    torch.testing.assert_close(answers(checkpoint), trained(module), rtol=0, atol=0)


@pytest.mark.parametrize(
    ("said", "message"),
    [
        ("Dropout, Linear", "2 layers, and the file of resnet18 tells 4 at fc"),
        ("Linear, ReLU, Linear", "Linear at fc.0, and the file of resnet18 tells no weights there"),
        ("Dropout, Linear, ReLU, Linear(16, 6)", "Linear(16, 6) at fc.3, and the file of resnet18 tells Linear(16, 5)"),
        ("Dropout, Linear, ReLU, Linear(bias=False)", "tells Linear(16, 5)"),
        ("Dropout, LayerNorm, ReLU, Linear", "LayerNorm at fc.1, and the file of resnet18 tells Linear(512, 16)"),
        ("Dropout, Linear, ReLU, Linear, Softmax", "5 layers, and the file of resnet18 tells 4 at fc"),
        ("Dropout, Linear, Conv2d, Linear", "Conv2d is no layer that is known here"),
        ("Dropout, Linear, __import__('os').getcwd(), Linear", "is no list of layers"),
        ("Dropout, Linear, ReLU(inplace=print), Linear", "is no list of layers"),
        ("Dropout, Linear, GELU('x', 3), Linear", "torch.nn makes no layer of GELU('x', 3)"),
        ("Dropout, Linear, ReLU Linear", "is no list of layers"),
        ("ReLU", "no layer with weights"),
    ],
)
def test_a_head_that_is_not_the_file_s_is_refused(said: str, message: str, tmp_path: Path) -> None:
    module = headed(nn.Sequential(nn.Dropout(), nn.Linear(512, 16), nn.ReLU(), nn.Linear(16, 5)))
    assert message in refusal(tmp_path / "a.pt", module.state_dict(), head=said)


def test_a_head_of_other_code_is_told_the_way_out(tmp_path: Path) -> None:
    for head in (
        nn.ModuleList([nn.Linear(512, 4), nn.Linear(512, 6)]),
        nn.Sequential(nn.Sequential(nn.Dropout(), nn.Linear(512, 3))),
        nn.Bilinear(512, 512, 2),
    ):
        message = refusal(tmp_path / "a.pt", headed(head).state_dict())
        assert "resnet18 with another head: give a function that builds it and replaces fc" in message
    state = seeded("resnet18", num_classes=3).state_dict()
    assert "2 layers, and the file of resnet18 tells 1 at fc" in refusal(
        tmp_path / "a.pt", state, head="Linear, Softmax"
    )
    assert "--head and --factory" in refusal(tmp_path / "a.pt", state, head="Linear", factory="a:b")


def test_a_head_beside_no_classifier_is_refused(tmp_path: Path) -> None:
    state = {"layers.0.weight": torch.ones(4, 8), "layers.2.weight": torch.ones(2, 4)}
    assert "no classifier's that is known here" in refusal(tmp_path / "a.pt", state, head="Linear, ReLU, Linear")


def test_a_head_on_a_network_of_timm_answers_as_trained(tmp_path: Path) -> None:
    import timm

    module = timm.create_model("resnet26d", pretrained=False)
    module.fc = nn.Sequential(nn.Dropout(), nn.Linear(2048, 5))
    checkpoint = read(tmp_path / "a.pt", module.eval().state_dict())
    assert (checkpoint.architecture, checkpoint.num_classes) == ("timm/resnet26d", 5)
    torch.testing.assert_close(answers(checkpoint), trained(module), rtol=0, atol=0)

    module = timm.create_model("test_convnext", pretrained=False)
    last = module.get_submodule("head.fc")
    assert isinstance(last, nn.Linear)
    module.set_submodule("head.fc", nn.Sequential(nn.Linear(last.in_features, 16), nn.GELU(), nn.Linear(16, 3)))
    state = module.eval().state_dict()
    assert "--head 'Linear, ReLU, Linear'" in refusal(tmp_path / "b.pt", state)
    asked = read(tmp_path / "b.pt", state, head="Linear, GELU, Linear", arch="timm/test_convnext")
    torch.testing.assert_close(answers(asked), trained(module), rtol=0, atol=0)
    wrong = refusal(tmp_path / "b.pt", state, head="Linear, GELU(1, 2), Linear", arch="timm/test_convnext")
    assert "torch.nn makes no layer of GELU(1, 2)" in wrong


def test_where_several_networks_of_timm_have_the_body_one_is_asked_for(tmp_path: Path) -> None:
    import timm

    module = timm.create_model("efficientnet_b0", pretrained=False)
    module.classifier = nn.Sequential(nn.Dropout(), nn.Linear(1280, 5))
    message = refusal(tmp_path / "a.pt", module.state_dict())
    assert "--arch timm/efficientnet_b0" in message
    assert read(tmp_path / "a.pt", module.state_dict(), arch="timm/efficientnet_b0").num_classes == 5


def test_networks_of_timm_with_the_same_body_are_named_beside_torchvision_s(tmp_path: Path) -> None:
    checkpoint = read(tmp_path / "a.pt", headed(nn.Sequential(nn.Dropout(), nn.Linear(512, 5))).state_dict())
    assert any("resnet18, resnetblur18" in note for note in checkpoint.notes)
