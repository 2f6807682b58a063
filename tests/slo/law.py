"""A tiny KServe v2 server over gRPC whose latency law is stated, and which has no queue.

Each answer comes after a delay drawn from the law, all at once if need be: nothing waits for anything else. Run as
`python -m tests.slo.law PORT LAW.json`; it prints `ready` and serves until its stdin is closed.
"""

import asyncio
import json
import math
import os
import random
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import NormalDist
from subprocess import PIPE, Popen
from typing import Any

import numpy as np

ROOT = Path(__file__).parents[2]


@dataclass(frozen=True, slots=True, kw_only=True)
class Law:
    """Lognormal delays: `p99` seconds at the 99th percentile, `sigma` the spread of the logarithm.

    With `period`, the server answers nothing for `stall` seconds once per period: who comes then waits for its end.
    `failing` is the share of requests refused; from `dies_after` requests on the process ends, from `hangs_after` on it
    answers nothing, from `wrong_after` on its answers have another shape, from `unloads_after` on it knows no model.
    `rubbish_after` answers with bytes that are no message, `hollow_after` with shapes that nothing fills. After
    `stops_after` requests the process stops itself once (SIGSTOP), till somebody lets it go on. `versions` are what its
    metadata lists, the first of them what its answers say they are by, unless it is `silent`; from `swaps_after` to
    `back_after` requests it is "2" alone.
    """

    p99: float
    sigma: float = 0.3
    seed: int = 0
    period: float = 0.0
    stall: float = 1.0
    failing: float = 0.0
    dies_after: int | None = None
    hangs_after: int | None = None
    wrong_after: int | None = None
    unloads_after: int | None = None
    rubbish_after: int | None = None
    hollow_after: int | None = None
    stops_after: int | None = None
    swaps_after: int | None = None
    back_after: int | None = None
    silent: bool = False
    versions: tuple[str, ...] = ("1",)

    @property
    def median(self) -> float:
        """The delay in seconds that half of the answers take at most."""
        return self.p99 * math.exp(-self.sigma * NormalDist().inv_cdf(0.99))

    def share_over(self, bound: float) -> float:
        """The share of answers that take longer than `bound` seconds, without stalls."""
        normal = NormalDist()
        return 1.0 - normal.cdf(math.log(bound / self.p99) / self.sigma + normal.inv_cdf(0.99))

    def delay(self, random_: random.Random) -> float:
        """One draw."""
        normal = NormalDist()
        return self.p99 * math.exp(self.sigma * (random_.gauss() - normal.inv_cdf(0.99)))


@contextmanager
def served(law: Law, port: int = 0) -> Iterator[tuple[str, "Popen[str]"]]:
    """The address of a server of its own process, ready, and the process; ended afterwards."""
    command = [sys.executable, "-m", "tests.slo.law", str(port), json.dumps(asdict(law))]
    process = Popen(command, stdin=PIPE, stdout=PIPE, text=True, cwd=ROOT)
    try:
        assert process.stdout is not None
        yield f"127.0.0.1:{int(process.stdout.readline())}", process
    finally:
        process.kill()
        process.wait()
        for stream in (process.stdin, process.stdout):
            assert stream is not None
            stream.close()


def closed_loop(url: str, *, seconds: float) -> list[float]:
    """The latencies that one client sees who asks again only when it has its answer."""
    from tritonclient import grpc

    client = grpc.InferenceServerClient(url)
    tensor = grpc.InferInput("INPUT__0", [1, 4], "FP32")
    tensor.set_data_from_numpy(np.zeros((1, 4), np.float32))
    found, until = [], time.monotonic() + seconds
    while (began := time.monotonic()) < until:
        client.infer("law", [tensor])
        found.append(time.monotonic() - began)
    client.close()
    return found


