"""torchvision can be imported beside any torch, in a fresh process, with or without its C++ ops."""

import subprocess
import sys

import pytest
import torch

from deploy.checkpoint.vision import minor_release, torchvision_version

IMPORT = "from deploy.checkpoint.vision import import_torchvision; vision = import_torchvision(); "
BUILD = "assert vision.models.resnet18(weights=None).fc.out_features == 1000; print('built')"
# A torchvision whose library loads has defined its schemas by then; declaring them again would raise.
LOADED = (
    "import torch; library = torch.library.Library('torchvision', 'DEF'); "
    "library.define('nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor'); "
    "library.define('qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor'); "
)


@pytest.mark.parametrize("program", [IMPORT + BUILD, IMPORT + IMPORT + BUILD, LOADED + IMPORT + BUILD])
def test_it_imports_in_a_fresh_process_without_a_warning(program: str) -> None:
    if program.startswith(LOADED) and torch.version.cuda:
        pytest.skip("beside a CUDA torch torchvision's own library loads: the other programs meet that for real")
    command = [sys.executable, "-W", "error", "-c", program]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (result.stdout.strip(), result.stderr) == ("built", "")


def test_the_release_is_read_without_importing_it() -> None:
    program = "import sys; from deploy.checkpoint import zoo; zoo.load_zoo(); print('torch' in sys.modules)"
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "False"
    assert torchvision_version().startswith(minor_release())
