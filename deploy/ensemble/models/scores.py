"""A network's raw outputs become labels and scores, the best first: the `model.py` of an ensemble's last step.

Runs in Triton's python backend with numpy alone. The labels stand in `labels.json` beside it, in the output's order.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np


def best(logits: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    """The `count` best classes of each row, best first, and their softmax scores in float32."""
    wide = logits.astype(np.float64)
    powers = np.exp(wide - wide.max(axis=1, keepdims=True))
    scores = (powers / powers.sum(axis=1, keepdims=True)).astype(np.float32)
    # Stable, so that equal scores stand in the classes' own order.
    order = np.argsort(-wide, axis=1, kind="stable")[:, :count]
    return order, np.take_along_axis(scores, order, axis=1)


class TritonPythonModel:
    """What the python backend loads."""

    def initialize(self, args: dict[str, str]) -> None:
        """Read the labels, and how many are wanted."""
        folder = Path(args["model_repository"], args["model_version"])
        self._labels = np.array([name.encode() for name in json.loads((folder / "labels.json").read_text())], object)
        outputs = {tensor["name"]: tensor for tensor in json.loads(args["model_config"])["output"]}
        self._count = int(outputs["SCORES"]["dims"][-1])

    def execute(self, requests: list[Any]) -> list[Any]:
        """One response per request, in order."""
        import triton_python_backend_utils as pb_utils

        responses = []
        for request in requests:
            logits = pb_utils.get_input_tensor_by_name(request, "LOGITS").as_numpy()
            classes, scores = best(logits, self._count)
            tensors = [pb_utils.Tensor("LABELS", self._labels[classes]), pb_utils.Tensor("SCORES", scores)]
            responses.append(pb_utils.InferenceResponse(tensors))
        return responses
