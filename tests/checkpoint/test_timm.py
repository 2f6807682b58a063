"""timm's architectures told by their weights, asked for by name, and refused; and the index that tells them."""

import io
import json
import re
import subprocess
import sys
import warnings
from argparse import Namespace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from deploy.checkpoint.load import build_module, read_checkpoint
from deploy.checkpoint.model import Checkpoint, CheckpointRequest, DynamicRequest
from deploy.checkpoint.timm_entries import decode, encode, import_timm, index_file, likeness, sketch, timm_version
from deploy.checkpoint.timm_likely import Clues, likeliest_first
from deploy.checkpoint.timm_zoo import load_index
from deploy.ensemble.models.image import prepare
from deploy.ensemble.transform import image_transform
from deploy.errors import UsageError
from tests.checkpoint.checkpoints import saved

ROOT = Path(__file__).parents[2]


def fine_tuned(name: str, **options: Any) -> nn.Module:
    torch.manual_seed(0)
    return import_timm().create_model(name, pretrained=False, **options).eval()  # type: ignore[no-any-return]


def read(path: Path, content: object, **options: Any) -> Checkpoint:
    return read_checkpoint(CheckpointRequest(path=saved(path / "model.pt", content).path, **options))


def test_a_state_dict_is_told_with_its_classes_and_pretrained_cfg(tmp_path: Path) -> None:
    module = fine_tuned("test_efficientnet", num_classes=7, in_chans=3)
    checkpoint = read(tmp_path, module.state_dict())
    assert (checkpoint.architecture, checkpoint.how) == ("timm/test_efficientnet", "inferred")
    assert (checkpoint.num_classes, checkpoint.options) == (7, {"num_classes": 7})
    assert checkpoint.inputs[0].shape == ("batch", 3, 160, 160)
    cfg: Any = module.pretrained_cfg
    assert checkpoint.preprocessing.mean == cfg["mean"]
    assert checkpoint.preprocessing.source == "timm test_efficientnet.r160_in1k"
    image = torch.randn(2, 3, 160, 160)
    with torch.no_grad():
        assert torch.equal(build_module(checkpoint)(image), module(image))


def test_channels_and_image_size_are_read_from_the_tensors(tmp_path: Path) -> None:
    module = fine_tuned("test_vit", num_classes=4, in_chans=1, img_size=96)
    checkpoint = read(tmp_path, module.state_dict(), arch="timm/test_vit")
    assert checkpoint.options == {"num_classes": 4, "in_chans": 1, "img_size": [96, 96]}
    assert checkpoint.inputs[0].shape == ("batch", 1, 96, 96)
    assert checkpoint.how == "asked"
    with torch.no_grad():
        assert build_module(checkpoint)(torch.randn(1, 1, 96, 96)).shape == (1, 4)


def test_the_pooling_is_the_one_that_training_was_started_with(tmp_path: Path) -> None:
    """timm's training script keeps its arguments in the file; no tensor tells a maximum from a mean."""
    module = fine_tuned("test_efficientnet", num_classes=3, global_pool="max")
    content = {"arch": "test_efficientnet", "state_dict": module.state_dict(), "args": {"gp": "max", "mean": None}}
    checkpoint, image = read(tmp_path, content), torch.randn(2, 3, 160, 160)
    with torch.no_grad():
        assert torch.equal(build_module(checkpoint)(image), module(image))


# What timm's training script keeps of its command line, as far as it is on networks and images.
ARGUMENTS: dict[str, Any] = {
    "gp": None, "crop_pct": None, "img_size": None, "input_size": None, "interpolation": "", "mean": None, "std": None,
    "bn_eps": None, "model_kwargs": {},
}  # fmt: skip


def left_by_timm(name: str, module: nn.Module, **arguments: Any) -> dict[str, Any]:
    """What timm's CheckpointSaver writes."""
    args = Namespace(**{**ARGUMENTS, "model": name, **arguments})
    return {"epoch": 1, "arch": name, "state_dict": module.state_dict(), "args": args}


def settings(arguments: dict[str, Any], pretrained_cfg: Any) -> dict[str, Any]:
    """What timm's script settles on for its images."""
    resolve: Any = import_timm().data.resolve_data_config
    return resolve(arguments, pretrained_cfg=pretrained_cfg)  # type: ignore[no-any-return]