class _Service:
    """The calls that a load run makes, by their names in the protocol."""

    def __init__(self, law: Law) -> None:
        from tritonclient.grpc import service_pb2

        self._pb: Any = service_pb2
        self._law = law
        self._random = random.Random(law.seed)
        self._asked = 0
        self._began: float | None = None
        self._answer = self._make_answer(3)
        self._other = self._make_answer(3, "2")
        self._wrong = self._make_answer(2)
        self._hollow = self._make_answer(3)
        del self._hollow.raw_output_contents[:]

    def _make_answer(self, width: int, version: str | None = None) -> Any:
        own = self._law.versions[0] if self._law.versions else ""
        said = "" if self._law.silent else version or own
        answer = self._pb.ModelInferResponse(model_name="law", model_version=said)
        answer.outputs.add(name="OUTPUT__0", datatype="FP32", shape=[1, width])
        answer.raw_output_contents.append(b"\0" * 4 * width)
        return answer

    async def infer(self, request: Any, context: Any) -> Any:
        import grpc

        law, loop = self._law, asyncio.get_running_loop()
        self._began = self._began or loop.time()
        self._asked += 1
        if law.dies_after is not None and self._asked > law.dies_after:
            os._exit(7)
        if self._asked == law.stops_after:
            os.kill(os.getpid(), signal.SIGSTOP)
        if law.hangs_after is not None and self._asked > law.hangs_after:
            await asyncio.sleep(3600)
        if law.unloads_after is not None and self._asked > law.unloads_after:
            await context.abort(grpc.StatusCode.UNAVAILABLE, "Request for unknown model: 'law' is not found")
        if self._random.random() < law.failing:
            await context.abort(grpc.StatusCode.INTERNAL, "refused by law")
        until = loop.time() + law.delay(self._random)
        if law.period:
            # The stall is the last stretch of each period, so that no run begins with one.
            phase = (loop.time() - self._began) % law.period
            if phase > law.period - law.stall:
                until += law.period - phase
        answer = self._other if self._swapped else self._answer
        await asyncio.sleep(until - loop.time())
        others = {law.wrong_after: self._wrong, law.hollow_after: self._hollow, law.rubbish_after: b"\xff" * 40}
        return next((one for after, one in others.items() if after is not None and self._asked > after), answer)

    @property
    def _swapped(self) -> bool:
        first, last = self._law.swaps_after, self._law.back_after
        return first is not None and self._asked > first and (last is None or self._asked <= last)

    async def metadata(self, request: Any, context: Any) -> Any:
        versions = ["2"] if self._swapped else list(self._law.versions)
        answer = self._pb.ModelMetadataResponse(name="law", versions=versions, platform="law")
        answer.inputs.add(name="INPUT__0", datatype="FP32", shape=[-1, 4])
        answer.outputs.add(name="OUTPUT__0", datatype="FP32", shape=[-1, 3])
        return answer

    async def ready(self, request: Any, context: Any) -> Any:
        return self._pb.ModelReadyResponse(ready=True)


def _serialised(answer: Any) -> bytes:
    return answer if isinstance(answer, bytes) else bytes(answer.SerializeToString())


async def _serve(port: int, law: Law) -> None:
    import grpc
    from tritonclient.grpc import service_pb2 as pb

    service = _Service(law)
    calls = {
        "ModelInfer": (service.infer, pb.ModelInferRequest),
        "ModelMetadata": (service.metadata, pb.ModelMetadataRequest),
        "ModelReady": (service.ready, pb.ModelReadyRequest),
    }
    handlers = {
        name: grpc.unary_unary_rpc_method_handler(
            call, request_deserializer=kind.FromString, response_serializer=_serialised
        )
        for name, (call, kind) in calls.items()
    }
    server = grpc.aio.server()
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("inference.GRPCInferenceService", handlers),))
    bound = server.add_insecure_port(f"127.0.0.1:{port}")
    await server.start()
    print(bound, flush=True)
    await asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)


if __name__ == "__main__":
    asyncio.run(_serve(int(sys.argv[1]), Law(**json.loads(sys.argv[2]))))
