"""A whole checkpoint, from the file to the value that the rest of the project works with."""

import hashlib
from argparse import Namespace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from deploy.checkpoint.load import build_module, model_name, read_checkpoint
from deploy.checkpoint.model import Checkpoint, CheckpointRequest
from deploy.checkpoint.parts import ending_notes
from deploy.checkpoint.zoo import find_architecture
from deploy.errors import UsageError
from tests.checkpoint.checkpoints import prefixed, saved, seeded, small_state


def read(path: Path, content: object, **asked: Any) -> Checkpoint:
    torch.save(content, path)
    return read_checkpoint(CheckpointRequest(path=path, **asked))


def refusal(path: Path, content: object, **asked: Any) -> str:
    with pytest.raises(UsageError) as caught:
        read(path, content, **asked)
    return str(caught.value)


def test_a_bare_state_dict(tmp_path: Path) -> None:
    path = tmp_path / "digits.pt"
    checkpoint = read(path, small_state())
    assert checkpoint.architecture == "torchvision/squeezenet1_1"
    assert checkpoint.origin == "architecture: inferred"
    assert checkpoint.options == {"num_classes": 3}
    assert checkpoint.digest == hashlib.sha256(path.read_bytes()).hexdigest()
    assert checkpoint.size == path.stat().st_size
    assert (checkpoint.name, checkpoint.format, checkpoint.dtype) == ("digits", "torch", "float32")
    assert checkpoint.inputs[0].shape == ("batch", 3, 224, 224)
    assert (checkpoint.num_classes, checkpoint.classes, checkpoint.found_under) == (3, None, None)
    assert Checkpoint.model_validate_json(checkpoint.to_json()) == checkpoint


def test_parameters_are_counted_as_torchvision_counts_them(tmp_path: Path) -> None:
    assert read(tmp_path / "r.pt", seeded("resnet18").state_dict()).parameters == 11_689_512


def test_a_training_dict_with_everything(tmp_path: Path) -> None:
    content = {
        "model": prefixed(small_state(), "module."),
        "model_ema": {"n_averaged": torch.tensor(4), **prefixed(small_state(), "module.")},
        "optimizer": {"state": {0: {"step": torch.tensor(1.0)}}, "param_groups": []},
        "epoch": 7,
        "class_to_idx": {"cat": 0, "dog": 1, "eel": 2},
    }
    assert "--weights ema or --weights raw" in refusal(tmp_path / "a.pth", content)
    checkpoint = read(tmp_path / "a.pth", content, weights="ema")
    assert (checkpoint.found_under, checkpoint.weights) == ("model_ema", "ema")
    assert checkpoint.removed_prefixes == ("module.",)
    assert checkpoint.classes == ("cat", "dog", "eel")
    assert any("average of 4 models" in note for note in checkpoint.notes)


def test_safetensors_with_metadata(tmp_path: Path) -> None:
    path = tmp_path / "weights.safetensors"
    save_file(small_state(), path, metadata={"classes": '["a", "b", "c"]', "mean": "[0.5, 0.5, 0.5]"})
    checkpoint = read_checkpoint(CheckpointRequest(path=path))
    assert (checkpoint.format, checkpoint.classes) == ("safetensors", ("a", "b", "c"))
    assert (checkpoint.preprocessing.source, checkpoint.preprocessing.mean) == ("checkpoint", (0.5, 0.5, 0.5))
    assert checkpoint.preprocessing.std is None


def test_class_names_of_another_number_are_left_out_and_said(tmp_path: Path) -> None:
    checkpoint = read(tmp_path / "a.pt", {"state_dict": small_state(), "classes": ["a", "b"]})
    assert checkpoint.classes is None
    assert any("names 2 classes and the head has 3" in note for note in checkpoint.notes)


def test_preprocessing_is_the_builder_s_and_said_to_be_no_proof(tmp_path: Path) -> None:
    checkpoint = read(tmp_path / "a.pt", small_state())
    found = checkpoint.preprocessing
    assert found.source == "torchvision SqueezeNet1_1_Weights.IMAGENET1K_V1"
    assert (found.resize, found.crop, found.layout, found.value_range) == (256, 224, "NCHW, RGB", (0.0, 1.0))
    assert found.mean == (0.485, 0.456, 0.406)
    assert any("nothing in the checkpoint says that this training used the same" in note for note in checkpoint.notes)


