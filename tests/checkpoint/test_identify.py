"""Every builder that weights can tell apart is identified, whatever its head and input channels."""

import pytest

from deploy.checkpoint.architecture import decode, encode
from deploy.checkpoint.build import build_architecture
from deploy.checkpoint.identify import identify, match_architecture, require_match
from deploy.checkpoint.zoo import find_architecture, load_zoo
from deploy.errors import UsageError
from tests.checkpoint.checkpoints import bound_shapes

ZOO = load_zoo()
FORMS = {"googlenet", "googlenet+transform_input", "inception_v3", "inception_v3+transform_input"}
ALONE = [name for name in ZOO if name not in FORMS]


def test_the_zoo_holds_every_classification_builder() -> None:
    assert len({entry.builder for entry in ZOO.values()}) == 80
    assert set(ZOO) >= FORMS


def test_every_architecture_has_a_head_an_image_size_and_a_stem() -> None:
    assert [name for name, entry in ZOO.items() if not entry.head or entry.transforms is None] == []
    assert {name for name, entry in ZOO.items() if entry.stem is None} == {name for name in FORMS if "+" in name}


@pytest.mark.parametrize("name", ALONE)
@pytest.mark.parametrize(("classes", "channels"), [(1000, 3), (7, 3), (2, 1), (1, 12)])
def test_identified_with_other_classes_and_channels(name: str, classes: int, channels: int) -> None:
    match = identify(bound_shapes(ZOO[name], classes=classes, channels=channels), ZOO)
    assert match.architecture.name == name
    assert (match.num_classes, match.in_channels) == (classes, channels)
    assert match.options.get("in_channels", 3) == channels


@pytest.mark.parametrize(
    "name", ["resnet18", "mobilenet_v3_small", "regnet_y_400mf", "squeezenet1_0", "mnasnet0_5", "maxvit_t"]
)
def test_identified_from_a_real_module(name: str) -> None:
    module = build_architecture(ZOO[name], {"num_classes": 5, "in_channels": 1})
    match = identify({key: tuple(tensor.shape) for key, tensor in module.state_dict().items()}, ZOO)
    assert (match.architecture.name, match.num_classes, match.in_channels) == (name, 5, 1)


@pytest.mark.slow
@pytest.mark.parametrize("name", ZOO)
def test_identified_from_every_real_module(name: str) -> None:
    entry = ZOO[name]
    options = {**entry.options, "num_classes": 5} | ({"in_channels": 4} if entry.stem else {})
    state = build_architecture(entry, options).state_dict()
    match = match_architecture(entry, {key: tuple(tensor.shape) for key, tensor in state.items()})
    assert not match.difference
    assert match.options == options | ({"image_size": 224} if entry.position else {})


@pytest.mark.parametrize("builder", ["googlenet", "inception_v3"])
def test_forms_that_weights_cannot_tell_apart_are_all_named(builder: str) -> None:
    with pytest.raises(UsageError) as caught:
        identify(bound_shapes(ZOO[builder], classes=5, channels=3), ZOO)
    message = str(caught.value)
    assert f"--arch {builder} or --arch {builder}+transform_input" in message
    assert "pre-trained weights" in message


def test_one_input_channel_rules_out_the_form_for_three() -> None:
    assert identify(bound_shapes(ZOO["googlenet"], classes=5, channels=1), ZOO).architecture.name == "googlenet"


@pytest.mark.parametrize("present", [True, False])
def test_auxiliary_heads_may_be_there_or_not_and_of_any_size(present: bool) -> None:
    entry = ZOO["inception_v3"]
    shapes = bound_shapes(entry, classes=5, channels=3)
    if present:
        shapes |= dict.fromkeys(entry.auxiliary, (1000,))
    assert not match_architecture(entry, shapes).difference


@pytest.mark.parametrize(("name", "patch"), [("vit_b_16", 16), ("vit_b_32", 32), ("vit_h_14", 14)])
def test_the_positional_embedding_gives_the_image_size(name: str, patch: int) -> None:
    shapes = dict(ZOO[name].shapes)
    shapes["encoder.pos_embedding"] = (1, 1 + 6 * 6, shapes["encoder.pos_embedding"][2])
    match = identify(shapes, ZOO)
    assert (match.architecture.name, match.image_size, match.options["image_size"]) == (name, 6 * patch, 6 * patch)


def test_an_embedding_that_is_no_square_of_patches_is_a_difference() -> None:
    shapes = dict(ZOO["vit_b_16"].shapes) | {"encoder.pos_embedding": (1, 50 + 2, 768)}
    assert match_architecture(ZOO["vit_b_16"], shapes).difference.reshaped[0][0] == "encoder.pos_embedding"


def test_a_replaced_head_is_refused_with_what_differs() -> None:
    shapes = dict(ZOO["resnet18"].shapes)
    shapes["fc.1.weight"], shapes["fc.1.bias"] = shapes.pop("fc.weight"), shapes.pop("fc.bias")
    with pytest.raises(UsageError) as caught:
        identify(shapes, ZOO)
    message = str(caught.value)
    first = message.splitlines()[2]
    assert "resnet18: 100 of 104 tensors agree" in first
    assert "missing: fc.weight, fc.bias; unexpected: fc.1.weight, fc.1.bias" in first
    assert message.count("tensors agree") == 3
    assert "--factory package.module:function" in message


def test_a_head_without_bias_is_another_architecture() -> None:
    shapes = {name: shape for name, shape in ZOO["resnet18"].shapes.items() if name != "fc.bias"}
    with pytest.raises(UsageError, match=r"resnet18: 101 of 102 tensors agree; missing: fc\.bias"):
        identify(shapes, ZOO)


def test_weights_of_something_else_entirely() -> None:
    with pytest.raises(UsageError, match="no tensor agrees"):
        identify({"layers.0.attention.wq": (64, 64)}, ZOO)


def test_asked_and_wrong_names_each_difference() -> None:
    shapes = dict(ZOO["resnet18"].shapes)
    shapes["layer1.0.conv1.weight"] = (64, 64, 5, 5)
    shapes["extra"] = shapes.pop("bn1.bias")
    with pytest.raises(UsageError) as caught:
        require_match(match_architecture(ZOO["resnet18"], shapes))
    message = str(caught.value)
    assert "missing: bn1.bias" in message
    assert "unexpected: extra" in message
    assert "layer1.0.conv1.weight is [64, 64, 5, 5], not [64, 64, 3, 3]" in message


def test_names_with_and_without_the_library() -> None:
    assert find_architecture("resnet18") is find_architecture("torchvision/resnet18")


def test_an_unknown_name_gets_the_nearest() -> None:
    with pytest.raises(UsageError, match=r"no architecture 'ResNet-18'[\s\S]*nearest: resnet18"):
        find_architecture("ResNet-18")


def test_the_index_survives_its_file_form() -> None:
    assert decode(encode(ZOO)) == ZOO
    assert encode(decode(encode(ZOO))) == encode(ZOO)
