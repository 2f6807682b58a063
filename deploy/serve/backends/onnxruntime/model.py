"""Executes `model.onnx` with ONNX Runtime for the local engine, from the model folder meant for the C++ backend.

Owns nothing but the calls into ONNX Runtime. Loaded by the server's stub process.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnxruntime

from deploy.convert.providers import load_cuda_libraries, providers, require_provider
from deploy.serve.backends.sessions import session_options
from deploy.serve.backends.shared import BatchedModel, Settings


class TritonPythonModel(BatchedModel):
    """One ONNX Runtime session."""

    def load(self, settings: Settings) -> None:
        """Open the session with the config's threads, level, parameters and accelerators, on its device."""
        if settings.device == "cuda":
            load_cuda_libraries()
        options = session_options(
            threads=settings.threads, graph_level=settings.graph_level, parameters=settings.parameters
        )
        chosen = providers(settings.device, settings.parameters)
        self._session = onnxruntime.InferenceSession(str(settings.file), options, providers=chosen)
        require_provider(self._session, settings.device, settings.parameters)

    def view(self, tensor: Any) -> np.ndarray:
        """A numpy array on the request's memory."""
        return np.from_dlpack(tensor)

    def join(self, arrays: list[np.ndarray]) -> np.ndarray:
        """One array with all rows."""
        return np.concatenate(arrays)

    def run(self, inputs: list[np.ndarray]) -> Sequence[np.ndarray]:
        """The session's outputs."""
        feed = dict(zip(self.settings.inputs, inputs, strict=True))
        outputs: list[np.ndarray] = self._session.run(list(self.settings.outputs), feed)
        return outputs
