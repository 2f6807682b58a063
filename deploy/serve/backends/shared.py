"""What both python-based backends share: reading the config, checking digests, batching requests, answering them.

Owns no runtime; the two `model.py` beside it load and call one each. Runs inside the server's stub process only.
"""

import ctypes
import json
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import triton_python_backend_utils as pb_utils

from deploy.convert.model import Device
from deploy.files import sha256_file
from deploy.serve.parameters import DEVICE_PARAMETER, DIGEST_PARAMETER

# A capsule keeps the pointer, not the bytes: the name has to live as long as the process.
_TAKEN = ctypes.c_char_p(b"used_dltensor")
_set_capsule_name = ctypes.pythonapi.PyCapsule_SetName
_set_capsule_name.argtypes = (ctypes.py_object, ctypes.c_char_p)


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """What the server said about one model instance. `batched` is False for `max_batch_size: 0`.

    `device` is where the runtime computes; requests and answers are in the CPU's memory all the same.
    """

    file: Path
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    batched: bool
    threads: int | None
    graph_level: int
    parameters: dict[str, str]
    has_digest: bool
    device: Device = "cpu"


class BatchedModel(ABC):
    """One instance of a model, as the stub wants it: several requests become one run where the model has a batch."""

    settings: Settings

    @abstractmethod
    def load(self, settings: Settings) -> None:
        """Load the model file and be ready to `run`."""

    @abstractmethod
    def view(self, tensor: Any) -> Any:
        """An array of the runtime on the memory of a request's tensor, without a copy."""

    @abstractmethod
    def join(self, arrays: list[Any]) -> Any:
        """The arrays of several requests, one after the other along the batch."""

    @abstractmethod
    def run(self, inputs: list[Any]) -> Sequence[Any]:
        """The outputs in the order of the settings, each a C-contiguous array with the batch first."""

    def initialize(self, args: dict[str, str]) -> None:
        """Called by the stub once: checks the digests, then loads."""
        self.settings = _settings(args)
        self.load(self.settings)

    def execute(self, requests: list[Any]) -> list[Any]:
        """Called by the stub with what the scheduler put together: one response per request, in order."""
        if self.settings.batched and len(requests) > 1:
            try:
                return self._answer_together(requests)
            except Exception as error:  # noqa: BLE001 - whatever the runtime raises; each request then gets its own
                pb_utils.Logger.log_warn(f"{len(requests)} requests in one batch failed, each is tried alone: {error}")
        return [self._answer_alone(request) for request in requests]

    def _answer_together(self, requests: list[Any]) -> list[Any]:
        arrays = [self._arrays(request) for request in requests]
        outputs = self.run([self.join(list(column)) for column in zip(*arrays, strict=True)])
        rows = [row_inputs[0].shape[0] for row_inputs in arrays]
        responses, start = [], 0
        for count in rows:
            responses.append(self._response([output[start : start + count] for output in outputs]))
            start += count
        return responses

    def _answer_alone(self, request: Any) -> Any:
        try:
            return self._response(self.run(self._arrays(request)))
        except Exception as error:  # noqa: BLE001 - the client is told, the server lives on
            return pb_utils.InferenceResponse(error=pb_utils.TritonError(f"{type(error).__name__}: {error}"))

    def _arrays(self, request: Any) -> list[Any]:
        return [self.view(pb_utils.get_input_tensor_by_name(request, name)) for name in self.settings.inputs]

    def _response(self, outputs: Sequence[Any]) -> Any:
        names = self.settings.outputs
        return pb_utils.InferenceResponse([_tensor(name, array) for name, array in zip(names, outputs, strict=True)])


def _tensor(name: str, array: Any) -> Any:
    """The array as an output of the stub. With numpy 2 its Tensor(name, array) is silently empty; DLPack is exact."""
    capsule = array.__dlpack__()
    tensor = pb_utils.Tensor.from_dlpack(name, capsule)
    # The stub names a taken capsule "used_dlpack"; numpy knows only the standard's name and would log a traceback.
    _set_capsule_name(capsule, _TAKEN)
    return tensor


def _settings(args: dict[str, str]) -> Settings:
    config = json.loads(args["model_config"])
    parameters = {name: value["string_value"] for name, value in config.get("parameters", {}).items()}
    folder = Path(args["model_repository"], args["model_version"])
    file = folder / config["default_model_filename"]
    threads = parameters.get("intra_op_thread_count") or parameters.get("INTRA_OP_THREAD_COUNT")
    return Settings(
        file=file / file.name if file.is_dir() else file,
        inputs=tuple(tensor["name"] for tensor in config["input"]),
        outputs=tuple(tensor["name"] for tensor in config["output"]),
        batched=config.get("max_batch_size", 0) > 0,
        threads=int(threads) if threads else None,
        graph_level=config.get("optimization", {}).get("graph", {}).get("level", 0),
        parameters=parameters,
        has_digest=_check_digests(folder, parameters),
        device="cuda" if parameters.get(DEVICE_PARAMETER) == "cuda" else "cpu",
    )


def _check_digests(folder: Path, parameters: dict[str, str]) -> bool:
    """Whether digests were expected; each one holds. Raises TritonModelException for a file that is another."""
    # One config serves several versions where ensembles run them.
    prefix = f"{DIGEST_PARAMETER}{folder.name}/"
    expected = {name.removeprefix(prefix): digest for name, digest in parameters.items() if name.startswith(prefix)}
    for name, digest in expected.items():
        found = sha256_file(folder / name)
        if found != digest:
            raise pb_utils.TritonModelException(
                f"{folder / name} is not the file that was proven: its sha256 is {found}, expected {digest}"
            )
    return bool(expected)
