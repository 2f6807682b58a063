"""Who is compared in serving_overhead.py: the model in a process of its own, our engine, and the two peers.

Ours is asked over gRPC and HTTP, as it was packaged and as `deployctl tune` sets it where throughput counts: a core per
instance, one thread each (results/tuning.md).

Owns how each is started, asked and counted. When each runs is decided in serving_overhead_rounds.py.
"""

import base64
import json
import random
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from benchmarks import serving_overhead_client
from benchmarks.serving_overhead_client import Block, Taken, Target
from benchmarks.serving_overhead_peers import PEERS, Peer, Serving, peer
from benchmarks.serving_overhead_rounds import Contender, Sample, cpu_seconds, pause, resume
from deploy.processes import Worker
from deploy.repository.layout import Version
from deploy.repository.protobuf import format_config, parse_config
from deploy.serve.client import Client as TritonClient
from deploy.serve.client import ModelAddress
from deploy.serve.engines import find_engine
from deploy.serve.local import served_view
from deploy.serve.server import ServerOptions, TritonServer
from deploy.serve.serving import serving
from deploy.slo.tune_records import Setting
from deploy.spec import wire_input, wire_output
from deploy.tune.knobs import apply
from deploy.validate.executables import OnnxModel

IN_PROCESS, CONTROL = "in-process", "in-process (A/A)"
GRPC, HTTP = "deployctl gRPC", "deployctl HTTP"
TUNED_GRPC, TUNED_HTTP = "deployctl tuned gRPC", "deployctl tuned HTTP"
PACKAGED, TUNED = (GRPC, HTTP), (TUNED_GRPC, TUNED_HTTP)
OURS = (*PACKAGED, *TUNED)
ROOT = Path(__file__).parents[1]
_SETTLING_SECONDS = 0.02
_RAMP_SECONDS = (0.3, 0.6)


@dataclass(frozen=True, slots=True, kw_only=True)
class Subject:
    """What is served, and by whom. `peers` is the Python of their environment, None to leave them out."""

    version: Version
    threads: int
    max_batch: int
    image: np.ndarray
    outputs: int
    peers: Path | None
    folder: Path

    @property
    def model(self) -> Path:
        """The ONNX file that everybody serves."""
        return self.version.folder / "model.onnx"


class InProcess:
    """The model called by one thread in a process of its own: no client, no server. Paced by batch, not concurrency."""

    parallel = False

    def __init__(self, name: str, worker: Worker, image: np.ndarray) -> None:
        self.name = name
        self._worker = worker
        self._image = image

    @property
    def pid(self) -> int:
        """The process that calls the model."""
        return self._worker.pid

    def answer(self) -> np.ndarray:
        """Computed anew."""
        scores: np.ndarray = self._worker.call("run", [self._image])[0]
        return scores

    def measure(self, size: int, seconds: float) -> Sample:
        """Calls back to back; the first one, which refills the caches, is left out."""
        images = [np.repeat(self._image, size, axis=0)]
        pilot = min(self._worker.call("time_calls", images, 3))
        before = cpu_seconds(self.pid)
        taken = self._worker.call("time_calls", images, 1 + max(2, int(seconds / pilot)))
        spent = cpu_seconds(self.pid) - before
        rows = size * (len(taken) - 1)
        return Sample(
            latencies=tuple(1e3 * one for one in taken[1:]),
            throughput=rows / sum(taken[1:]),
            batch=size,
            client_cpu=0.0,
            server_cpu=1e3 * spent / (size * len(taken)),
        )


class Client:
    """The process of serving_overhead_client.py. It sleeps while nobody asks it for a block."""

    def __init__(self, process: "subprocess.Popen[str]", seed: int) -> None:
        self._process = process
        self._chance = random.Random(seed)

    def connect(self, target: Target) -> None:
        """Make a target known."""
        self._say(target)

    def run(self, address: str, concurrency: int, seconds: float) -> Taken:
        """One block. Raises RuntimeError if the client ended, its own words being on standard error."""
        ramp = self._chance.uniform(*_RAMP_SECONDS)
        self._say(Block(address=address, concurrency=concurrency, seconds=seconds, ramp=ramp))
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"the client gave up on {address}")
        return Taken(**json.loads(line))

    def _say(self, message: Target | Block) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(asdict(message)) + "\n")
        self._process.stdin.flush()


