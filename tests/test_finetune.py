"""The fine-tune of the demo learns, and leaves what people save, each readable and each the same network."""

import subprocess
import sys
from pathlib import Path

import digits
import numpy as np
import pytest
import torch

from deploy.checkpoint.load import build_module, read_checkpoint
from deploy.checkpoint.model import Checkpoint, CheckpointRequest
from tests.markdown import ROOT

FILES = ("digits_resnet18.pt", "digits_resnet18_training.pt", "digits_resnet18.safetensors")


def finetune(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "examples/finetune.py", *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("trained")
    result = finetune("--out", str(folder), "--epochs", "2")
    assert result.returncode == 0, result.stdout + result.stderr
    assert "held-out accuracy: 9" in result.stdout
    assert "8,398,858 of 11,181,642 parameters are trained" in result.stdout
    return folder


def read(path: Path) -> Checkpoint:
    return read_checkpoint(CheckpointRequest(path=path, input_shapes=((3, digits.SIZE, digits.SIZE),)))


def test_each_file_is_read_as_the_same_network(trained: Path) -> None:
    found = {name: read(trained / name) for name in FILES}
    assert {checkpoint.architecture for checkpoint in found.values()} == {"torchvision/resnet18"}
    states = [build_module(checkpoint).state_dict() for checkpoint in found.values()]
    for name, tensor in states[0].items():
        assert all(torch.equal(tensor, state[name]) for state in states[1:]), name


def test_the_training_dict_and_safetensors_say_how_they_were_trained(trained: Path) -> None:
    for name in FILES[1:]:
        checkpoint = read(trained / name)
        assert checkpoint.classes == digits.CLASSES
        assert checkpoint.preprocessing.source == "checkpoint"
        assert checkpoint.preprocessing.mean == digits.MEAN
        assert checkpoint.preprocessing.crop == digits.SIZE
    assert read(trained / FILES[0]).classes is None
    assert (trained / "labels.txt").read_text().split() == list(digits.CLASSES)


def test_the_samples_hold_held_out_images_and_what_the_network_said_of_them(trained: Path) -> None:
    with np.load(trained / "samples.npz", allow_pickle=False) as archive:
        arrays = dict(archive)
    assert sorted(arrays) == ["expected/output", "input", "labels"]
    _, held_out = digits.load_split(seed=0)
    count = len(arrays["labels"])
    np.testing.assert_array_equal(arrays["labels"], held_out.labels[:count])
    np.testing.assert_array_equal(arrays["input"], digits.preprocess(held_out.images[:count]))
    with torch.inference_mode():
        outputs = build_module(read(trained / FILES[0]))(torch.from_numpy(arrays["input"])).numpy()
    np.testing.assert_allclose(outputs, arrays["expected/output"], rtol=1e-4, atol=1e-4)
    assert (outputs.argmax(axis=1) == arrays["labels"]).mean() > 0.8


def test_the_held_out_images_are_not_trained_on() -> None:
    training, held_out = digits.load_split(seed=0)
    assert len(training.labels) + len(held_out.labels) == 1797
    assert set(np.unique(held_out.labels)) == set(range(10))
    seen = {image.tobytes() for image in training.images}
    assert not any(image.tobytes() in seen for image in held_out.images)


def test_preprocessing_gives_normalised_float32_images() -> None:
    white, black = digits.preprocess(np.stack([np.ones((8, 8)), np.zeros((8, 8))]), size=16)
    assert white.shape == (3, 16, 16)
    assert white.dtype == np.float32
    for channel in range(3):
        np.testing.assert_allclose(white[channel], (1 - digits.MEAN[channel]) / digits.STD[channel], rtol=1e-6)
        np.testing.assert_allclose(black[channel], -digits.MEAN[channel] / digits.STD[channel], rtol=1e-6)


def test_a_network_that_has_not_learnt_ends_with_1(tmp_path: Path) -> None:
    result = finetune("--out", str(tmp_path), "--epochs", "0")
    assert result.returncode == 1, result.stderr
    assert "held-out accuracy: 0.0%" in result.stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [(["--train", "layer9"], "has no layer 'layer9'; it has conv1"), (["--arch", "resnet19"], "'resnet19'")],
    ids=["layer", "arch"],
)
def test_wrong_names_are_refused_in_one_line(arguments: list[str], message: str, tmp_path: Path) -> None:
    result = finetune("--out", str(tmp_path / "out"), *arguments)
    assert result.returncode != 0
    assert message in result.stderr
    assert "Traceback" not in result.stderr
    assert not (tmp_path / "out").exists()


def test_the_client_says_why_it_has_no_answer() -> None:
    command = [sys.executable, "examples/classify.py", "--url", "localhost:1", "--wait", "0"]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert result.returncode == 1
    assert "no answer within 0 s: " in result.stderr
    assert "Traceback" not in result.stderr
