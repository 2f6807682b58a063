"""What an ONNX Runtime session on a GPU is told, and that one which fell back to the CPU is refused: without a GPU."""

import pytest

from deploy.convert.providers import CUDA_PROVIDER, providers, require_provider
from deploy.errors import UnfinishedError


class Session:
    """As much of a session as says on what it runs."""

    def __init__(self, *names: str) -> None:
        self.names = list(names)

    def get_providers(self) -> list[str]:
        return self.names


def test_a_session_on_the_gpu_is_told_to_keep_float32() -> None:
    assert providers("cpu") == ["CPUExecutionProvider"]
    assert providers("cuda") == [(CUDA_PROVIDER, {"device_id": "0", "use_tf32": "0"}), "CPUExecutionProvider"]


def test_a_session_that_fell_back_to_the_cpu_is_refused() -> None:
    require_provider(Session("CPUExecutionProvider"), "cpu")
    require_provider(Session(CUDA_PROVIDER, "CPUExecutionProvider"), "cuda")
    with pytest.raises(UnfinishedError, match=r"opened its session on CPUExecutionProvider: its CUDA provider"):
        require_provider(Session("CPUExecutionProvider"), "cuda")
