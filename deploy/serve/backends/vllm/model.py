"""The backend `vllm` of the local engine: the tensors of NVIDIA's own, and the real vLLM behind them in a child.

Owns the requests of the server's stub; `engine.py` beside it runs the engine, in the environment that holds vLLM.
"""

import json
import os
import subprocess
import threading
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import triton_python_backend_utils as pb_utils

# As in deploy.serve.parameters: the stub has an environment of its own, without deploy.
ENGINE_PARAMETER = "deployctl_vllm"
_FLAGS = ("finish_reason", "cumulative_logprob", "logprobs", "num_input_tokens", "num_output_tokens")
_END_SECONDS = 20.0


class TritonPythonModel:
    """One model: a child that generates, and who waits for which of its lines."""

    def initialize(self, args: dict[str, str]) -> None:
        """Called by the stub once: starts the engine, which checks the digests, and waits until it is ready."""
        config = json.loads(args["model_config"])
        first = json.loads(config["parameters"][ENGINE_PARAMETER]["string_value"])
        command, variables = first.pop("command"), first.pop("variables")
        # Not the server's libraries, nor this environment's packages.
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "LD_LIBRARY"))}
        self._adapters = first["adapters"]
        self._waiting: dict[str, _Waiting] = {}
        self._lock = threading.Lock()
        self._dead = ""
        self._child = subprocess.Popen(
            [*command, str(Path(__file__).with_name("engine.py"))],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=kept | variables,
        )
        self._write(first)
        assert self._child.stdout is not None
        answer = json.loads(self._child.stdout.readline() or '{"fatal": "vLLM ended before it was ready"}')
        if "ready" not in answer:
            raise pb_utils.TritonModelException(f"vLLM did not start: {answer['fatal']}")
        pb_utils.Logger.log_info(f"vLLM {answer['ready']} is ready")
        threading.Thread(target=self._read, daemon=True).start()

    def execute(self, requests: list[Any]) -> None:
        """Called by the stub: each request goes to the engine at once, which batches by itself."""
        for request in requests:
            try:
                self._begin(request)
            except Exception as error:  # noqa: BLE001 - the client is told, the server lives on
                _refuse(request.get_response_sender(), f"{type(error).__name__}: {error}")

    def finalize(self) -> None:
        """Called by the stub at the end: the engine ends when there is nothing more to read."""
        assert self._child.stdin is not None
        self._child.stdin.close()
        try:
            self._child.wait(_END_SECONDS)
        except subprocess.TimeoutExpired:
            self._child.kill()

    def _begin(self, request: Any) -> None:
        if self._dead:
            raise RuntimeError(self._dead)
        waiting = _Waiting(request)
        sampling = waiting.sampling(request)
        lora = sampling.pop("lora_name", None)
        if lora is not None and lora not in self._adapters:
            raise ValueError(f"LoRA {lora} is not supported, we currently support {list(self._adapters)}")
        id_ = uuid.uuid4().hex
        self._waiting[id_] = waiting
        self._write({"id": id_, "prompt": waiting.prompt, "sampling": sampling, "lora": lora, "stream": waiting.stream})

    def _write(self, message: Mapping[str, Any]) -> None:
        assert self._child.stdin is not None
        with self._lock:
            self._child.stdin.write(json.dumps(message) + "\n")
            self._child.stdin.flush()

    def _read(self) -> None:
        assert self._child.stdout is not None
        for line in self._child.stdout:
            answer = json.loads(line)
            waiting = self._waiting.get(answer["id"])
            if waiting is None:
                continue
            if "error" in answer or answer["finished"]:
                del self._waiting[answer["id"]]
            elif waiting.cancelled:
                self._write({"abort": answer["id"]})
            waiting.take(answer)
        self._dead = "vLLM has ended: see the server's log"
        for waiting in list(self._waiting.values()):
            waiting.take({"error": self._dead})


class _Waiting:
    """Who waits for an answer, and what of it was asked for."""

    def __init__(self, request: Any) -> None:
        self._sender = request.get_response_sender()
        self.prompt = _text(request, "text_input") or ""
        self.stream = _flag(request, "stream", otherwise=False)
        exclude = _flag(request, "exclude_input_in_output", otherwise=self.stream)
        if self.stream and not exclude:
            raise ValueError("When streaming, `exclude_input_in_output` = False is not allowed.")
        self._prefix = "" if exclude else self.prompt
        self._wanted = [name for name in _FLAGS if _flag(request, f"return_{name}", otherwise=False)]

    @property
    def cancelled(self) -> bool:
        """Whether the client is gone."""
        return bool(self._sender.is_cancelled())

    def sampling(self, request: Any) -> dict[str, Any]:
        """The sampling parameters: the tensor of that name, else the request's own parameters."""
        found = json.loads(_text(request, "sampling_parameters") or request.parameters() or "{}")
        if not isinstance(found, dict):
            raise TypeError("sampling_parameters is no JSON object")
        return found

    def take(self, answer: Mapping[str, Any]) -> None:
        """Send one line of the engine on to the client."""
        if "error" in answer:
            _refuse(self._sender, answer["error"])
            return
        final = pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL if answer["finished"] else 0
        self._sender.send(pb_utils.InferenceResponse(self._tensors(answer)), final)

    def _tensors(self, answer: Mapping[str, Any]) -> list[Any]:
        outputs, prefix = answer["outputs"], self._prefix
        columns: dict[str, Any] = {
            "finish_reason": np.array([one["finish_reason"].encode() for one in outputs], np.object_),
            "logprobs": np.array([json.dumps(one["logprobs"]).encode() for one in outputs], np.object_),
            "num_input_tokens": np.array([answer["prompt_tokens"]], np.uint32),
            "num_output_tokens": np.array([len(one["tokens"]) for one in outputs], np.uint32),
            "cumulative_logprob": np.array([one["cumulative_logprob"] or 0.0 for one in outputs], np.float32),
        }
        texts = np.array([(prefix + one["text"]).encode() for one in outputs], np.object_)
        return [pb_utils.Tensor("text_output", texts), *(pb_utils.Tensor(name, columns[name]) for name in self._wanted)]


def _refuse(sender: Any, reason: str) -> None:
    response = pb_utils.InferenceResponse(error=pb_utils.TritonError(reason))
    sender.send(response, pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL)


def _text(request: Any, name: str) -> str | None:
    tensor = pb_utils.get_input_tensor_by_name(request, name)
    return None if tensor is None else tensor.as_numpy().reshape(-1)[0].decode()


def _flag(request: Any, name: str, *, otherwise: bool) -> bool:
    tensor = pb_utils.get_input_tensor_by_name(request, name)
    return otherwise if tensor is None else bool(tensor.as_numpy().reshape(-1)[0])
