"""Preprocessing as it is asked for, refused, and fused into the module: equal to torchvision's own transforms."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from deploy.checkpoint.formats import read_stored
from deploy.checkpoint.fusing import fuse
from deploy.checkpoint.inputs import RESIZE_NOTE, with_facts
from deploy.checkpoint.load import build_module, read_checkpoint
from deploy.checkpoint.model import Checkpoint, CheckpointRequest, Preprocessing, PreprocessingRequest
from deploy.checkpoint.preprocess import resized_size
from deploy.checkpoint.training import TrainingFacts
from deploy.checkpoint.vision import import_torchvision
from deploy.errors import UsageError
from tests import models

FUSE = PreprocessingRequest(mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225), fuse=True)
RESIZING = replace(FUSE, resize=20, crop=16, interpolation="bilinear", image_size=(37, 50))


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> CheckpointRequest:
    return models.save(models.ConvNet, tmp_path_factory.mktemp("net"), models.IMAGE)


def read(request: CheckpointRequest, asked: PreprocessingRequest) -> Checkpoint:
    return read_checkpoint(replace(request, preprocessing=asked))


def pixels(checkpoint: Checkpoint, rows: int = 3) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    shape = checkpoint.inputs[0].concrete(batch=rows)
    return torch.randint(0, 256, shape, generator=generator).to(torch.uint8)


def test_fused_the_model_takes_pixels_and_every_weight_keeps_its_name(saved: CheckpointRequest) -> None:
    plain, fused = read_checkpoint(saved), read(saved, FUSE)
    (image,) = fused.inputs
    assert (image.name, image.dtype, image.shape, image.values) == ("image", "uint8", ("batch", 3, 16, 16), (0, 255))
    assert fused.preprocessing.fused == ("scale", "normalize")
    assert list(build_module(fused).state_dict()) == list(build_module(plain).state_dict())
    assert "fused" in fused.notes[-1]


@pytest.mark.parametrize("asked", [FUSE, RESIZING, replace(RESIZING, interpolation="bicubic")])
def test_the_fused_graph_computes_what_torchvision_does(saved: CheckpointRequest, asked: PreprocessingRequest) -> None:
    checkpoint = read(saved, asked)
    image = pixels(checkpoint)
    graph, trained = build_module(checkpoint), build_module(checkpoint, as_in_training=True)
    exact = build_module(checkpoint, dtype="float64", as_in_training=True)
    with torch.no_grad():
        torch.testing.assert_close(graph(image), trained(image), rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(graph(image).double(), exact(image), rtol=1e-5, atol=1e-5)


def test_the_transform_of_the_pretrained_weights_is_the_one_that_is_fused(saved: CheckpointRequest) -> None:
    import_torchvision()
    from torchvision.transforms._presets import ImageClassification

    checkpoint = read(saved, replace(FUSE, resize=24, crop=16, interpolation="bilinear", image_size=(48, 36)))
    assert checkpoint.preprocessing.mean is not None and checkpoint.preprocessing.std is not None
    preset = ImageClassification(
        crop_size=16, resize_size=24, mean=checkpoint.preprocessing.mean, std=checkpoint.preprocessing.std
    )
    image = pixels(checkpoint)
    with torch.no_grad():
        expected = build_module(read_checkpoint(saved))(preset(image / 255.0))
        torch.testing.assert_close(build_module(checkpoint)(image), expected, rtol=1e-5, atol=1e-5)


def prepared(image: np.ndarray, asked: PreprocessingRequest) -> np.ndarray:
    """Pixels in 0..1 as the graph resizes and crops an image [height, width, 3]."""
    known = Preprocessing(
        source="training", resize=asked.resize, crop=asked.crop, interpolation=asked.interpolation,
        mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0), fused=("resize", "crop", "scale", "normalize"),
    )  # fmt: skip
    made = fuse(torch.nn.Identity(), known)(torch.from_numpy(image.transpose(2, 0, 1))[None])
    return made[0].numpy()  # type: ignore[no-any-return]


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
def test_the_graph_resizes_as_pillow_does_within_its_rounding(interpolation: str) -> None:
    """Black beside white too, where a bicubic curve overshoots by 13 levels and 8 bits hold none of them."""
    import_torchvision()
    from torchvision.transforms import v2

    stripes = np.tile((np.arange(75) // 5 % 2 * 255).astype(np.uint8), (55, 1))
    image = np.stack([stripes, stripes // 2 + 60, np.full_like(stripes, 200)], axis=-1)
    steps = v2.Compose([v2.Resize([20], interpolation=v2.InterpolationMode(interpolation)), v2.CenterCrop(17)])
    trained = np.asarray(steps(Image.fromarray(image))).transpose(2, 0, 1) / 255
    found = prepared(image, replace(RESIZING, crop=17, interpolation=interpolation))
    assert found.shape == trained.shape
    assert np.abs(found - trained).max() * 255 < 1.5


def test_a_wrong_mean_is_seen(saved: CheckpointRequest) -> None:
    right, wrong = read(saved, FUSE), read(saved, replace(FUSE, mean=(0.5, 0.5, 0.5)))
    image = pixels(right)
    with torch.no_grad(), pytest.raises(AssertionError):
        torch.testing.assert_close(build_module(wrong)(image), build_module(right, as_in_training=True)(image))


def test_half_precision_is_normalised_before_it_is_rounded(saved: CheckpointRequest, tmp_path: Path) -> None:
    half = replace(saved, path=tmp_path / "half.pt")
    torch.save(models.ConvNet().half().state_dict(), half.path)
    checkpoint = read(half, FUSE)
    image = pixels(checkpoint)
    with torch.no_grad():
        graph, trained = build_module(checkpoint), build_module(checkpoint, as_in_training=True)
        assert graph(image).dtype == torch.float16
        torch.testing.assert_close(graph(image), trained(image))


def test_what_is_asked_for_stands_beside_what_the_file_says(saved: CheckpointRequest, tmp_path: Path) -> None:
    told = replace(saved, path=tmp_path / "told.pt")
    torch.save(
        {"model": models.ConvNet().state_dict(), "preprocessing": {"mean": [0.1, 0.2, 0.3], "std": [1, 1, 1]}},
        told.path,
    )
    known = read(told, PreprocessingRequest(std=(0.5, 0.5, 0.5))).preprocessing
    assert (known.mean, known.std) == ((0.1, 0.2, 0.3), (0.5, 0.5, 0.5))
    assert known.source == "asked for (std), else checkpoint"


OF_PIXELS = {"mean": (123.675, 116.28, 103.53), "std": (58.395, 57.12, 57.375)}


@pytest.mark.parametrize("by", ["the file", "the command"])
def test_a_mean_of_pixels_is_taken_for_one(by: str, saved: CheckpointRequest, tmp_path: Path) -> None:
    """Of 0..255, as much training code has it; taken for one of 0..1 every image would be all but black."""
    told = replace(saved, path=tmp_path / "told.pt")
    torch.save({"model": read_stored(saved.path).content, **(OF_PIXELS if by == "the file" else {})}, told.path)
    asked = PreprocessingRequest(fuse=True)
    if by == "the command":
        asked = replace(asked, mean=OF_PIXELS["mean"], std=OF_PIXELS["std"])
    checkpoint = read(told, asked)
    assert checkpoint.preprocessing.value_range == (0.0, 255.0)
    usual, image = read(saved, FUSE), pixels(checkpoint)
    with torch.no_grad():
        expected = build_module(usual)(image)
        torch.testing.assert_close(build_module(checkpoint)(image), expected, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(build_module(checkpoint, as_in_training=True)(image), expected, rtol=1e-4, atol=1e-4)


def test_a_usual_mean_takes_the_place_of_one_of_pixels_with_its_range(saved: CheckpointRequest, tmp_path: Path) -> None:
    told = replace(saved, path=tmp_path / "told.pt")
    torch.save({"model": read_stored(saved.path).content, **OF_PIXELS}, told.path)
    assert read(told, replace(FUSE, fuse=False)).preprocessing.value_range == (0.0, 1.0)


def test_a_resize_that_the_file_tells_is_not_called_unknown() -> None:
    usual = Preprocessing(source="the builder's", mean=(0.5,), std=(0.2,))
    notes = ("preprocessing: the builder's", f"{RESIZE_NOTE} 320 x 320; those weights used 224")
    assert with_facts(TrainingFacts(size=320, resize=352), usual, notes)[1] == notes[:1]
    assert with_facts(TrainingFacts(size=320), usual, notes)[1] == notes


@pytest.mark.parametrize(
    ("written", "resize"), [(256, 256), ([256], 256), ([256, 256], (256, 256)), ((224, 320), (224, 320)), ("no", None)]
)
def test_two_numbers_are_both_edges_as_torchvision_has_it(
    written: object, resize: object, saved: CheckpointRequest, tmp_path: Path
) -> None:
    told = replace(saved, path=tmp_path / "told.pt")
    torch.save({"model": read_stored(saved.path).content, "preprocessing": {"resize": written, "crop": 224}}, told.path)
    assert read(told, PreprocessingRequest()).preprocessing.resize == resize


@pytest.mark.parametrize(
    ("asked", "found", "fix"),
    [
        (PreprocessingRequest(fuse=True), "needs mean and std of the preprocessing, which nothing says", "--mean"),
        (replace(FUSE, std=None), "needs std", "--std"),
        (replace(FUSE, mean=(0.5,)), "mean has 1 values, and the model takes 3 channels", "--mean"),
        (replace(FUSE, std=(0.2, 0.0, 0.2)), "normalise nothing", "--std"),
        (replace(FUSE, mean=OF_PIXELS["mean"]), "is of pixels in 0..255, and std", "--mean"),
        (replace(FUSE, std=OF_PIXELS["std"]), "is of pixels in 0..1, and std", "--mean"),
        (replace(FUSE, image_size=(64, 64)), "--image-size needs resize, interpolation", "--resize"),
        (replace(FUSE, fuse=False, image_size=(9, 9)), "without --fuse-preprocess", "--fuse-preprocess"),
        (replace(RESIZING, interpolation="lanczos"), "training resized with lanczos", "--ensemble image"),
        (replace(RESIZING, crop=12), "gives 12 x 12, and the model takes [16, 16]", "--crop"),
        (replace(RESIZING, crop=32), "a crop of 32 pixels does not fit into images resized to 20", "--crop"),
        (replace(RESIZING, resize=(12, 40)), "too small for a crop of 16", "--resize"),
    ],
)
def test_what_cannot_be_fused_is_refused_with_the_way_out(
    saved: CheckpointRequest, asked: PreprocessingRequest, found: str, fix: str
) -> None:
    with pytest.raises(UsageError) as error:
        read(saved, asked)
    assert found in error.value.found
    assert fix in error.value.fix


def test_a_model_of_something_else_than_one_image_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="needs a model of one image, and this one takes left") as error:
        read(models.save(models.TwoTowers, tmp_path, (6,), (3,)), FUSE)
    assert "preprocess in the client" in error.value.fix


@pytest.mark.parametrize("size", [(480, 640), (640, 480), (333, 500), (20, 20), (7, 900)])
def test_sizes_are_those_of_torchvision(size: tuple[int, int], saved: CheckpointRequest) -> None:
    import_torchvision()
    from torchvision.transforms import v2

    known = read(saved, PreprocessingRequest(resize=20)).preprocessing
    assert resized_size(known, size) == tuple(v2.Resize([20], antialias=True)(torch.zeros(1, *size)).shape[-2:])
