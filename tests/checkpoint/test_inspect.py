"""`deployctl inspect` as a person and as a program meet it."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner

from deploy.cli.inspect import command
from deploy.errors import UsageError
from tests.checkpoint.checkpoints import prefixed, small_state


@pytest.fixture
def training_dict(tmp_path: Path) -> Path:
    path = tmp_path / "digits best.pth"
    torch.save({"state_dict": prefixed(small_state(), "module."), "classes": ["a", "b", "[c]"]}, path)
    return path


def test_a_person_reads_what_was_found_and_what_was_not(training_dict: Path) -> None:
    result = CliRunner().invoke(command, [str(training_dict)], catch_exceptions=False)
    text = " ".join(result.stdout.split())
    assert result.exit_code == 0
    for words in (
        "torchvision/squeezenet1_1 (num_classes=3)",
        "name digits_best",
        "under 'state_dict', prefixes removed: 'module.'",
        "input image float32 batch x 3 x 224 x 224",
        "classes 3: a, b, [c]",
        "std 0.229 0.224 0.225",
        "architecture: inferred, behaviour unconfirmed",
        "note: preprocessing: that of torchvision SqueezeNet1_1_Weights",
    ):
        assert words in text


def test_a_program_reads_one_json_object(training_dict: Path) -> None:
    result = CliRunner().invoke(command, [str(training_dict), "--json", "--arch", "squeezenet1_1"])
    found = json.loads(result.stdout)
    assert found["architecture"] == "torchvision/squeezenet1_1"
    assert found["standing"] == "architecture: as asked for, behaviour unconfirmed"
    assert found["classes"] == ["a", "b", "[c]"]
    assert found["removed_prefixes"] == ["module."]


def test_shapes_are_given_once_per_input(training_dict: Path) -> None:
    result = CliRunner().invoke(command, [str(training_dict), "--json", "--input-shape", "3,64,96"])
    assert json.loads(result.stdout)["inputs"][0]["shape"] == ["batch", 3, 64, 96]


@pytest.mark.parametrize("shape", ["3,x", "", "3,0,4", "-1"])
def test_what_is_no_shape_is_refused(shape: str, training_dict: Path) -> None:
    result = CliRunner().invoke(command, [str(training_dict), "--input-shape", shape])
    assert result.exit_code == 2
    assert "is not a shape" in result.stderr


def test_a_refusal_goes_up_to_where_exit_codes_are_decided(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="does not exist"):
        CliRunner().invoke(command, [str(tmp_path / "none.pt")], catch_exceptions=False)


def test_a_known_architecture_is_inspected_without_torchvision(training_dict: Path) -> None:
    program = (
        "import sys; from deploy.cli.inspect import command; "
        f"command.main([{str(training_dict)!r}, '--json'], standalone_mode=False); "
        "print([name for name in ('torchvision', 'onnx', 'onnxruntime') if name in sys.modules])"
    )
    result = subprocess.run([sys.executable, "-W", "error", "-c", program], capture_output=True, text=True, check=False)
    assert result.stdout.splitlines()[-1] == "[]", result.stderr
    assert result.stderr == ""
