"""The command line of a tritonserver in production, said once for images, compose files and Kubernetes.

Owns which flags and why; where the files lie and who starts it belongs to those who render. `server` starts the
development server of this machine with a line of its own.
"""

from dataclasses import dataclass
from typing import Literal

from deploy.errors import UsageError
from deploy.serve.ports import Ports

EXECUTABLE = "/opt/tritonserver/bin/tritonserver"
PRODUCTION_PORTS = Ports(http=8000, grpc=8001, metrics=8002)

LatencyMetrics = Literal["counters", "summaries", "histograms"]
"""How latency is exported: means only; quantiles of each server's last minute; counts per bucket."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Production:
    """What a production server is told. `models` are loaded at start where `control` is explicit.

    `quantiles` are those of the summaries. `grpc_connection_seconds` closes gRPC connections of that age, so that
    clients find new replicas behind a balancer of connections; None leaves them open.
    """

    repository: str = "/models"
    control: Literal["none", "explicit"] = "none"
    models: tuple[str, ...] = ()
    host: str = "0.0.0.0"  # noqa: S104 - a container's own address is not known when this is rendered
    ports: Ports = PRODUCTION_PORTS
    gpu: bool = False
    latency: LatencyMetrics = "counters"
    quantiles: tuple[float, ...] = ()
    http_threads: int = 8
    load_threads: int = 4
    exit_seconds: int = 30
    grpc_connection_seconds: int | None = None

    def __post_init__(self) -> None:
        if (self.control == "explicit") != bool(self.models):
            raise UsageError(
                f"model control is {self.control} and {len(self.models)} models are named",
                expected="models to load with explicit, and none named without it",
            )
        if (self.latency == "summaries") != bool(self.quantiles):
            raise UsageError(
                f"latency is exported as {self.latency} with {len(self.quantiles)} quantiles",
                expected="quantiles with summaries, and none without",
            )
        if any(not 0.0 < quantile < 1.0 for quantile in self.quantiles):
            raise UsageError(f"the quantiles are {self.quantiles}", expected="each between 0 and 1")
        if min(self.http_threads, self.load_threads, self.exit_seconds) < 1:
            raise UsageError("a number of threads or seconds is below 1", expected="1 or more")


_QUANTILE_ERRORS = 10
_MILLISECONDS = 1000


def production_flags(chosen: Production | None = None) -> tuple[str, ...]:
    """The flags, without the executable, in a fixed order; by default for a CPU server that loads all of /models."""
    options = chosen or Production()
    flags = {
        "model-repository": options.repository,
        # Polling takes up half-copied models, and a load API that everybody reaches runs everybody's code.
        "model-control-mode": options.control,
        # What does not load ends the server: a rollout then stops, rather than serve less than was proven.
        "exit-on-error": "true",
        "strict-readiness": "true",
        "model-load-thread-count": str(options.load_threads),
        "exit-timeout-secs": str(options.exit_seconds),
        "http-address": options.host,
        "http-port": str(options.ports.http),
        "http-thread-count": str(options.http_threads),
        "grpc-address": options.host,
        "grpc-port": str(options.ports.grpc),
        "allow-metrics": "true",
        "metrics-address": options.host,
        "metrics-port": str(options.ports.metrics),
        # Without a GPU its metrics are a warning in the log and nothing else.
        "allow-gpu-metrics": "true" if options.gpu else "false",
        "log-format": "ISO8601",
    }
    if options.grpc_connection_seconds is not None:
        flags["grpc-max-connection-age"] = str(options.grpc_connection_seconds * _MILLISECONDS)
    # Published configs are complete; a backend's guess could only differ from what was proven.
    line = ["--disable-auto-complete-config", *(f"--{name}={value}" for name, value in flags.items())]
    line += [f"--load-model={model}" for model in options.models]
    return (*line, *(f"--metrics-config={setting}" for setting in _metrics_settings(options)))


def _metrics_settings(options: Production) -> tuple[str, ...]:
    if options.latency == "histograms":
        return ("histogram_latencies=true",)
    if options.latency == "summaries":
        # `quantile:error`: a tenth of what is beyond the quantile tells it from its neighbours.
        pairs = (f"{q:.6g}:{min(q, 1 - q) / _QUANTILE_ERRORS:.3g}" for q in sorted(set(options.quantiles)))
        return ("summary_latencies=true", f"summary_quantiles={','.join(pairs)}")
    return ()
