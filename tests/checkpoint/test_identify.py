"""Every builder that weights can tell apart is identified, whatever its kind, head and input channels."""

from collections import Counter

import pytest

from deploy.checkpoint.architecture import decode, encode
from deploy.checkpoint.build import build_architecture
from deploy.checkpoint.identify import identify, match_architecture, require_match
from deploy.checkpoint.zoo import find_architecture, load_zoo
from deploy.errors import UsageError
from tests.checkpoint.checkpoints import bound_shapes

ZOO = load_zoo()
RIVALS = {
    "googlenet": "googlenet+transform_input",
    "inception_v3": "inception_v3+transform_input",
    "retinanet_resnet50_fpn": "retinanet_resnet50_fpn+coco_v1",
    "fasterrcnn_mobilenet_v3_large_320_fpn": "fasterrcnn_mobilenet_v3_large_fpn",
}
QUANTIZABLE = [name for name in ZOO if name.startswith("quantized_")]
ALONE = [name for name in ZOO if name not in {*RIVALS, *RIVALS.values(), *QUANTIZABLE}]
KINDS = {"classification": 80 + 12, "segmentation": 6, "video": 9, "flow": 2, "detection": 5, "two-stage detection": 7}


def test_the_zoo_holds_every_builder() -> None:
    builders = {entry.builder: entry.kind for entry in ZOO.values()}
    assert Counter(builders.values()) == KINDS
    assert set(ZOO) >= {*RIVALS, *RIVALS.values()}


def test_every_architecture_has_a_head_an_input_size_and_a_stem() -> None:
    assert [name for name, entry in ZOO.items() if entry.size is None or entry.transforms is None] == []
    assert {entry.kind for entry in ZOO.values() if not entry.head} == {"flow"}
    fixed = {name for name, entry in ZOO.items() if entry.stem is None and entry.kind in ("classification", "video")}
    assert fixed == {"googlenet+transform_input", "inception_v3+transform_input"}


def test_frames_of_a_clip_come_before_height_and_width() -> None:
    sizes = {name: entry.size for name, entry in ZOO.items() if entry.kind == "video"}
    assert all(size is not None and len(size) == 3 for size in sizes.values())
    assert (sizes["r3d_18"], sizes["s3d"], sizes["swin3d_t"]) == ((16, 112, 112), (128, 224, 224), (32, 224, 224))


@pytest.mark.parametrize("name", ALONE)
@pytest.mark.parametrize(("classes", "channels"), [(1000, 3), (7, 3), (2, 1), (1, 12)])
def test_identified_with_other_classes_and_channels(name: str, classes: int, channels: int) -> None:
    entry = ZOO[name]
    expected = (classes if entry.head else None, channels if entry.stem else 3)
    match = identify(bound_shapes(entry, classes=classes, channels=channels), ZOO)
    assert match.architecture.name == name
    assert (match.num_classes, match.in_channels) == expected
    assert match.options.get("in_channels", 3) == expected[1]


@pytest.mark.parametrize("name", QUANTIZABLE)
def test_a_quantizable_form_is_taken_for_the_plain_builder(name: str) -> None:
    entry, plain = ZOO[name], name.removeprefix("quantized_")
    shapes = bound_shapes(entry, classes=5, channels=3)
    if plain in RIVALS:
        with pytest.raises(UsageError, match=rf"--arch {plain} or --arch {plain}\+transform_input"):
            identify(shapes, ZOO)
    else:
        match = identify(shapes, ZOO)
        assert match.architecture.name == plain
        assert [other.name for other in match.also] == [name]


@pytest.mark.parametrize("present", [True, False])
def test_an_auxiliary_output_is_served_where_its_weights_fit(present: bool) -> None:
    plain, both = ZOO["fcn_resnet50"], ZOO["fcn_resnet50+aux_loss"]
    shapes = bound_shapes(both, classes=3, channels=3)
    if not present:
        shapes = {name: shape for name, shape in shapes.items() if not name.startswith("aux_classifier.")}
    match = identify(shapes, ZOO)
    assert match.architecture is (both if present else plain)
    assert [other.name for other in match.also] == (["fcn_resnet50"] if present else [])
    assert not match_architecture(plain, shapes).difference, "--arch fcn_resnet50 leaves the output out"


def test_an_auxiliary_head_of_other_classes_is_left_out() -> None:
    shapes = bound_shapes(ZOO["fcn_resnet50+aux_loss"], classes=3, channels=3)
    shapes |= {"aux_classifier.4.weight": (21, 256, 1, 1), "aux_classifier.4.bias": (21,)}
    match = identify(shapes, ZOO)
    assert (match.architecture.name, match.num_classes) == ("fcn_resnet50", 3)


