"""Texts become the network's token ids, as training's tokenizer made them: the `model.py` of an ensemble's first step.

Runs in Triton's python backend with numpy and tokenizers alone. The tokenizer, with training's truncation and padding,
is `tokenizer.json` beside it; what the network takes of it stands in `text.json`. A text that cannot be used fails its
own request, with the reason; every other request is answered.
"""

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

# One process per instance is enough: threads of the tokenizer's own would take the network's cores.
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
_COLUMNS = {"ids": "ids", "mask": "attention_mask", "types": "type_ids"}


class BadText(ValueError):  # noqa: N818 - named for what it says
    """A text that is none, or that the network cannot take."""


class Encoder:
    """The tokenizer of training, as `tokenizer.json` and `text.json` hold it."""

    def __init__(self, tokenizer: str, settings: dict[str, Any]) -> None:
        from tokenizers import Tokenizer

        self._tokenizer = Tokenizer.from_str(tokenizer)
        self._settings = settings

    def encode(self, texts: Sequence[bytes]) -> dict[str, np.ndarray]:
        """The network's inputs by their names on the wire, [texts, tokens], padded to the longest of these texts.

        Raises BadText with the reason, and with the text's place where there are several.
        """
        found = self._tokenized([self._decoded(data, _place(n, texts)) for n, data in enumerate(texts)])
        shortest, longest = self._settings["shortest"], self._settings["longest"]
        for n, one in enumerate(found):
            tokens = sum(one.attention_mask)
            if not shortest <= tokens <= longest:
                raise BadText(f"{_place(n, texts)} has {tokens} tokens; the network takes {shortest} to {longest}")
        return {
            name: np.array([getattr(one, _COLUMNS[what]) for one in found], np.int64)
            for name, what in self._settings["inputs"].items()
        }

    def _decoded(self, data: bytes, which: str) -> str:
        most = self._settings["max_bytes"]
        if len(data) > most:
            raise BadText(f"{which} has {len(data)} bytes; at most {most} are taken")
        try:
            return data.decode("utf-8")
        except UnicodeDecodeError as error:
            raise BadText(f"{which} is not UTF-8: {error.reason} at byte {error.start}") from None

    def _tokenized(self, texts: list[str]) -> list[Any]:
        try:
            found: list[Any] = self._tokenizer.encode_batch(texts)
        except BaseException as error:
            # A panic of the tokenizer's native code is no Exception, and must not end this process.
            if isinstance(error, KeyboardInterrupt | SystemExit):
                raise
            if len(texts) == 1:
                raise BadText(f"the text cannot be read by the tokenizer: {error}") from None
            raise BadText(f"one of the {len(texts)} texts cannot be read by the tokenizer: {error}") from None
        return found


def _place(index: int, texts: Sequence[bytes]) -> str:
    return "the text" if len(texts) == 1 else f"text {index + 1} of {len(texts)}"


class TritonPythonModel:
    """What the python backend loads."""

    def initialize(self, args: dict[str, str]) -> None:
        """Read the tokenizer."""
        folder = Path(args["model_repository"], args["model_version"])
        settings = json.loads((folder / "text.json").read_text(encoding="utf-8"))
        self._encoder = Encoder((folder / "tokenizer.json").read_text(encoding="utf-8"), settings)

    def execute(self, requests: list[Any]) -> list[Any]:
        """One response per request, in order."""
        return [self._respond(request) for request in requests]

    def _respond(self, request: Any) -> Any:
        import triton_python_backend_utils as pb_utils

        texts = pb_utils.get_input_tensor_by_name(request, "TEXT").as_numpy().reshape(-1)
        try:
            found = self._encoder.encode([bytes(text) for text in texts])
        except BadText as error:
            refused = pb_utils.TritonError(str(error), pb_utils.TritonError.INVALID_ARG)
            return pb_utils.InferenceResponse(error=refused)
        return pb_utils.InferenceResponse([pb_utils.Tensor(name, array) for name, array in found.items()])
