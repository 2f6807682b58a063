"""Networks of transformers that find things in images: which outputs a version has, and what their scores are of."""

from pathlib import Path

import pytest
import torch

from deploy.checkpoint.load import build_module
from deploy.checkpoint.pretrained import import_transformers
from deploy.errors import UsageError
from tests.checkpoint.test_pretrained import read
from tests.pretrained import LABELS, change_config, save_folder


def test_a_detector_gives_scores_and_boxes_and_no_states(tmp_path: Path) -> None:
    module = save_folder(tmp_path, "YolosForObjectDetection", tokenizer=False)
    checkpoint = read(tmp_path)
    image = torch.rand(2, 3, 32, 48)
    found = build_module(checkpoint)(image)
    assert list(found) == ["logits", "pred_boxes"]
    with torch.no_grad():
        expected = module(image)
    torch.testing.assert_close(found["logits"], expected.logits)
    torch.testing.assert_close(found["pred_boxes"], expected.pred_boxes)
    assert (checkpoint.classes, checkpoint.num_classes) == ((*LABELS, "no object"), 4)
    assert (checkpoint.decisions["logits"], checkpoint.decisions["pred_boxes"]) == (2, None)
    assert any("no pixel_mask is an input" in note and "that of no object" in note for note in checkpoint.notes)


def test_no_class_is_added_to_scores_that_have_none_more(tmp_path: Path) -> None:
    save_folder(tmp_path, "RTDetrForObjectDetection", tokenizer=False)
    checkpoint = read(tmp_path, input_shapes=((3, 64, 64),))
    assert (checkpoint.classes, checkpoint.num_classes) == (LABELS, 3)


def test_a_processor_of_many_sizes_asks_for_one(tmp_path: Path) -> None:
    save_folder(tmp_path, "DetrForObjectDetection", tokenizer=False)
    import_transformers().DetrImageProcessor().save_pretrained(tmp_path)
    with pytest.raises(UsageError, match="makes images of many sizes") as refused:
        read(tmp_path)
    assert refused.value.fix == "add --input-shape 3,HEIGHT,WIDTH"
    checkpoint = read(tmp_path, input_shapes=((3, 64, 96),))
    assert checkpoint.inputs[0].shape == ("batch", 3, 64, 96)
    assert any("the folder's image processor makes" in note for note in checkpoint.notes)


def test_a_backbone_that_transformers_4_took_from_timm_needs_no_hub(tmp_path: Path) -> None:
    backbone = {"model_type": "timm_backbone", "backbone": "resnet18", "out_indices": [1, 2, 3, 4]}
    save_folder(tmp_path, "DetrForObjectDetection", tokenizer=False, backbone_config=backbone)
    change_config(
        tmp_path, backbone_config=None, use_timm_backbone=True, backbone="resnet18", use_pretrained_backbone=True,
        backbone_kwargs={"out_indices": [1, 2, 3, 4], "in_chans": 3},
    )  # fmt: skip
    checkpoint = read(tmp_path, input_shapes=((3, 64, 64),))
    assert build_module(checkpoint)(torch.rand(1, 3, 64, 64))["pred_boxes"].shape == (1, 5, 4)
