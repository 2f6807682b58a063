"""A server of its own on which one version is loaded with one setting after the other, and probed.

Owns the server, the load API and what a probe is; which settings and which rates are tried belongs to others. No
setting takes a restart: the model is loaded anew with a config override. Called by run and the benchmark.
"""

import time
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol, Self

import numpy as np

from deploy.errors import DeployError, UnfinishedError, UsageError
from deploy.evidence import Verdict
from deploy.processes import prepare
from deploy.repository.integrity import require_intact
from deploy.repository.layout import Version
from deploy.repository.protobuf import parse_config
from deploy.scratch import scratch_folder
from deploy.serve.client import Client, ModelAddress, RequestFailed, connect
from deploy.serve.client import Protocol as WireProtocol
from deploy.serve.engines import Engine
from deploy.serve.local import adapt, check_shared_memory, served_view
from deploy.serve.server import ServerOptions, TritonServer
from deploy.slo.counters import ServerTalk
from deploy.slo.question import Subject, find_rows
from deploy.slo.records import Bound, SloEvidence
from deploy.slo.request import SloRequest
from deploy.slo.run import measure_slo
from deploy.slo.tune_records import Probe, Setting
from deploy.slo.wire import unreachable
from deploy.tune.knobs import apply

_LOAD_SECONDS = 180.0
_UNLOAD_SECONDS = 8.0
_POLL_SECONDS = 0.02
_PACE_SECONDS = 1.0
_WARM_UP_SHARE = 0.15
_REACH_SECONDS = 2.0
# A probe steers a search and proves nothing: it may err more often than a verdict, and be the shorter for it.
_CONFIDENCE = 0.8


class SettingRefused(UnfinishedError):  # noqa: N818 - named for what happened
    """The server did not load the version with this setting, or this machine has no room for it."""


class ServerGone(UnfinishedError):  # noqa: N818 - named for what happened
    """The server ended, or hangs, while a setting was tried."""


