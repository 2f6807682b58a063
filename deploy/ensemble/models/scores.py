"""A network's raw outputs become labels and scores, the best first: the `model.py` of an ensemble's last step.

Runs in Triton's python backend with numpy alone. The labels stand in `labels.json` beside it, in the output's order.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np


class BadOutput(ValueError):  # noqa: N818 - named for what it says
    """An answer of the network's that is no number."""


def best(logits: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    """The `count` best classes of each row, best first, and their softmax scores in float32.

    Raises BadOutput with the reason where there is none: a float16 network may leave its range.
    """
    wide = logits.astype(np.float64)
    lost = np.isnan(wide).any(axis=1) | np.isposinf(wide).any(axis=1) | np.isneginf(wide).all(axis=1)
    if lost.any():
        which = f" {lost.argmax() + 1} of {len(wide)}" if len(wide) > 1 else ""
        raise BadOutput(f"the network's answer{which} holds NaN or infinity, which nothing can be told by")
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
        # The stub's own locale may know no letter beyond ASCII.
        names: list[str] = json.loads((folder / "labels.json").read_text(encoding="utf-8"))
        self._labels = np.array([name.encode() for name in names], object)
        outputs = {tensor["name"]: tensor for tensor in json.loads(args["model_config"])["output"]}
        self._count = int(outputs["SCORES"]["dims"][-1])

    def execute(self, requests: list[Any]) -> list[Any]:
        """One response per request, in order."""
        import triton_python_backend_utils as pb_utils

        responses = []
        for request in requests:
            logits = pb_utils.get_input_tensor_by_name(request, "LOGITS").as_numpy()
            try:
                classes, scores = best(logits, self._count)
            except BadOutput as error:
                responses.append(pb_utils.InferenceResponse(error=pb_utils.TritonError(str(error))))
                continue
            tensors = [pb_utils.Tensor("LABELS", self._labels[classes]), pb_utils.Tensor("SCORES", scores)]
            responses.append(pb_utils.InferenceResponse(tensors))
        return responses
