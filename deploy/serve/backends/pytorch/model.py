"""Executes `model.pt2` with AOTInductor's loader for the local engine, from the folder meant for the C++ backend.

Owns nothing but the calls into torch. Loaded by the server's stub process.
"""

from collections.abc import Sequence
from typing import Any

import torch
import triton_python_backend_utils as pb_utils

from deploy.convert.archive import load_archive
from deploy.convert.cuda import exact_float32, moved
from deploy.serve.backends.shared import BatchedModel, Settings
from deploy.spec import wire_output


class TritonPythonModel(BatchedModel):
    """One loaded AOTInductor archive."""

    def load(self, settings: Settings) -> None:
        """Load the archive. It is native code, so one whose digest nobody vouches for is refused."""
        if not settings.has_digest:
            raise pb_utils.TritonModelException(f"{settings.file} is native code and comes without an expected digest")
        if settings.threads is not None:
            torch.set_num_threads(settings.threads)
        exact_float32(settings.device)
        self._run = load_archive(settings.file, settings.device)
        self._order = [_position(name) for name in settings.outputs]

    def view(self, tensor: Any) -> torch.Tensor:
        """A tensor on the request's memory."""
        return torch.utils.dlpack.from_dlpack(tensor.to_dlpack())

    def join(self, arrays: list[torch.Tensor]) -> torch.Tensor:
        """One tensor with all rows."""
        return torch.cat(arrays)

    def run(self, inputs: list[torch.Tensor]) -> Sequence[torch.Tensor]:
        """The archive's outputs."""
        with torch.inference_mode():
            outputs = self._run(moved(inputs, self.settings.device))
            return [outputs[position].cpu().contiguous() for position in self._order]


def _position(name: str) -> int:
    prefix = wire_output(0).removesuffix("0")
    return int(name.removeprefix(prefix))