def check_as_timm_evaluates(checkpoint: Checkpoint, settings: dict[str, Any]) -> None:
    """Raises AssertionError unless the steps of an ensemble are those of timm's own evaluation transform."""
    from PIL import Image

    steps = json.loads(image_transform(checkpoint, exif_orientation=False).to_json())
    make: Any = import_timm().data.create_transform
    theirs = make(**settings, is_training=False)
    for size in ((253, 380, 3), (201, 137, 3)):
        picture, file = Image.fromarray(np.random.default_rng(0).integers(0, 256, size, dtype=np.uint8)), io.BytesIO()
        picture.save(file, "PNG")
        np.testing.assert_allclose(prepare(file.getvalue(), steps), theirs(picture).numpy(), atol=1e-5)


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("test_efficientnet", {"img_size": 96, "crop_pct": 0.8}),
        (
            "test_resnet",
            {"input_size": [3, 64, 64], "mean": [0.4, 0.5, 0.6], "std": [0.25], "interpolation": "bicubic"},
        ),
        ("resnet18.tv_in1k", {}),
    ],
)
def test_images_are_prepared_as_timms_script_evaluated_them(
    name: str, arguments: dict[str, Any], tmp_path: Path
) -> None:
    """A size without a crop_pct is resized by the usual one, and weights with a tag by their own pretrained_cfg."""
    module = fine_tuned(name, num_classes=3)
    checkpoint = read(tmp_path, left_by_timm(name, module, **arguments))
    assert checkpoint.architecture == f"timm/{name}"
    check_as_timm_evaluates(checkpoint, settings(arguments, pretrained_cfg=module.pretrained_cfg))


@pytest.mark.parametrize(
    ("name", "arguments", "options"),
    [
        ("test_efficientnet", {"bn_eps": 0.1}, {"bn_eps": 0.1}),
        ("test_vit", {"gp": "avg", "model_kwargs": {"reg_tokens": 2}}, {"global_pool": "avg", "reg_tokens": 2}),
    ],
)
def test_arguments_that_no_tensor_tells_are_those_of_the_script(
    name: str, arguments: dict[str, Any], options: dict[str, Any], tmp_path: Path
) -> None:
    module = fine_tuned(name, num_classes=3, **options)
    checkpoint, image = read(tmp_path, left_by_timm(name, module, **arguments)), torch.randn(2, 3, 160, 160)
    with torch.no_grad():
        assert torch.equal(build_module(checkpoint)(image), module(image))


@pytest.mark.parametrize(("mode", "known"), [("squash", True), ("border", False)])
def test_a_folder_of_timms_hub_is_what_its_config_says(mode: str, known: bool, tmp_path: Path) -> None:
    from timm.models import save_for_hf

    module, folder = fine_tuned("test_vit", num_classes=3, img_size=96, reg_tokens=2), tmp_path / "birds"
    told = {"crop_mode": mode, "crop_pct": 0.8, "mean": [0.1, 0.2, 0.3]}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        save_for_hf(module, str(folder), model_config={"label_names": ["a", "b", "c"], "pretrained_cfg": told})
    checkpoint, image = read_checkpoint(CheckpointRequest(path=folder)), torch.randn(2, 3, 96, 96)
    assert (checkpoint.name, checkpoint.classes) == ("birds", ("a", "b", "c"))
    assert checkpoint.preprocessing.source == "config.json of timm"
    with torch.no_grad():
        assert torch.equal(build_module(checkpoint)(image), module(image))
    if known:
        cfg = {**module.pretrained_cfg, **told}  # type: ignore[dict-item]
        check_as_timm_evaluates(checkpoint, settings({"img_size": 96}, pretrained_cfg=cfg))
    else:
        assert (checkpoint.preprocessing.resize, checkpoint.preprocessing.crop) == (None, None)
        assert "in timm's crop_mode 'border'" in " ".join(checkpoint.notes)


def test_a_size_that_nothing_tells_is_said_to_be_a_guess(tmp_path: Path) -> None:
    """A Swin for 448 has the same tensors as one for 224."""
    state = fine_tuned("swin_tiny_patch4_window7_224", num_classes=3, depths=(1, 1, 1, 1), img_size=448).state_dict()
    arguments = {"model_kwargs": {"depths": [1, 1, 1, 1]}}
    checkpoint = read(tmp_path, {"arch": "swin_tiny_patch4_window7_224", "args": arguments, "state_dict": state})
    assert checkpoint.inputs[0].shape == ("batch", 3, 224, 224)
    assert "input size: 224 x 224, timm's usual one" in " ".join(checkpoint.notes)
    assert "--input-shape 3,HEIGHT,WIDTH" in " ".join(checkpoint.notes)


