"""Queries as they leave the load generator: bytes made beforehand, sent without waiting, answers checked by shape.

Owns the two protocols of KServe v2 at the level of a load test, where a client object per request would cost more
than the request. Correctness of values is parity's. Called by `generator`, inside its child process.
"""

import asyncio
import json
import math
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import numpy as np

from deploy.errors import UnfinishedError
from deploy.serve.client import DIRECT
from deploy.slo.tensors import as_bytes, datatype


class Ended(NamedTuple):
    """What became of a query: None for a good answer, else what was wrong with it in a few words.

    `version` is the one that an answer says it is by; empty where none says so.
    """

    problem: str | None
    version: str = ""


Done = Callable[[Ended], None]

_SIZES = {"BOOL": 1, "UINT8": 1, "INT8": 1, "UINT16": 2, "INT16": 2, "FP16": 2, "BF16": 2, "UINT32": 4, "INT32": 4}
_SIZES |= {"FP32": 4, "UINT64": 8, "INT64": 8, "FP64": 8}
# Messages of large inputs share no connection's flow-control window with all others.
_CHANNELS = 4
_CONNECT_SECONDS = 10.0
LONGEST_WORDS = 160


@dataclass(frozen=True, slots=True, kw_only=True)
class WireOutput:
    """An output as the server declares it: its dtype in Triton's words, -1 for a size that may vary."""

    name: str
    datatype: str
    shape: tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Query:
    """What is asked: one array per input by its name on the wire, and what the answer must look like.

    `version` is empty where the server is to choose.
    """

    model: str
    version: str
    inputs: tuple[dict[str, np.ndarray], ...]
    outputs: tuple[WireOutput, ...]


class Wire(Protocol):
    """A way to send query number `index` and be told what became of it, from another thread."""

    def send(self, index: int, done: Done) -> None:
        """Send without waiting; `done` is called once, by the deadline at the latest or soon after."""

    def close(self) -> None:
        """Give up what is open."""


class GrpcWire:
    """gRPC with bodies serialised beforehand, over a few channels in turn."""

    def __init__(self, address: str, query: Query, *, deadline: float) -> None:
        import grpc
        from tritonclient.grpc import service_pb2

        options = [
            ("grpc.max_send_message_length", -1),
            ("grpc.max_receive_message_length", -1),
            ("grpc.use_local_subchannel_pool", 1),
            DIRECT,
            # A server that comes back is to be found again at once, not after gRPC's growing pauses.
            ("grpc.max_reconnect_backoff_ms", 250),
        ]
        self._deadline = deadline
        self._outputs = query.outputs
        self._version = query.version
        self._parse = service_pb2.ModelInferResponse.FromString
        self._bodies = [_grpc_body(query, inputs) for inputs in query.inputs]
        self._channels = [grpc.insecure_channel(address, options=options) for _ in range(_CHANNELS)]
        self._calls = [
            channel.unary_unary("/inference.GRPCInferenceService/ModelInfer", None, None) for channel in self._channels
        ]
        self._turn = 0
        try:
            for channel in self._channels:
                grpc.channel_ready_future(channel).result(timeout=_CONNECT_SECONDS)
        except grpc.FutureTimeoutError as error:
            self.close()
            raise UnfinishedError(
                f"the server at {address} took no connection within {_CONNECT_SECONDS:g} s, before any query was sent",
                expected="a server that is ready",
                fix="look whether it still runs, and at its log",
            ) from error

    def send(self, index: int, done: Done) -> None:
        """Send without waiting; `done` is called from a thread of gRPC's."""
        self._turn = (self._turn + 1) % _CHANNELS
        future = self._calls[self._turn].future(self._bodies[index], timeout=self._deadline)
        future.add_done_callback(lambda ended: done(self._told(ended)))

    def close(self) -> None:
        """Close the channels; what is under way fails."""
        for channel in self._channels:
            channel.close()

    def _told(self, ended: Any) -> Ended:
        error = "cancelled" if ended.cancelled() else ended.exception()
        if error is None:
            return judged(lambda: self._judge(ended.result()))
        code = getattr(error, "code", None)
        words = str(getattr(error, "details", lambda: error)() or "")
        return Ended((f"{code().name}: {words}" if code else str(error))[:LONGEST_WORDS])

    def _judge(self, body: bytes) -> Ended:
        answer = self._parse(body)
        if other := _other_version(self._version, answer.model_version):
            return Ended(other)
        raw = [len(data) for data in answer.raw_output_contents]
        # Without raw bytes each value is an element of the one list that its dtype has.
        held = raw or [
            sum(len(values) for _, values in one.contents.ListFields()) * _SIZES.get(one.datatype, 1)
            for one in answer.outputs
        ]
        outputs = zip(answer.outputs, held, strict=True)
        found = [_Found(one.name, one.datatype, tuple(one.shape), size) for one, size in outputs]
        return Ended(_misfit(found, self._outputs), answer.model_version)