@contextmanager
def open_client(seed: int = 0) -> Iterator[Client]:
    """A client that lives as long as the block."""
    command = [sys.executable, "-m", serving_overhead_client.__name__]
    with subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        try:
            yield Client(process, seed)
        finally:
            process.kill()


@dataclass(frozen=True, slots=True, kw_only=True)
class Counted:
    """Executions and rows since the server started."""

    executions: int
    rows: int


class Served:
    """A server and one way of asking it; several may share the server."""

    parallel = True

    def __init__(
        self,
        name: str,
        target: Target,
        client: Client,
        *,
        pid: int,
        counted: Callable[[], Counted],
        unpack: Callable[[bytes], np.ndarray],
    ) -> None:
        self.name = name
        self.pid = pid
        self._client = client
        self._address = target.address
        self._counted = counted
        self._unpack = unpack
        self._last = b""
        client.connect(target)

    def answer(self) -> np.ndarray:
        """Of the last request."""
        return self._unpack(self._last)

    def measure(self, size: int, seconds: float) -> Sample:
        """A closed loop of `size` clients."""
        counted, spent = self._counted(), cpu_seconds(self.pid)
        taken = self._client.run(self._address, size, seconds)
        # The server answers first and counts then.
        time.sleep(_SETTLING_SECONDS)
        spent, after = cpu_seconds(self.pid) - spent, self._counted()
        self._last = base64.b64decode(taken.last)
        if not taken.latencies:
            raise RuntimeError(f"{self.name} gave {size} clients no answer within {seconds:g} s: take longer blocks")
        return Sample(
            latencies=tuple(taken.latencies),
            # Little's law: nobody waits between two requests. Answers come a batch at a time, and a count would jump.
            throughput=1e3 * size / statistics.fmean(taken.latencies),
            batch=(after.rows - counted.rows) / max(1, after.executions - counted.executions),
            client_cpu=1e3 * taken.cpu_seconds / taken.requests,
            server_cpu=1e3 * spent / taken.requests,
        )


def http_request(path: str, headers: dict[str, str], body: bytes, file: Path) -> str:
    """A whole HTTP/1.1 request in a file, as it goes over the wire; the file's path."""
    fields = {"Host": "localhost", "Content-Length": str(len(body)), **headers}
    lines = [f"POST {path} HTTP/1.1", *(f"{name}: {value}" for name, value in fields.items()), "", ""]
    file.write_bytes("\r\n".join(lines).encode() + body)
    return str(file)


@contextmanager
def open_contenders(subject: Subject) -> Iterator[list[Contender]]:
    """Everybody, loaded and stopped."""
    subject.folder.mkdir(parents=True, exist_ok=True)
    with ExitStack() as stack:
        client = stack.enter_context(open_client())
        found: list[Contender] = [_in_process(stack, subject, name) for name in (IN_PROCESS, CONTROL)]
        server = stack.enter_context(serving([subject.version], engine=find_engine("local")))
        found += _ours(stack, subject, server, client, PACKAGED)
        found += _ours(stack, subject, stack.enter_context(_tuned(subject)), client, TUNED)
        for name in PEERS if subject.peers else ():
            found.append(_peer(stack, subject, name, client))
        for one in found:
            pause(one.pid)
            # Whatever is stopped has to go on before it can be ended.
            stack.callback(resume, one.pid)
        yield found


def _in_process(stack: ExitStack, subject: Subject, name: str) -> InProcess:
    worker = stack.enter_context(Worker(name, log=subject.folder / f"{name}.log"))
    worker.make(OnnxModel, subject.model, threads=subject.threads)
    return InProcess(name, worker, subject.image)