def test_an_input_size_of_one_s_own_leaves_resize_and_crop_unknown(tmp_path: Path) -> None:
    checkpoint = read(tmp_path / "a.pt", small_state(), input_shapes=((3, 96, 128),))
    assert checkpoint.inputs[0].shape == ("batch", 3, 96, 128)
    assert (checkpoint.preprocessing.resize, checkpoint.preprocessing.crop) == (None, None)
    assert any("unknown for 96 x 128" in note for note in checkpoint.notes)


def test_an_input_size_that_the_checkpoint_tells(tmp_path: Path) -> None:
    checkpoint = read(tmp_path / "a.pt", {"state_dict": small_state(), "config": {"img_size": 96}})
    assert checkpoint.inputs[0].shape == ("batch", 3, 96, 96)
    assert checkpoint.preprocessing.crop == 96


def test_what_torchvision_s_own_training_leaves_is_read(tmp_path: Path) -> None:
    args = Namespace(val_resize_size=232, val_crop_size=96, train_crop_size=88, interpolation="bicubic", lr=0.1)
    checkpoint = read(tmp_path / "a.pth", {"model": small_state(), "args": args, "epoch": 3})
    known = checkpoint.preprocessing
    assert (known.resize, known.crop, known.interpolation) == (232, 96, "bicubic")
    assert (known.mean, known.value_range) == ((0.485, 0.456, 0.406), (0.0, 1.0))
    assert known.source == "checkpoint, else torchvision SqueezeNet1_1_Weights.IMAGENET1K_V1"
    assert any("nothing in the checkpoint says" in note for note in checkpoint.notes)


def test_the_best_epoch_s_weights_beside_the_last_one_s_are_named(tmp_path: Path) -> None:
    checkpoint = read(tmp_path / "a.pt", {"state_dict": small_state(), "best_weights_so_far": small_state()})
    assert checkpoint.found_under == "state_dict"
    assert any("left out: 'best_weights_so_far'; taken were 'state_dict'" in note for note in checkpoint.notes)


def test_one_channel_leaves_the_preprocessing_unknown(tmp_path: Path) -> None:
    state = small_state()
    state["features.0.weight"] = state["features.0.weight"][:, :1].clone()
    checkpoint = read(tmp_path / "grey.pt", state)
    assert checkpoint.inputs[0].shape == ("batch", 1, 224, 224)
    assert checkpoint.preprocessing.source == "unknown"
    assert "preprocessing: unknown" in checkpoint.notes[0]


@pytest.mark.parametrize("shape", [(1, 64, 64), (3, 64), (3, 64, 64, 64)])
def test_an_input_shape_that_cannot_be(shape: tuple[int, ...], tmp_path: Path) -> None:
    assert "expected: one shape 3,HEIGHT,WIDTH" in refusal(tmp_path / "a.pt", small_state(), input_shapes=(shape,))


def test_an_input_shape_against_the_positional_embedding(tmp_path: Path) -> None:
    state = seeded("vit_b_32", num_classes=2, image_size=64).state_dict()
    message = refusal(tmp_path / "a.pt", state, input_shapes=((3, 224, 224),))
    assert "64 x 64" in message
    assert read(tmp_path / "a.pt", state, input_shapes=((3, 64, 64),)).options["image_size"] == 64


def test_asked_for_by_name(tmp_path: Path) -> None:
    assert read(tmp_path / "a.pt", small_state(), arch="torchvision/squeezenet1_1").how == "asked"
    assert "features.0.weight" in refusal(tmp_path / "a.pt", small_state(), arch="squeezenet1_0")
    assert "--arch and --factory" in refusal(tmp_path / "a.pt", small_state(), arch="vgg11", factory="a:b")


def test_the_file_s_name_of_a_builder_does_not_choose_between_its_forms(tmp_path: Path) -> None:
    state = seeded("googlenet", num_classes=3, aux_logits=False, init_weights=False).state_dict()
    message = refusal(tmp_path / "a.pt", {"arch": "googlenet", "state_dict": state})
    assert "--arch googlenet or --arch googlenet+transform_input" in message
    named = read(tmp_path / "a.pt", {"arch": "googlenet+transform_input", "state_dict": state})
    assert named.architecture == "torchvision/googlenet+transform_input"
    asked = read(tmp_path / "a.pt", state, arch="googlenet")
    assert any("fit googlenet+transform_input too" in note for note in asked.notes)


