"""Image processors of transformers as they are: in our steps where those compute the same, else said to be more."""

import json
from pathlib import Path
from typing import Any

import pytest

from deploy.checkpoint.model import Preprocessing
from deploy.checkpoint.pretrained import import_transformers
from deploy.checkpoint.pretrained_folder import PretrainedFolder
from deploy.checkpoint.processors import read_processor
from deploy.spec import TensorSpec

HALF = (0.5, 0.5, 0.5)


def read(folder: Path, processor: Any, size: int = 32) -> tuple[Preprocessing, tuple[str, ...]]:
    processor.save_pretrained(folder)
    image = TensorSpec(name="pixel_values", dtype="float32", shape=("batch", 3, size, size))
    return read_processor(import_transformers(), PretrainedFolder(path=folder, config={}, weights=(), kept=()), image)


# What each does beyond resizing, scaling and normalising, and how that stands in a version's manifest.
KINDS: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    "resizes more, then crops": (
        "ConvNextImageProcessor",
        {"size": {"shortest_edge": 32}, "crop_pct": 0.875},
        {"resize": 36, "crop": 32},
    ),
    "stretches, from 384 pixels on": (
        "ConvNextImageProcessor",
        {"size": {"shortest_edge": 384}, "crop_pct": 0.875},
        {"resize": (384, 384), "crop": None},
    ),
    "divides twice": (
        "EfficientNetImageProcessor",
        {"size": {"height": 32, "width": 32}},
        {"mean": HALF, "std": (0.25, 0.25, 0.25)},
    ),
    "scales to another range": (
        "ViTImageProcessor",
        {"size": {"height": 32, "width": 32}, "rescale_factor": 1 / 127.5},
        {"value_range": (0.0, 2.0), "mean": HALF},
    ),
    "does not normalise, though it holds a mean": (
        "MobileViTImageProcessor",
        {"size": {"shortest_edge": 36}, "crop_size": {"height": 32, "width": 32}},
        {"mean": (0.0, 0.0, 0.0), "std": (1.0, 1.0, 1.0), "layout": "NCHW, BGR", "resize": 36, "crop": 32},
    ),
    "does not crop, though it holds a size": (
        "BeitImageProcessor",
        {"size": {"height": 32, "width": 32}, "do_center_crop": False},
        {"resize": (32, 32), "crop": None, "interpolation": "bicubic"},
    ),
}


@pytest.mark.parametrize("kind", KINDS)
def test_what_a_processor_does_is_what_is_said_of_it(kind: str, tmp_path: Path) -> None:
    name, settings, wanted = KINDS[kind]
    size = 384 if "384" in kind else 32
    found, notes = read(tmp_path, getattr(import_transformers(), name)(**settings), size)
    assert notes == ()
    assert {key: getattr(found, key) for key in wanted} == wanted


def test_one_that_does_something_else_is_not_described_by_halves(tmp_path: Path) -> None:
    """PoolFormer enlarges by a share of its own before it crops; what is not known is not guessed."""
    processor = import_transformers().PoolFormerImageProcessor(size={"shortest_edge": 32}, crop_pct=0.9)
    found, (note,) = read(tmp_path, processor)
    assert found == Preprocessing(source="preprocessor_config.json")
    assert "by the processor itself" in note


def test_one_that_cannot_be_loaded_is_said(tmp_path: Path) -> None:
    processor = import_transformers().ViTImageProcessor(size={"height": 32, "width": 32})
    read(tmp_path, processor)
    file = tmp_path / "preprocessor_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "image_processor_type": "MyProcessor"}))
    image = TensorSpec(name="pixel_values", dtype="float32", shape=("batch", 3, 32, 32))
    folder = PretrainedFolder(path=tmp_path, config={}, weights=(), kept=())
    found, (note,) = read_processor(import_transformers(), folder, image)
    assert found.mean is None and "by the processor itself" in note


def test_another_size_than_the_processor_makes_leaves_resize_and_crop_unknown(tmp_path: Path) -> None:
    processor = import_transformers().ViTImageProcessor(size={"height": 32, "width": 32})
    found, notes = read(tmp_path, processor, 48)
    assert (found.resize, found.crop, found.mean) == (None, None, HALF)
    assert notes == ("resize and crop: unknown for 48 x 48; the folder's image processor makes 32 x 32",)