def test_a_size_that_the_tensors_follow_is_found_where_it_is_said_and_asked_for_where_not(tmp_path: Path) -> None:
    """LeViT's tables of attention: nothing said fits them but the size they were made for."""
    state = fine_tuned("levit_128s", num_classes=3, img_size=64).state_dict()
    checkpoint = read(tmp_path, state, input_shapes=((3, 64, 64),))
    assert (checkpoint.architecture, checkpoint.options["img_size"]) == ("timm/levit_128s", [64, 64])
    for said, options in (("timm's usual one", {}), ("96 x 96", {"input_shapes": ((3, 96, 96),)})):
        with pytest.raises(UsageError, match=f"another size than {said}: .*attention_biases is") as refused:
            read(tmp_path, state, **options)
        assert "timm/levit_128s" in refused.value.found
        assert "--input-shape CHANNELS,HEIGHT,WIDTH" in (refused.value.fix or "")


def test_other_widths_are_not_taken_for_another_size(tmp_path: Path) -> None:
    state = fine_tuned("levit_128s", num_classes=3, embed_dim=(64, 96, 128)).state_dict()
    with pytest.raises(UsageError, match="none fits, nearest by tensor names: levit_128s") as refused:
        read(tmp_path, state)
    assert "create_model('levit_128s', ...)" in (refused.value.fix or "")
    assert "such as embed_dim" in (refused.value.expected or "")


def test_wrappers_prefixes_are_taken_off_and_no_others(tmp_path: Path) -> None:
    state = fine_tuned("test_efficientnet", num_classes=3).state_dict()
    checkpoint = read(tmp_path, {f"module.model.{name}": tensor for name, tensor in state.items()})
    assert (checkpoint.architecture, checkpoint.removed_prefixes) == ("timm/test_efficientnet", ("module.", "model."))
    assert build_module(checkpoint).state_dict().keys() == state.keys()


def test_a_network_without_a_head_gives_features(tmp_path: Path) -> None:
    checkpoint = read(tmp_path, fine_tuned("test_efficientnet", num_classes=0).state_dict())
    assert (checkpoint.options["num_classes"], checkpoint.num_classes) == (0, None)
    assert "no head: it gives pooled features" in " ".join(checkpoint.notes)


def test_a_head_that_goes_with_more_than_counts_classes_may_be_gone(tmp_path: Path) -> None:
    """LeViT has batch norms in its heads: without them no digest of the index fits."""
    checkpoint = read(tmp_path, fine_tuned("levit_128s", num_classes=0).state_dict())
    assert (checkpoint.architecture, checkpoint.how, checkpoint.num_classes) == ("timm/levit_128s", "inferred", None)
    assert any("no head" in note for note in checkpoint.notes)


def test_a_pooling_that_no_tensor_tells_is_said_to_be_assumed(tmp_path: Path) -> None:
    module = fine_tuned("test_efficientnet", num_classes=3, global_pool="max")
    assert any(note.startswith("pooling: avg") for note in read(tmp_path, module.state_dict()).notes)
    said = read(tmp_path, left_by_timm("test_efficientnet", module, gp="max"))
    assert not any(note.startswith("pooling") for note in said.notes)


@pytest.mark.parametrize("arch", ["timm/repvgg_a0", None])
def test_a_fused_network_is_told_the_way_out(arch: str | None, tmp_path: Path) -> None:
    fused = import_timm().utils.reparameterize_model(fine_tuned("repvgg_a0", num_classes=3))
    with pytest.raises(UsageError, match=r"timm has fused it[\s\S]*timm\.utils\.reparameterize_model"):
        read(tmp_path, fused.state_dict(), arch=arch)


def test_a_fused_network_whose_names_do_not_tell_is_known_by_the_nearest(tmp_path: Path) -> None:
    fused = import_timm().utils.reparameterize_model(fine_tuned("levit_128s", num_classes=3))
    with pytest.raises(UsageError, match=r"are those of levit_128s after timm has fused it"):
        read(tmp_path, fused.state_dict())


@pytest.mark.parametrize(
    "told", [{"mean": "half"}, {"crop_pct": "0.9"}, {"std": [0.0, 1.0, 1.0]}, {"interpolation": 3}]
)
def test_what_a_hub_says_wrongly_of_images_is_named(told: dict[str, Any], tmp_path: Path) -> None:
    from timm.models import save_for_hf

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        save_for_hf(fine_tuned("test_vit", num_classes=3), str(tmp_path / "birds"))
    file = tmp_path / "birds" / "config.json"
    config = json.loads(file.read_text())
    config["pretrained_cfg"] |= told
    file.write_text(json.dumps(config))
    with pytest.raises(UsageError, match=f"says of images: {next(iter(told))}"):
        read_checkpoint(CheckpointRequest(path=tmp_path / "birds"))