class HttpWire:
    """HTTP with the binary tensor extension and kept-alive connections, as many as queries are under way."""

    def __init__(self, address: str, query: Query, *, deadline: float) -> None:
        self._url = f"http://{address}/v2/models/{query.model}"
        self._url += f"/versions/{query.version}/infer" if query.version else "/infer"
        self._outputs = query.outputs
        self._version = query.version
        self._deadline = deadline
        self._bodies = [_http_body(query, inputs) for inputs in query.inputs]
        self._loop = asyncio.new_event_loop()
        self._tasks: set[asyncio.Task[None]] = set()
        self._thread = threading.Thread(target=self._loop.run_forever, name="http", daemon=True)
        self._thread.start()
        self._session: Any = asyncio.run_coroutine_threadsafe(self._open(), self._loop).result()

    def send(self, index: int, done: Done) -> None:
        """Hand the query to the event loop; `done` is called from its thread."""
        self._loop.call_soon_threadsafe(self._start, index, done)

    def close(self) -> None:
        """Close the connections; what is under way fails."""
        asyncio.run_coroutine_threadsafe(self._session.close(), self._loop).result()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    async def _open(self) -> Any:
        import aiohttp

        return aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0, keepalive_timeout=60.0),
            timeout=aiohttp.ClientTimeout(total=self._deadline),
            auto_decompress=False,
        )

    def _start(self, index: int, done: Done) -> None:
        task = self._loop.create_task(self._ask(index, done))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _ask(self, index: int, done: Done) -> None:
        body, headers = self._bodies[index]
        try:
            async with self._session.post(self._url, data=body, headers=headers) as response:
                answer = await response.read()
                length = response.headers.get("Inference-Header-Content-Length")
                status = response.status
        except TimeoutError:
            done(Ended("DEADLINE_EXCEEDED: no answer within the deadline"))
        except Exception as error:  # noqa: BLE001 - see `judged`; aiohttp's own derive from no class of its own
            done(Ended(f"{type(error).__name__}: {error}"[:LONGEST_WORDS]))
        else:
            done(judged(lambda: self._judge(status, answer, length)))

    def _judge(self, status: int, answer: bytes, length: str | None) -> Ended:
        if status != 200:
            return Ended(f"HTTP {status}: {answer[:LONGEST_WORDS].decode(errors='replace')}")
        header = int(length) if length else len(answer)
        head = json.loads(answer[:header])
        version = str(head.get("model_version", ""))
        if other := _other_version(self._version, version):
            return Ended(other)
        outputs = head.get("outputs", [])
        raw = [one.get("parameters", {}).get("binary_data_size") for one in outputs]
        if (said := sum(size or 0 for size in raw)) != len(answer) - header:
            return Ended(f"wrong answer: {len(answer) - header} bytes of tensors, and {said} are announced", version)
        found = [
            _Found(one["name"], one["datatype"], tuple(one["shape"]), _listed_bytes(one) if size is None else size)
            for one, size in zip(outputs, raw, strict=True)
        ]
        return Ended(_misfit(found, self._outputs), version)