def test_a_softmax_behind_the_head_is_not_lost_unseen(tmp_path: Path) -> None:
    module = seeded("mobilenet_v3_small", num_classes=3)
    classifier = module.get_submodule("classifier")
    assert isinstance(classifier, torch.nn.Sequential)
    classifier.append(torch.nn.Softmax(1))
    content = {"state_dict": torch.nn.ModuleDict({"model": module}).state_dict()}
    message = refusal(tmp_path / "a.pt", content)
    assert "behind its last layer, classifier.3, with classifier.4" in message
    assert "--arch mobilenet_v3_small" in message
    asked = read(tmp_path / "a.pt", content, arch="mobilenet_v3_small")
    assert any("classifier.4 of the saved network" in note for note in asked.notes)


def test_the_last_layers_of_ssd_are_its_own() -> None:
    entry = find_architecture("ssd300_vgg16")
    parts = frozenset(name.rpartition(".")[0] for name in entry.shapes)
    assert ending_notes(entry, parts, asked=False) == ()
    with pytest.raises(UsageError, match=r"with head\.classification_head\.module_list\.6:"):
        ending_notes(entry, parts | {"head.classification_head.module_list.6"}, asked=False)


def test_what_a_wrapper_holds_beside_its_network_is_said(tmp_path: Path) -> None:
    wrapper = torch.nn.ModuleDict(
        {
            "body": seeded("squeezenet1_1", num_classes=3),
            "softmax": torch.nn.Softmax(1),
            "dropout": torch.nn.Dropout(),
            "val_acc": torch.nn.Identity(),
        }
    )
    notes = [note for note in read(tmp_path / "a.pt", wrapper.state_dict()).notes if "beside the network" in note]
    assert [note.split(",")[1] for note in notes] == [" the saved module had softmax"]
    plain = torch.nn.ModuleDict({"body": wrapper["body"], "dropout": wrapper["dropout"]})
    assert not any("beside the network" in note for note in read(tmp_path / "a.pt", plain.state_dict()).notes)


def test_a_quantizable_form_is_told_by_its_stubs(tmp_path: Path) -> None:
    module = seeded("quantized_mobilenet_v2", num_classes=3, quantize=False)
    assert read(tmp_path / "a.pt", module.state_dict()).architecture == "torchvision/quantized_mobilenet_v2"
    assert read(tmp_path / "a.pt", dict(module.state_dict())).architecture == "torchvision/mobilenet_v2"


def test_broken_weights_are_refused(tmp_path: Path) -> None:
    state = small_state()
    state["features.0.bias"][3] = float("nan")
    assert "'features.0.bias' has 1 NaN" in refusal(tmp_path / "a.pt", state)


def test_a_negative_variance_is_refused(tmp_path: Path) -> None:
    state = seeded("shufflenet_v2_x0_5", num_classes=2).state_dict()
    state["conv1.1.running_var"][:3] = -1
    assert "'conv1.1.running_var' has 3 negative values of 24" in refusal(tmp_path / "a.pt", state)


def test_sizes_that_a_network_is_not_built_for_are_refused(tmp_path: Path) -> None:
    state = seeded("maxvit_t", num_classes=2).state_dict()
    assert "is no square" in refusal(tmp_path / "a.pt", state, input_shapes=((3, 224, 448),))
    with pytest.raises(UsageError, match=r"maxvit_t cannot be built with .*not divisible by partition size 7"):
        build_module(read(tmp_path / "a.pt", state, input_shapes=((3, 100, 100),)))


def test_integer_weights_are_refused(tmp_path: Path) -> None:
    state = small_state()
    state["features.0.weight"] = state["features.0.weight"].to(torch.int8)
    assert "'features.0.weight' is int8" in refusal(tmp_path / "a.pt", state)


def test_mixed_dtypes_are_said(tmp_path: Path) -> None:
    state = small_state()
    state["features.0.weight"] = state["features.0.weight"].half()
    assert any("mostly float32, some float16" in note for note in read(tmp_path / "a.pt", state).notes)


@pytest.mark.parametrize(
    ("file", "name"),
    [
        ("model_best.pth.tar", "model_best"),
        ("ResNet-18 (final).pt", "ResNet-18_final"),
        ("epoch=3-step=100.ckpt", "epoch_3-step_100"),
        (".hidden.pt", "hidden"),
        ("v1.2.safetensors", "v1.2"),
        ("weights", "weights"),
        ("...pt", "model"),
        ("模型.pt", "model"),
    ],
)
def test_the_name_is_the_cleaned_stem(file: str, name: str) -> None:
    assert model_name(Path("runs") / file) == name


def test_the_path_is_absolute_for_children(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    saved(tmp_path / "a.pt", small_state())
    assert read_checkpoint(CheckpointRequest(path=Path("a.pt"))).path == tmp_path / "a.pt"
