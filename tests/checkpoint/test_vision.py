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
# Torch's compiler takes as long to import as all the rest, and is there as soon as somebody wants it.
COMPILER_LATER = """
import sys
from deploy.checkpoint.vision import _compiler_on_use, import_torchvision

import_torchvision()
assert not {"torch._dynamo", "torch._dynamo.utils"} & sys.modules.keys()
with _compiler_on_use():
    from torch._dynamo.utils import is_compile_supported as later, counters
import torch._dynamo
assert torch._dynamo.utils.counters is counters
from torchvision.ops import roi_align
asked = sys.modules[roi_align.__module__].is_compile_supported
assert asked is not later is not torch._dynamo.utils.is_compile_supported
assert asked("cpu") == later("cpu") == torch._dynamo.utils.is_compile_supported("cpu")
print("built")
"""


@pytest.mark.parametrize("program", [IMPORT + BUILD, IMPORT + IMPORT + BUILD, LOADED + IMPORT + BUILD, COMPILER_LATER])
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
