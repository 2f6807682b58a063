"""Asking a running tritonserver over gRPC or HTTP: numpy arrays in, numpy arrays out.

Owns the calls of `tritonclient` and turns its errors into ours; judges nothing. Called by parity, reload, slo and tune.
"""

import http.client
import json
import queue
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from types import TracebackType
from typing import Any, Literal, Self

import numpy as np

from deploy.errors import UnfinishedError
from deploy.serve.burst import HttpRequest, HttpResponse, send_at_once

Protocol = Literal["grpc", "http"]
PROTOCOLS: tuple[Protocol, ...] = ("grpc", "http")
Tensors = Mapping[str, np.ndarray]

# A server is asked directly over both protocols. gRPC alone would go through a proxy that the environment names for the
# web, even to this machine: it refuses the call, or adds its own time to every latency.
DIRECT = ("grpc.enable_http_proxy", 0)
_OPTIONS = (("grpc.max_send_message_length", -1), ("grpc.max_receive_message_length", -1), DIRECT)
# Refused requests are in no counter, so the wait for them has an end.
_SETTLING_SECONDS = 5.0
_STILL_SECONDS = 0.05


class RequestFailed(UnfinishedError):  # noqa: N818 - named for what happened
    """The server refused a request, or could not be reached. `said` are the words of whoever said so."""

    said: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelAddress:
    """One version of one model, and the names of the outputs that are wanted of it."""

    name: str
    version: int
    outputs: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Statistics:
    """The server's own counters for a model version: requests ended, rows computed, runs of the model."""

    requests: int
    inferences: int
    executions: int

    def since(self, earlier: "Statistics") -> "Statistics":
        """What was counted after `earlier`."""
        return self._with(earlier, -1)

    def plus(self, other: "Statistics") -> "Statistics":
        """Both together."""
        return self._with(other, 1)

    def _with(self, other: "Statistics", sign: int) -> "Statistics":
        return Statistics(
            requests=self.requests + sign * other.requests,
            inferences=self.inferences + sign * other.inferences,
            executions=self.executions + sign * other.executions,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class ClassScore:
    """One entry of the classification extension's answer, the best first."""

    score: float
    index: int
    label: str


def connect(protocol: Protocol, address: str, *, seconds: float) -> tuple[Any, Any]:
    """Triton's client module for the protocol, and a client of it; over HTTP it waits `seconds` for each answer."""
    if protocol == "grpc":
        from tritonclient import grpc

        return grpc, grpc.InferenceServerClient(address, channel_args=list(_OPTIONS))
    from tritonclient import http as http_module

    return http_module, http_module.InferenceServerClient(address, connection_timeout=seconds, network_timeout=seconds)


@contextmanager
def ended_after(protocol: Protocol, seconds: float) -> Iterator[None]:
    """A block of HTTP calls that ends after so many seconds in all. Raises TimeoutError when they are over.

    The connection's own limit is one of silence: who sends a byte now and then would be listened to for ever.
    """
    if protocol == "grpc":
        yield
        return
    from gevent import Timeout

    with Timeout(seconds, TimeoutError(f"not answered to the end within {seconds:g} s")):
        yield


def words_of(error: Exception) -> str:
    """What a failed call says, with its status where it has one of a protocol's own."""
    from tritonclient.utils import InferenceServerException

    if not isinstance(error, InferenceServerException):
        return str(error) or type(error).__name__
    status = str(error.status() or "").removeprefix("StatusCode.")
    told = f"HTTP {status}" if status.isdecimal() else status
    return f"{told}: {error.message()}" if told else str(error.message())


def patience(protocol: Protocol, seconds: float) -> dict[str, float]:
    """The argument that lets one call wait so long: over gRPC each call says it, over HTTP the connection did."""
    return {"client_timeout": seconds} if protocol == "grpc" else {}


class Client:
    """A connection to a server by one protocol, for use in one thread; close it, or use it in a `with` block."""

    def __init__(self, protocol: Protocol, address: str, *, seconds: float = 120.0) -> None:
        self.protocol = protocol
        self.address = address
        self._seconds = seconds
        self._module, self._client = connect(protocol, address, seconds=seconds)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """End the connection."""
        self._client.close()

    def infer(self, model: ModelAddress, inputs: Tensors) -> dict[str, np.ndarray]:
        """The wanted outputs for one request. Raises RequestFailed if the server gives none."""
        request = self._request(model, inputs)
        with self._translated():
            return _arrays(model, self._client.infer(**request, **self._patience()))

    def infer_all(
        self, model: ModelAddress, requests: Sequence[Tensors]
    ) -> list[dict[str, np.ndarray] | RequestFailed]:
        """The answers to requests that are sent all at once, each its outputs or its failure, in order."""
        prepared = [self._request(model, inputs) for inputs in requests]
        results = self._grpc_results(prepared) if self.protocol == "grpc" else self._http_results(prepared)
        return [
            found if isinstance(found, RequestFailed) else self._or_why_not(partial(_arrays, model, found))
            for found in results
        ]

    def classify(self, model: ModelAddress, inputs: Tensors, *, count: int) -> list[list[ClassScore]]:
        """For each row the `count` best classes of the model's first wanted output, in the server's words."""
        output = model.outputs[0]
        wanted = [self._module.InferRequestedOutput(output, class_count=count)]
        request = self._request(model, inputs) | {"outputs": wanted}
        with self._translated():
            found = self._client.infer(**request, **self._patience()).as_numpy(output)
            return [[_class_score(entry) for entry in row] for row in np.atleast_2d(found)]

    def statistics(self, model: ModelAddress) -> Statistics:
        """The server's counters for this model version since it was loaded; warm-up counts too."""
        as_json = {"as_json": True} if self.protocol == "grpc" else {}
        with self._translated():
            found = self._client.get_inference_statistics(model.name, str(model.version), **as_json, **self._patience())
            return _counted(found)

    def counted(self, model: ModelAddress, *, since: Statistics, requests: int) -> Statistics:
        """What was counted after `since`, once so many requests are in it and the counters stand still.

        The server answers first and counts then, rows before runs: read too early, requests would look merged.
        """
        until = time.monotonic() + _SETTLING_SECONDS
        last = self.statistics(model)
        while time.monotonic() < until:
            time.sleep(_STILL_SECONDS)
            found = self.statistics(model)
            if found == last and found.since(since).requests >= requests:
                break
            last = found
        return last.since(since)

    def server_version(self) -> str:
        """The version that the server gives itself, e.g. `2.51.0`."""
        with self._translated():
            about = self._client.get_server_metadata(**self._patience())
            return str(about["version"] if self.protocol == "http" else about.version)

    def ready(self, model: ModelAddress) -> bool:
        """Whether the server would answer requests for this model version."""
        with self._translated():
            return bool(self._client.is_model_ready(model.name, str(model.version), **self._patience()))

    def load(self, name: str) -> None:
        """Make a server in explicit mode read the model's config and load what it says, beside what it has.

        Returns once that is ready. Raises RequestFailed if the load fails, or the server is in another mode.
        """
        with self._translated():
            self._client.load_model(name, **self._patience())

    def _request(self, model: ModelAddress, inputs: Tensors) -> dict[str, Any]:
        from tritonclient.utils import np_to_triton_dtype

        tensors = []
        for name, array in inputs.items():
            tensor = self._module.InferInput(name, list(array.shape), np_to_triton_dtype(array.dtype))
            tensor.set_data_from_numpy(np.ascontiguousarray(array))
            tensors.append(tensor)
        return {
            "model_name": model.name,
            "model_version": str(model.version),
            "inputs": tensors,
            "outputs": [self._module.InferRequestedOutput(name) for name in model.outputs],
        }

    def _patience(self) -> dict[str, float]:
        return patience(self.protocol, self._seconds)

    def _grpc_results(self, requests: Sequence[dict[str, Any]]) -> list[Any]:
        answers: queue.SimpleQueue[tuple[int, Any]] = queue.SimpleQueue()
        for number, request in enumerate(requests):

            def keep(result: Any, error: Exception | None, number: int = number) -> None:
                answers.put((number, self._failed(error) if error else result))

            self._client.async_infer(**request, callback=keep, **self._patience())
        found = dict(answers.get() for _ in requests)
        return [found[number] for number in range(len(requests))]

    def _http_results(self, requests: Sequence[dict[str, Any]]) -> list[Any]:
        answers = send_at_once(self.address, [self._raw(request) for request in requests], seconds=self._seconds)
        return [self._parsed(answer) for answer in answers]

    def _or_why_not(self, read: Callable[[], Any]) -> Any:
        """What is read of an answer, or the failure to."""
        try:
            with self._translated():
                return read()
        except RequestFailed as error:
            return error

    def _raw(self, request: dict[str, Any]) -> HttpRequest:
        body, header_length = self._client.generate_request_body(request["inputs"], outputs=request["outputs"])
        path = f"/v2/models/{request['model_name']}/versions/{request['model_version']}/infer"
        headers = {} if header_length is None else {"Inference-Header-Content-Length": str(header_length)}
        return HttpRequest(path=path, body=bytes(body), headers=headers)

    def _parsed(self, answer: HttpResponse | OSError) -> Any:
        if isinstance(answer, OSError):
            return self._failed(answer)
        if answer.status != http.client.OK:
            return self._failed(OSError(_error_text(answer.body)))
        parse = self._client.parse_response_body
        return self._or_why_not(partial(parse, answer.body, header_length=answer.header_length))

    @contextmanager
    def _translated(self) -> Iterator[None]:
        from tritonclient.utils import InferenceServerException

        try:
            with ended_after(self.protocol, self._seconds):
                yield
        except RequestFailed:
            raise
        except (InferenceServerException, OSError) as error:
            raise self._failed(error) from error
        except Exception as error:  # what a server, or something in its place, may send knows no limits
            raise self._unread(f"{type(error).__name__}: {error}") from error

    def _unread(self, why: str) -> RequestFailed:
        return RequestFailed(
            f"the answer of {self.address} over {self.protocol} cannot be read: {why}",
            expected="a server of KServe v2, such as Triton",
            fix="check the address: something else may have answered in the server's place",
        )

    def _failed(self, error: Exception) -> RequestFailed:
        failed = RequestFailed(
            f"the server at {self.address} gave no answer over {self.protocol}: {_message(error)}",
            fix="see the server's log for its side",
        )
        failed.said = words_of(error)
        return failed


def _message(error: Exception) -> str:
    from tritonclient.utils import InferenceServerException

    return str(error.message() if isinstance(error, InferenceServerException) else error)


def _arrays(model: ModelAddress, result: Any) -> dict[str, np.ndarray]:
    arrays = {name: result.as_numpy(name) for name in model.outputs}
    missing = [name for name, array in arrays.items() if array is None]
    if missing:
        raise RequestFailed(
            f"the server's answer for {model.name} lacks {', '.join(missing)}",
            expected="every output that was asked for",
            fix="see that the server serves this version, with `deployctl verify`",
        )
    return arrays


def _counted(found: Any) -> Statistics:
    """The counters in an answer; as JSON, gRPC writes numbers as text and leaves out zeros."""
    counted = found["model_stats"][0]
    stats = counted.get("inference_stats", {})
    return Statistics(
        requests=sum(int(stats.get(end, {}).get("count", 0)) for end in ("success", "fail")),
        inferences=int(counted.get("inference_count", 0)),
        executions=int(counted.get("execution_count", 0)),
    )


def _error_text(body: bytes) -> str:
    """The server's words in an error's body, which is JSON unless something between us answered."""
    try:
        return str(json.loads(body)["error"])
    except (ValueError, KeyError, TypeError):
        return body.decode(errors="replace")[:500]


def _class_score(entry: bytes) -> ClassScore:
    """An entry of the form `score:index:label`; the label may hold colons, and is left out where there is none."""
    score, index, *label = entry.decode().split(":", 2)
    return ClassScore(score=float(score), index=int(index), label="".join(label))