def test_a_head_that_is_no_multiple_of_its_anchors_is_a_difference() -> None:
    shapes = dict(ZOO["retinanet_resnet50_fpn_v2"].shapes)
    shapes["head.classification_head.cls_logits.weight"] = (9 * 5 + 1, 256, 3, 3)
    difference = match_architecture(ZOO["retinanet_resnet50_fpn_v2"], shapes).difference
    assert difference.reshaped[0][0] == "head.classification_head.cls_logits.weight"


@pytest.mark.parametrize(
    "name", ["resnet18", "mobilenet_v3_small", "regnet_y_400mf", "squeezenet1_0", "mnasnet0_5", "maxvit_t", "mc3_18"]
)
def test_identified_from_a_real_module(name: str) -> None:
    module = build_architecture(ZOO[name], {"num_classes": 5, "in_channels": 1})
    match = identify({key: tuple(tensor.shape) for key, tensor in module.state_dict().items()}, ZOO)
    assert (match.architecture.name, match.num_classes, match.in_channels) == (name, 5, 1)


@pytest.mark.slow
@pytest.mark.parametrize("name", ZOO)
def test_identified_from_every_real_module(name: str) -> None:
    entry = ZOO[name]
    options = (
        {**entry.options} | ({"num_classes": 5} if entry.head else {}) | ({"in_channels": 4} if entry.stem else {})
    )
    state = build_architecture(entry, options).state_dict()
    match = match_architecture(entry, {key: tuple(tensor.shape) for key, tensor in state.items()})
    assert not match.difference
    assert match.options == options | ({"image_size": 224} if entry.position else {})


@pytest.mark.parametrize("builder", RIVALS)
def test_forms_that_weights_cannot_tell_apart_are_all_named(builder: str) -> None:
    with pytest.raises(UsageError) as caught:
        identify(bound_shapes(ZOO[builder], classes=5, channels=3), ZOO)
    message = str(caught.value)
    assert f"--arch {builder} or --arch {RIVALS[builder]}" in message
    assert all(ZOO[name].about and ZOO[name].about in message for name in (builder, RIVALS[builder]))
    assert ("SSD, RetinaNet or FCOS; inspect takes" in message) == builder.startswith("fasterrcnn")


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


@pytest.mark.parametrize(
    ("name", "tensors", "said"),
    [
        ("resnet18", {"fc.weight": None, "fc.bias": None, "fc.1.weight": (5, 512), "fc.1.bias": (5,)}, "replaces fc"),
        ("resnet18", {"fc.weight": None, "fc.bias": None}, "replaces fc"),
        (
            "mobilenet_v2",
            {"features.0.0.weight": (16, 3, 3, 3), "features.0.1.weight": (16,)},
            "calls it with training",
        ),
        ("resnet18", {"conv1.weight": (64, 3, 3, 3)}, "fit torchvision/resnet18 but for its first convolution"),
        ("resnet18", {"conv1.weight_fake_quant.scale": (1,)}, "prepared to be quantized eagerly"),
        ("resnet18", {"layer1.0.activation_post_process.scale": (1,)}, "before `prepare`"),
    ],
)
def test_a_changed_builder_is_told_what_was_changed(
    name: str, tensors: dict[str, tuple[int, ...] | None], said: str
) -> None:
    shapes = {key: shape for key, shape in {**ZOO[name].shapes, **tensors}.items() if shape is not None}
    with pytest.raises(UsageError) as caught:
        identify(shapes, ZOO)
    assert said in str(caught.value)
    assert "quantized_" not in str(caught.value)


@pytest.mark.parametrize("asked", [False, True])
def test_parameters_without_batch_statistics_are_told_what_is_lacking(asked: bool) -> None:
    shapes = {name: shape for name, shape in ZOO["resnet18"].shapes.items() if ".running_" not in name}
    with pytest.raises(UsageError, match=r"running statistics of batch normalisation, 40 of which(.|\n)*state_dict"):
        require_match(match_architecture(ZOO["resnet18"], shapes)) if asked else identify(shapes, ZOO)


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


def test_several_networks_in_one_file_are_named() -> None:
    both: dict[str, tuple[int, ...]] = {
        f"{part}.{name}": (3, 3) for part in ("teacher", "student") for name in ("conv.weight", "fc.weight")
    }
    with pytest.raises(UsageError, match=r"begin with student\., teacher\.(.|\n)*no tensor agrees") as error:
        identify(both, ZOO)
    assert "torch.save(model.student.state_dict(), 'weights.pt')" in error.value.fix


def test_an_unknown_name_gets_the_nearest() -> None:
    with pytest.raises(UsageError, match=r"no architecture 'ResNet-18'[\s\S]*nearest: resnet18"):
        find_architecture("ResNet-18")


def test_the_index_survives_its_file_form() -> None:
    assert decode(encode(ZOO)) == ZOO
    assert encode(decode(encode(ZOO))) == encode(ZOO)