def judged(check: Callable[[], Ended]) -> Ended:
    """What `check` says of an answer; one that it cannot read at all is wrong, whatever that raises.

    A query whose end is never told would keep the whole run from its end.
    """
    try:
        return check()
    except Exception as error:  # noqa: BLE001 - what a server may send knows no limits
        return Ended(f"wrong answer: {type(error).__name__}: {error}"[:LONGEST_WORDS])


def unreachable(address: str, seconds: float) -> str | None:
    """Why nobody could be reached at `host:port` within so many seconds; None once somebody listens there."""
    import socket

    host, _, port = address.rpartition(":")
    until = time.monotonic() + seconds
    while True:
        try:
            socket.create_connection((host.strip("[]"), int(port)), timeout=max(0.1, until - time.monotonic())).close()
            return None
        except UnicodeError as error:
            return f"{host} is no name of a host: {error}"
        except OSError as error:
            if time.monotonic() >= until:
                return error.strerror or str(error)
            time.sleep(0.1)


class _Found(NamedTuple):
    """An output as an answer has it; `size` is in bytes."""

    name: str
    datatype: str
    shape: tuple[int, ...]
    size: int


def _misfit(found: Sequence[_Found], wanted: Sequence[WireOutput]) -> str | None:
    """Why an answer is not what was declared: names, dtypes, shapes, and bytes that fill the shapes."""
    by_name = {one.name: one for one in found}
    for output in wanted:
        if output.name not in by_name:
            return f"wrong answer: no output {output.name}"
        one = by_name[output.name]
        fits = len(one.shape) == len(output.shape) and all(
            declared in (-1, size) for declared, size in zip(output.shape, one.shape, strict=True)
        )
        if one.datatype != output.datatype or not fits:
            return (
                f"wrong answer: {output.name} is {one.datatype} {list(one.shape)}, not {output.datatype} "
                f"{list(output.shape)}"
            )
    for one in found:
        if one.datatype in _SIZES and one.size != math.prod(one.shape) * _SIZES[one.datatype]:
            return f"wrong answer: {one.name} {list(one.shape)} {one.datatype} in {one.size} bytes"
    return None


def _other_version(asked: str, answered: str) -> str | None:
    """Why an answer is not the asked version's, where both have a number."""
    if asked.isdecimal() and answered.isdecimal() and int(asked) != int(answered):
        return f"wrong answer: by version {answered}, and {asked} was asked"
    return None


def _listed_bytes(output: Mapping[str, Any]) -> int:
    """The bytes that an output's values would take which came as a list in JSON, nested or flat."""
    return int(np.size(output.get("data", []))) * _SIZES.get(output["datatype"], 1)


def _grpc_body(query: Query, inputs: Mapping[str, np.ndarray]) -> bytes:
    from tritonclient.grpc import service_pb2

    request = service_pb2.ModelInferRequest(model_name=query.model, model_version=query.version)
    for name, array in inputs.items():
        tensor = request.inputs.add(name=name, datatype=datatype(array))
        tensor.shape.extend(array.shape)
        request.raw_input_contents.append(as_bytes(array))
    for output in query.outputs:
        request.outputs.add(name=output.name)
    return bytes(request.SerializeToString())


def _http_body(query: Query, inputs: Mapping[str, np.ndarray]) -> tuple[bytes, dict[str, str]]:
    tensors = [(name, array, as_bytes(array)) for name, array in inputs.items()]
    head = json.dumps(
        {
            "inputs": [
                {
                    "name": name,
                    "shape": list(array.shape),
                    "datatype": datatype(array),
                    "parameters": {"binary_data_size": len(raw)},
                }
                for name, array, raw in tensors
            ],
            "outputs": [{"name": output.name, "parameters": {"binary_data": True}} for output in query.outputs],
        }
    ).encode()
    headers = {
        "Inference-Header-Content-Length": str(len(head)),
        "Content-Type": "application/octet-stream",
        # Triton compresses an answer for whoever does not refuse that, which costs both sides.
        "Accept-Encoding": "identity",
    }
    return b"".join([head, *(raw for _, _, raw in tensors)]), headers