def test_torchvision_goes_first_and_the_look_alikes_of_timm_are_named(tmp_path: Path) -> None:
    state = fine_tuned("resnet18", num_classes=3).state_dict()
    checkpoint = read(tmp_path, state)
    assert checkpoint.architecture == "torchvision/resnet18"
    assert "--arch timm/resnet18" in " ".join(checkpoint.notes)
    asked = read(tmp_path, state, arch="timm/resnet18.a1_in1k")
    assert asked.architecture == "timm/resnet18.a1_in1k"
    assert asked.preprocessing.source == "timm resnet18.a1_in1k"


def test_collisions_are_named_and_the_file_may_choose(tmp_path: Path) -> None:
    state = fine_tuned("efficientnet_b0", num_classes=3).state_dict()
    with pytest.raises(UsageError, match=r"fit \d+ architectures of timm(.|\n)*tf_efficientnet_b0(.|\n)*--arch timm/"):
        read(tmp_path, state)
    checkpoint = read(tmp_path, {"arch": "tf_efficientnet_b0", "state_dict": state})
    assert checkpoint.architecture == "timm/tf_efficientnet_b0"
    assert "the file says that it is tf_efficientnet_b0; efficientnet_b0" in " ".join(checkpoint.notes)


def test_the_same_names_with_other_widths_are_no_collision(tmp_path: Path) -> None:
    state = fine_tuned("vit_tiny_patch16_224", num_classes=3).state_dict()
    with pytest.raises(UsageError, match="deit_tiny_patch16_224") as refused:
        read(tmp_path, state)
    assert "vit_small_patch16_224" not in str(refused.value)


def test_the_same_names_with_another_patch_are_no_collision(tmp_path: Path) -> None:
    """DeiT III's have patches of 16 pixels, DINOv2's of 14, and all else alike."""
    state = fine_tuned("vit_small_patch14_dinov2", num_classes=3).state_dict()
    assert read(tmp_path, state).architecture == "timm/vit_small_patch14_dinov2"
    state |= {"patch_embed.proj.weight": torch.zeros(384, 3, 16, 16), "pos_embed": torch.zeros(1, 196, 384)}
    with pytest.raises(UsageError, match=r"fit 2 architectures of timm(.|\n)*deit3_small_patch16_224, deit3_small_"):
        read(tmp_path, state)


@pytest.mark.parametrize(
    ("file", "side", "words"),
    [
        ("best.pt", 24, "likely timm/deit3_small_patch16_384, since timm has it for images of 384 x 384: --arch "),
        ("best.pt", 14, "likely timm/deit3_small_patch16_224, since timm has it for images of 224 x 224: --arch "),
        ("deit3_small_patch16_384-birds.pt", 14, "likely timm/deit3_small_patch16_384, since .* has its name: --"),
        ("best.pt", 12, "one was trained: --arch timm/deit3_small_patch16_224"),
    ],
)
def test_of_twins_the_likeliest_is_named_first(file: str, side: int, words: str, tmp_path: Path) -> None:
    state = fine_tuned("vit_small_patch14_dinov2", num_classes=3).state_dict()
    state |= {"patch_embed.proj.weight": torch.zeros(384, 3, 16, 16), "pos_embed": torch.zeros(1, side**2, 384)}
    with pytest.raises(UsageError) as refused:
        read_checkpoint(CheckpointRequest(path=saved(tmp_path / file, state).path))
    assert re.search(words, str(refused.value.fix))


def test_twins_whose_tensors_have_no_size_are_told_apart_by_the_size_that_is_asked_for() -> None:
    twins: dict[str, tuple[int, int] | None] = {"xcit_nano_12_p16_224": None, "xcit_nano_12_p16_384": None}
    request = CheckpointRequest(path=Path("runs/best.pt"), input_shapes=((3, 384, 384),))
    names, reason = likeliest_first(twins, Clues.of(request, (224, 224), classes=3))
    assert (names[0], reason) == ("xcit_nano_12_p16_384", "timm has it for images of 384 x 384")


