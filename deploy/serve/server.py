"""A real tritonserver as a value: started, waited for, asked where it is, and stopped with all it started.

Owns the process and the reason when it fails; what it serves is somebody else's folder. Called by package,
verify, slo and the command `serve`.
"""

import http.client
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Literal, Self

from deploy.errors import UnfinishedError
from deploy.serve import guard, local
from deploy.serve.engines import Engine
from deploy.serve.logs import failure_reason, port_was_taken, tail
from deploy.serve.ports import ANY_HOST, Ports, WantedPorts, check_ports, choose_ports

ModelControl = Literal["none", "poll", "explicit"]

_ATTEMPTS = 4
_EXIT_SECONDS = 10
_POLL_SECONDS = 0.05


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerOptions:
    """How to serve. `expect` are the model versions that must be ready.

    `scratch` is an existing folder for the server's own files; it is removed with the server, whatever ends it.
    `end_at_once`: nobody is left to ask it when it is stopped, so it is killed and need not unload its models.
    """

    host: str = "127.0.0.1"
    wanted: WantedPorts = field(default_factory=WantedPorts)
    control: ModelControl = "none"
    expect: tuple[tuple[str, int], ...] = ()
    scratch: Path | None = None
    ready_seconds: float = 300.0
    end_at_once: bool = False


class ServerFailed(UnfinishedError):  # noqa: N818 - named for what happened
    """The server did not become ready, or ended by itself. `tail` holds the last lines of its log."""

    def __init__(self, found: str, *, expected: str = "", fix: str = "", tail: str = "") -> None:
        super().__init__(found, expected=expected, fix=fix)
        self.tail = tail