def _tuned(subject: Subject) -> TritonServer:
    """A server of the same version with an instance per core and one thread each, its batching as it was packaged."""
    engine, version = find_engine("local"), subject.version
    folder = subject.folder / "tuned"
    folder.mkdir()
    view = served_view(folder / "models", [version], engine)
    file = view / version.name / "config.pbtxt"
    turned = apply(parse_config(file.read_text()), Setting(instances=subject.threads, threads=1))
    # The view may link the version's own file.
    file.unlink()
    file.write_text(format_config(turned))
    options = ServerOptions(expect=((version.name, version.number),), scratch=folder)
    return TritonServer(view, engine=engine, options=options)


def _ours(
    stack: ExitStack, subject: Subject, server: TritonServer, client: Client, names: tuple[str, str]
) -> list[Served]:
    """Both protocols on one server: gRPC's name, then HTTP's."""
    from tritonclient import grpc

    asking = stack.enter_context(TritonClient("http", server.http_address))
    address = ModelAddress(name=subject.version.name, version=subject.version.number, outputs=(wire_output(0),))

    def counted() -> Counted:
        found = asking.statistics(address)
        return Counted(executions=found.executions, rows=found.inferences)

    def unpack_grpc(answer: bytes) -> np.ndarray:
        return _floats(grpc.service_pb2.ModelInferResponse.FromString(answer).raw_output_contents[0])

    def unpack_http(answer: bytes) -> np.ndarray:
        # The one output comes last, after its description.
        return _floats(answer[-4 * subject.outputs :])

    over_grpc = Target(address=server.grpc_address, protocol="grpc", file=_grpc_request(subject, address))
    over_http = Target(address=server.http_address, protocol="http", file=_http_request(subject, address))
    return [
        Served(names[0], over_grpc, client, pid=server.pid, counted=counted, unpack=unpack_grpc),
        Served(names[1], over_http, client, pid=server.pid, counted=counted, unpack=unpack_http),
    ]


def _grpc_request(subject: Subject, address: ModelAddress) -> str:
    from tritonclient import grpc

    message = grpc.service_pb2.ModelInferRequest(model_name=address.name, model_version=str(address.version))
    message.inputs.add(name=wire_input(0), datatype="FP32", shape=subject.image.shape)
    message.raw_input_contents.append(subject.image.tobytes())
    file = subject.folder / "grpc"
    file.write_bytes(message.SerializeToString())
    return str(file)


def _http_request(subject: Subject, address: ModelAddress) -> str:
    """As the official client makes it: JSON first, the tensor's bytes after it, and the same of the answer."""
    from tritonclient import http

    tensor = http.InferInput(wire_input(0), list(subject.image.shape), "FP32").set_data_from_numpy(subject.image)
    wanted = [http.InferRequestedOutput(wire_output(0))]
    body, header = http.InferenceServerClient.generate_request_body([tensor], outputs=wanted)
    path = f"/v2/models/{address.name}/versions/{address.version}/infer"
    return http_request(path, {"Inference-Header-Content-Length": str(header)}, body, subject.folder / "http")


def _peer(stack: ExitStack, subject: Subject, name: str, client: Client) -> Served:
    assert subject.peers is not None
    body = subject.image.tobytes()
    what = Serving(model=subject.model, threads=subject.threads, max_batch=subject.max_batch, body=body)
    running: Peer = stack.enter_context(peer(name, subject.peers, what, subject.folder / name))
    fields = {"Content-Type": "application/octet-stream"}
    file = http_request("/predict", fields, body, subject.folder / f"{name}.request")
    target = Target(address=f"127.0.0.1:{running.port}", protocol="http", file=file)

    def counted() -> Counted:
        executions, rows = running.counted()
        return Counted(executions=executions, rows=rows)

    return Served(name, target, client, pid=running.pid, counted=counted, unpack=_floats)


def _floats(body: bytes) -> np.ndarray:
    return np.frombuffer(body, dtype=np.float32)