def test_of_names_that_stand_in_one_another_the_longest_is_the_files() -> None:
    twins = dict.fromkeys(("efficientnet_b0", "efficientnet_blur_b0", "tf_efficientnet_b0"))
    names, reason = likeliest_first(twins, Clues(file="tf_efficientnet_b0/best.pt", size=None, classes=3))
    assert (names[0], reason) == ("tf_efficientnet_b0", "tf_efficientnet_b0/best.pt has its name")
    assert likeliest_first(twins, Clues(file="runs/best.pt", size=None, classes=3))[1] == ""


def test_weights_that_fit_nothing_are_told_the_nearest_of_both(tmp_path: Path) -> None:
    state = fine_tuned("test_efficientnet", num_classes=3).state_dict()
    state["extra.weight"] = torch.zeros(2)
    with pytest.raises(UsageError, match=r"no torchvision (.|\n)*of timm .* none fits, nearest .*test_efficientnet"):
        read(tmp_path, state)


@pytest.mark.parametrize(
    ("arch", "words"),
    [
        ("timm/test_vit", r"do not fit timm/test_vit(.|\n)*missing: "),
        ("timm/test_efficentnet", "no architecture 'test_efficentnet'(.|\n)*nearest: test_efficientnet"),
        ("timm/test_efficientnet.none", "no weights 'none' of test_efficientnet"),
        ("timm/hf-hub:timm/resnet18", "no architecture"),
    ],
)
def test_a_name_that_cannot_be_right_is_refused(arch: str, words: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=words):
        read(tmp_path, fine_tuned("test_efficientnet").state_dict(), arch=arch)


def test_only_a_network_of_no_size_takes_images_of_any(tmp_path: Path) -> None:
    asked = DynamicRequest(input="image", axes=((2, None), (3, None)), bounds=(64, 160))
    free = read(tmp_path, fine_tuned("test_efficientnet").state_dict(), dynamic=(asked,))
    assert free.inputs[0].shape == ("batch", 3, "height", "width")
    with pytest.raises(UsageError, match="takes images of one size"):
        read(tmp_path, fine_tuned("test_vit").state_dict(), arch="timm/test_vit", dynamic=(asked,))


def test_a_shape_that_contradicts_the_weights_is_refused(tmp_path: Path) -> None:
    state = fine_tuned("test_vit", num_classes=4).state_dict()
    with pytest.raises(UsageError, match="contradicts the positional embedding"):
        read(tmp_path, state, arch="timm/test_vit", input_shapes=((3, 224, 224),))


def test_images_that_are_not_square_are_asked_for(tmp_path: Path) -> None:
    state = fine_tuned("test_vit", num_classes=4, img_size=(64, 96)).state_dict()
    with pytest.raises(UsageError, match=r"pos_embed is(.|\n)*--input-shape 3,HEIGHT,WIDTH"):
        read(tmp_path, state, arch="timm/test_vit")
    checkpoint = read(tmp_path, state, arch="timm/test_vit", input_shapes=((3, 64, 96),))
    assert checkpoint.inputs[0].shape == ("batch", 3, 64, 96)


def test_without_the_extra_its_pip_line_is_named(tmp_path: Path) -> None:
    path = saved(tmp_path / "model.pt", fine_tuned("test_efficientnet").state_dict()).path
    code = "import sys\nsys.modules['timm'] = None\nfrom deploy.cli.main import main\nmain()\n"
    command = [sys.executable, "-c", code, "inspect", str(path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)
    assert done.returncode == 2
    assert 'pip install "deployctl[timm]"' in done.stderr


def test_the_index_is_that_of_the_installed_release_and_survives_its_file() -> None:
    index = load_index()
    assert index_file(ROOT / "deploy" / "data").is_file(), f"renew it for timm {timm_version()}"
    assert decode(encode(index)) == index
    assert set(index) == set(import_timm().list_models())


def test_the_index_is_current_for_architectures_of_every_kind() -> None:
    from deploy.checkpoint.timm_index import look_at

    timm, index = import_timm(), load_index()
    for name in (
        "resnet18",
        "vit_tiny_patch16_224",
        "deit_tiny_distilled_patch16_224",
        "levit_128s",
        "swin_s3_tiny_224",
    ):
        assert look_at(timm, name) == index[name]


def test_likeness_is_the_share_of_names() -> None:
    names = [f"layer.{number}" for number in range(200)]
    assert likeness(sketch(names), sketch(names)) == 1.0
    assert likeness(sketch(names), sketch(["other"])) == 0.0
    assert 0.2 < likeness(sketch(names), sketch(names[:100])) < 0.8
