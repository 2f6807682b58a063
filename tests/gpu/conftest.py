"""Every test of this folder needs a real GPU; without one it is skipped, and says why.

`python -m pytest -m gpu tests/gpu`; a machine with a GPU that torch cannot use fails rather than skips.
"""

import pytest

from deploy.device import look
from deploy.gpu import GpuStack, visible_gpu
from deploy.processes import prepare
from deploy.serve.engines import Engine, installed_engine


@pytest.fixture(scope="session", autouse=True)
def stack() -> GpuStack:
    """The GPU, and what lacks here to use it."""
    if visible_gpu() is None:
        pytest.skip("nvidia-smi lists no GPU here")
    prepare("deploy.convert.preload")
    return look()


@pytest.fixture(scope="session")
def onnx_on_gpu(stack: GpuStack) -> None:
    """Skips where this machine's ONNX Runtime is the build for CPU."""
    if stack.onnx:
        pytest.skip(stack.onnx)


@pytest.fixture(scope="session")
def installed() -> Engine | None:
    """The local engine if it was installed before: a machine with a GPU may reach no registry."""
    return installed_engine()