class TestBed(Protocol):
    """What a search needs: a setting loaded, then probed. Tests have one of a known response."""

    def load(self, setting: Setting) -> None:
        """Serve with this setting. Raises SettingRefused, or ServerGone."""

    def pace(self) -> float:
        """Answers per second to one client that waits for each."""

    def probe(self, rate: float) -> Probe:
        """Whether the bound is kept at `rate`. Raises ServerGone."""

    def revive(self) -> bool:
        """Start the server again if it is gone, and say whether it was."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BedPlan:
    """Which version is tried, on which engine, against which bound, by probes of how many seconds."""

    version: Version
    engine: Engine
    bound: Bound
    probe_seconds: float
    protocol: WireProtocol = "grpc"
    samples: Path | None = None
    seed: int = 0


class Bed:
    """The real test bed. Use it as a context manager: leaving it ends the server."""

    def __init__(self, plan: BedPlan) -> None:
        self.plan = plan
        self._config = parse_config(plan.version.config.read_text())
        self._stack = ExitStack()
        self._server: TritonServer | None = None
        self._control: Any = None
        self._loaded = False
        self._row: dict[str, np.ndarray] | None = None
        self._probes = 0
        self.restarts = 0

    def __enter__(self) -> Self:
        # Each probe is a child of its own; forked from a process that knows the way, it begins at once.
        prepare("deploy.slo.generator", "mlperf_loadgen")
        self._start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()

    @property
    def server(self) -> TritonServer:
        """The server that runs now."""
        assert self._server is not None, "the test bed was not entered"
        return self._server

    def address(self) -> ModelAddress:
        """The version that is loaded, with all its outputs."""
        outputs = tuple(output.name for output in self._config.output)
        return ModelAddress(name=self.plan.version.name, version=self.plan.version.number, outputs=outputs)

    def one_row(self) -> dict[str, np.ndarray]:
        """One of the rows that are asked with, by its names on the wire."""
        if self._row is None:
            version = self.plan.version
            subject = Subject(name=version.name, number=version.number, version=version)
            with ServerTalk(self._url(), self.plan.protocol) as talk:
                metadata = talk.metadata(subject.name, subject.on_the_wire)
            rows = find_rows(subject, self.plan.samples, metadata)
            self._row = {name: array[:1] for name, array in rows.arrays.items()}
        return self._row

    def load(self, setting: Setting) -> None:
        """See `TestBed.load`. The old setting is gone before the new one comes, so that they share no memory."""
        from google.protobuf import json_format
        from tritonclient.utils import InferenceServerException

        config = apply(self._config, setting)
        if self.plan.engine.kind == "local":
            config = adapt(self.plan.version, config)
            try:
                check_shared_memory([config])
            except DeployError as error:
                raise SettingRefused(error.found, expected=error.expected, fix=error.fix) from error
        as_json = json_format.MessageToJson(config, preserving_proto_field_name=True)
        name = self.plan.version.name
        try:
            if not self._unload():
                self._restart()
            self._control.load_model(name, config=as_json, client_timeout=_LOAD_SECONDS)
            self._loaded = True
        except InferenceServerException as error:
            if not self._alive():
                raise ServerGone(f"the server ended while it loaded {self.plan.version} with {setting}") from error
            raise SettingRefused(
                f"the server refused {setting}: {error.message()}", expected=f"{self.plan.version} to be loaded"
            ) from error
        self._settle()

    def pace(self) -> float:
        """See `TestBed.pace`."""
        with self._client() as client:
            begun, count = time.monotonic(), 0
            while (seconds := time.monotonic() - begun) < _PACE_SECONDS or count < 3:
                client.infer(self.address(), self.one_row())
                count += 1
        return count / seconds

    def probe(self, rate: float) -> Probe:
        """See `TestBed.probe`."""
        self._probes += 1
        seconds = self.plan.probe_seconds
        request = SloRequest(
            reference=str(self.plan.version),
            url=self._url(),
            bounds=(self.plan.bound,),
            rate=rate,
            protocol=self.plan.protocol,
            repository=self.plan.version.repository,
            samples=self.plan.samples,
            seconds=seconds,
            min_seconds=seconds / 2,
            warm_up_seconds=max(0.3, _WARM_UP_SHARE * seconds),
            confidence=_CONFIDENCE,
            # Another draw of arrivals each time: a setting must not win by the luck of one schedule.
            seed=self.plan.seed * 10_000 + self._probes,
        )
        try:
            evidence = measure_slo(request)
        except DeployError as error:
            if self._alive():
                raise
            raise ServerGone(f"nobody answers the load: {error.found}") from error
        if evidence.errors and not self._alive():
            raise ServerGone(f"the server ended under {rate:.4g}/s")
        self._settle()
        return probe_of(evidence)

    def revive(self) -> bool:
        """See `TestBed.revive`."""
        if self._alive():
            return False
        self._restart()
        return True

    def _start(self) -> None:
        # A search lasts for hours: what is started again is looked at again.
        require_intact(self.plan.version)
        with ExitStack() as stack:
            folder = stack.enter_context(scratch_folder("tune"))
            view = served_view(folder / "models", [self.plan.version], self.plan.engine)
            options = ServerOptions(control="explicit", scratch=folder)
            self._server = stack.enter_context(TritonServer(view, engine=self.plan.engine, options=options))
            _, self._control = connect("grpc", self._server.grpc_address, seconds=_LOAD_SECONDS)
            stack.callback(self._control.close)
            self._loaded = False
            self._stack = stack.pop_all()

    def _restart(self) -> None:
        self._stack.close()
        self.restarts += 1
        self._start()

    def _unload(self) -> bool:
        """Take the present setting away and wait until the server says so, for it answers before it is done.

        False where it does not come to an end: a request that was cancelled may keep it for ever.
        """
        if not self._loaded:
            return True
        name = self.plan.version.name
        self._control.unload_model(name, client_timeout=_UNLOAD_SECONDS)
        self._loaded = False
        until = time.monotonic() + _UNLOAD_SECONDS
        while time.monotonic() < until:
            index = self._control.get_model_repository_index(client_timeout=_UNLOAD_SECONDS)
            states = {model.state for model in index.models if model.name == name}
            if states <= {"UNAVAILABLE", ""}:
                return True
            time.sleep(_POLL_SECONDS)
        return False

    def _settle(self) -> None:
        """Return when the server has answered one more request: what a load has left in its queue comes before."""
        try:
            with self._client() as client:
                client.infer(self.address(), self.one_row())
        except RequestFailed as error:
            if not self._alive():
                raise ServerGone(f"the server ended: {error.found}") from error
            raise SettingRefused(f"the loaded version does not answer: {error.found}") from error

    def _client(self) -> Client:
        return Client("grpc", self.server.grpc_address, seconds=_LOAD_SECONDS)

    def _url(self) -> str:
        return self.server.grpc_address if self.plan.protocol == "grpc" else self.server.http_address

    def _alive(self) -> bool:
        from tritonclient.utils import InferenceServerException

        if unreachable(self.server.grpc_address, _REACH_SECONDS):
            return False
        with suppress(InferenceServerException):
            return bool(self._control.is_server_live(client_timeout=_REACH_SECONDS))
        return False


def probe_of(evidence: SloEvidence) -> Probe:
    """What a load run says of its rate. One that stays undecided is taken by the share that was seen."""
    bound, server = evidence.bounds[0], evidence.server
    kept: bool | None = evidence.judgement.verdict is Verdict.PASS
    if evidence.judgement.verdict is Verdict.UNDECIDED:
        kept = bound.n > 0 and bound.over <= bound.allowed * bound.n
    if evidence.invalid is not None:
        kept = None
    return Probe(
        rate=evidence.rate,
        kept=kept,
        reason=evidence.invalid or evidence.judgement.reason,
        queries=evidence.queries,
        over=bound.over,
        p99=next((one.value for one in evidence.quantiles if one.q == 0.99), None),
        batch_reached=server.batch_reached if server else None,
        queue_ms=server.queue if server else None,
    )


def check_bound(bound: Bound) -> None:
    """Raises UsageError for a bound that no probe can judge."""
    if bound.kind != "latency":
        raise UsageError("a search needs a bound on latency", expected="--p99-ms X")