class TritonServer:
    """A tritonserver on a repository folder, ready inside the `with` block and gone after it.

    Whatever ends this process, a SIGKILL included, ends the server and its stubs too.
    """

    def __init__(
        self,
        repository: Path,
        *,
        engine: Engine,
        options: ServerOptions = ServerOptions(),
        log: Path | None = None,
        choose: Callable[[str, WantedPorts], Ports] = choose_ports,
    ) -> None:
        self.repository = repository
        self.engine = engine
        self.options = options
        self.ready_seconds = 0.0
        self._wanted_log = log
        self._choose = choose
        self._folder: Path | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self._ports: Ports | None = None
        self._id = f"deployctl-{uuid.uuid4()}"

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    @property
    def pid(self) -> int:
        """The process that guards the server; everything that was started is below it. Only once started."""
        assert self._process is not None, "the server was not started"
        return self._process.pid

    @property
    def ports(self) -> Ports:
        """The ports in use. Only once started."""
        assert self._ports is not None, "the server was not started"
        return self._ports

    @property
    def http_address(self) -> str:
        """`host:port` where this machine reaches the HTTP endpoint."""
        return self._address(self.ports.http)

    @property
    def grpc_address(self) -> str:
        """`host:port` where this machine reaches the gRPC endpoint."""
        return self._address(self.ports.grpc)

    @property
    def metrics_address(self) -> str:
        """`host:port` where this machine reaches the metrics, below `/metrics`."""
        return self._address(self.ports.metrics)

    @property
    def log(self) -> Path:
        """The server's log; it goes with the server unless another place was asked for."""
        assert self._folder is not None or self._wanted_log, "the server was not started"
        return self._wanted_log or Path(str(self._folder), "server.log")

    def start(self) -> Self:
        """Start the server and wait until it is ready.

        Raises UsageError if a port that was asked for cannot be had, ServerFailed with the server's own reason if it
        does not become ready.
        """
        check_ports(self.options.host, self.options.wanted)
        self._folder = self.options.scratch or Path(tempfile.mkdtemp(prefix="deployctl-server-"))
        try:
            for attempt in range(_ATTEMPTS):
                self._launch()
                try:
                    self._wait_ready()
                    return self
                except ServerFailed:
                    # A port that was free when it was chosen can be taken by the time the server binds it.
                    if attempt + 1 == _ATTEMPTS or self.options.wanted.all_given or not port_was_taken(self.log):
                        raise
                    self._end()
        except BaseException:
            self.stop()
            raise
        raise AssertionError("the last attempt returns or raises")

    def stop(self) -> None:
        """Stop the server and everything it started; safe to call again."""
        self._end()
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)
            self._folder = None

    def wait(self) -> None:
        """Return never: sleep until the process is interrupted. Raises ServerFailed if the server ends by itself."""
        assert self._process is not None, "the server was not started"
        self._process.wait()
        raise self._failed("the server ended by itself")

    def model_ready(self, name: str, version: int) -> bool:
        """Whether the server would answer requests for this model version."""
        return self._get(self.ports.http, f"/v2/models/{name}/versions/{version}/ready") is not None

    def _address(self, port: int) -> str:
        host = ANY_HOST.get(self.options.host, self.options.host)
        return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"

    def _launch(self) -> None:
        folder = self._folder
        assert folder is not None
        self._ports = self._choose(self.options.host, self.options.wanted)
        # Importing torch on a busy machine can take longer than the 30 seconds a stub is given by default.
        patience = max(30, int(self.options.ready_seconds))
        arguments, variables = local.surroundings(self.engine, folder, patience=patience)
        command = [*self._command(), *arguments]
        guarded = [sys.executable, "-I", guard.__file__, str(_EXIT_SECONDS + 2), str(folder), *command]
        self.log.parent.mkdir(parents=True, exist_ok=True)
        with self.log.open("wb") as log:
            self._process = subprocess.Popen(
                guarded, stdin=subprocess.PIPE, stdout=log, stderr=log, env=variables, start_new_session=True
            )

    def _command(self) -> list[str]:
        options, ports = self.options, self.ports
        # An address of IPv6 is written in libevhtp's way for one endpoint, and in gRPC's for the other.
        newer = ":" in options.host
        arguments = {
            "id": self._id,
            "model-repository": str(self.repository.resolve()),
            "model-control-mode": options.control,
            # A poll is not to end the server for one bad model; a fixed set is served whole or not at all.
            "exit-on-error": "true" if options.control == "none" else "false",
            "strict-readiness": "true",
            "exit-timeout-secs": str(_EXIT_SECONDS),
            "http-address": f"ipv6:{options.host}" if newer else options.host,
            "grpc-address": f"[{options.host}]" if newer else options.host,
            "metrics-address": f"ipv6:{options.host}" if newer else options.host,
            "http-port": str(ports.http),
            "grpc-port": str(ports.grpc),
            "metrics-port": str(ports.metrics),
        }
        if options.control == "poll":
            arguments["repository-poll-secs"] = "1"
        # Published configs are complete; completing them would start each stub twice.
        flags = [f"--{name}={value}" for name, value in arguments.items()]
        return [str(self.engine.executable), "--disable-auto-complete-config", *flags]

    def _wait_ready(self) -> None:
        assert self._process is not None
        started = time.monotonic()
        while not self._is_ready():
            if self._process.poll() is not None:
                raise self._failed("the server did not start")
            if time.monotonic() - started > self.options.ready_seconds:
                raise self._failed(f"the server was not ready after {self.options.ready_seconds:g} s")
            time.sleep(_POLL_SECONDS)
        self.ready_seconds = time.monotonic() - started
        for name, version in self.options.expect:
            # A config that does not parse leaves its model out, and a server without it is ready all the same.
            if not self.model_ready(name, version):
                raise self._failed(f"the server is ready, but {name}:{version} is not served")

    def _is_ready(self) -> bool:
        """Whether this very server is ready: another one that took its port in the meantime has another name."""
        about = self._get(self.ports.http, "/v2")
        # One that is no Triton may answer with anything.
        if about is None or f'"name":"{self._id}"' not in "".join(about.decode(errors="replace").split()):
            return False
        # The metrics endpoint begins last, and without it the server ends again.
        ready, metrics = (self.ports.http, "/v2/health/ready"), (self.ports.metrics, "/metrics")
        return all(self._get(port, path) is not None for port, path in (ready, metrics))

    def _get(self, port: int, path: str) -> bytes | None:
        """The body of a 200 answer to a GET; None for any other answer, or none."""
        host = ANY_HOST.get(self.options.host, self.options.host)
        connection = http.client.HTTPConnection(host, port, timeout=5)
        try:
            connection.request("GET", path)
            response = connection.getresponse()
            return response.read() if response.status == http.client.OK else None
        except (OSError, http.client.HTTPException):
            return None
        finally:
            connection.close()

    def _failed(self, what: str) -> ServerFailed:
        reason = failure_reason(self.log) or self._ended_by() or tail(self.log, lines=5)
        kept = f"; the whole log is {self._wanted_log}" if self._wanted_log else ""
        return ServerFailed(
            f"{what}: {reason or 'it wrote nothing'}",
            expected=f"tritonserver {self.engine.server_version} ({self.engine.kind}) to serve {self.repository}",
            fix=f"correct what the server complains about{kept}",
            tail=tail(self.log),
        )

    def _ended_by(self) -> str:
        """The signal that ended the server; empty if it was none."""
        code = self._process.poll() if self._process else None
        return f"killed by {signal.Signals(code - 128).name}" if code and code > 128 else ""

    def _end(self) -> None:
        process, self._process = self._process, None
        if process is None:
            return
        assert process.stdin is not None
        with suppress(OSError):
            process.stdin.write(guard.AT_ONCE if self.options.end_at_once else b"q")
        with suppress(OSError):
            process.stdin.close()
        process.wait()
