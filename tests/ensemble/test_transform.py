"""Which transformers folders an image ensemble takes, and what it refuses, before any work."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from deploy.checkpoint.load import read_checkpoint
from deploy.checkpoint.model import CheckpointRequest
from deploy.checkpoint.pretrained import import_transformers
from deploy.ensemble.transform import image_transform
from deploy.errors import UsageError
from tests.packaging import make_request
from tests.pretrained import change_config, save_folder


def folder_with(folder: Path, processor: str, **settings: Any) -> CheckpointRequest:
    save_folder(folder, "ViTForImageClassification", tokenizer=False)
    getattr(import_transformers(), processor)(**settings).save_pretrained(folder)
    return CheckpointRequest(path=folder)


def test_a_folder_s_crop_is_rounded_as_transformers_rounds(tmp_path: Path) -> None:
    asked = folder_with(
        tmp_path, "BitImageProcessor", size={"shortest_edge": 35}, crop_size={"height": 32, "width": 32}
    )
    found = image_transform(read_checkpoint(asked), exif_orientation=False)
    assert (found.resize, found.crop, found.crop_rounds) == (35, 32, "down")


def _several_labels(folder: Path) -> CheckpointRequest:
    asked = folder_with(folder, "ViTImageProcessor", size={"height": 32, "width": 32})
    change_config(folder, problem_type="multi_label_classification")
    return asked


def _turned_colours(folder: Path) -> CheckpointRequest:
    size = {"height": 32, "width": 32}
    return folder_with(folder, "MobileViTImageProcessor", size={"shortest_edge": 36}, crop_size=size)


def _other_steps(folder: Path) -> CheckpointRequest:
    return folder_with(folder, "PoolFormerImageProcessor", size={"shortest_edge": 32}, crop_pct=0.9)


def _no_processor(folder: Path) -> CheckpointRequest:
    save_folder(folder, "ViTForImageClassification", tokenizer=False)
    return CheckpointRequest(path=folder)


REFUSED: dict[str, tuple[Callable[[Path], CheckpointRequest], str, str]] = {
    "no processor": (_no_processor, "no image processor lies in", "processor.save_pretrained"),
    "several labels at once": (_several_labels, "trained for several labels at once", "raw outputs"),
    "BGR": (_turned_colours, "it turns RGB to BGR", "with the processor itself"),
    "a processor of other steps": (_other_steps, "more than the first step can do", "with the processor itself"),
}


@pytest.mark.parametrize(("make", "found", "fix"), REFUSED.values(), ids=REFUSED)
def test_what_cannot_be_an_ensemble_is_refused(
    make: Callable[[Path], CheckpointRequest], found: str, fix: str, tmp_path: Path
) -> None:
    with pytest.raises(UsageError) as error:
        image_transform(read_checkpoint(make(tmp_path)), exif_orientation=False)
    assert found in error.value.found
    assert fix in error.value.fix


def test_a_network_of_one_number_is_refused_before_any_work(tmp_path: Path) -> None:
    checkpoint = read_checkpoint(make_request(tmp_path).checkpoint).model_copy(update={"num_classes": 1})
    with pytest.raises(UsageError, match="trained for one number"):
        image_transform(checkpoint, exif_orientation=False)
