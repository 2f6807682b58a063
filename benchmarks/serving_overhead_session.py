"""What both peers of serving_overhead.py run: one ONNX Runtime session with stated threads, and counters.

Needs numpy and ONNX Runtime only, since it runs in the peers' own environment.
"""

import numpy as np
import onnxruntime

SHAPE = (1, 3, 224, 224)


def image(body: bytes) -> np.ndarray:
    """The bytes as an image, without a copy."""
    return np.frombuffer(body, dtype=np.float32).reshape(SHAPE)


class Session:
    """Counts executions and rows in `counters`, a file of two 64-bit integers that another process reads."""

    def __init__(self, model: str, threads: int, counters: str) -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        options.log_severity_level = 3
        self._session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
        self._counters = np.memmap(counters, dtype=np.int64, mode="r+", shape=(2,))

    def image(self, body: bytes) -> np.ndarray:
        """The bytes as an image, without a copy."""
        return image(body)

    def run(self, images: np.ndarray) -> np.ndarray:
        """The scores of a batch."""
        scores: np.ndarray = self._session.run(["OUTPUT__0"], {"INPUT__0": images})[0]
        self._counters += (1, len(images))
        return scores
