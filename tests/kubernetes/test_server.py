"""The rendered command line starts a real tritonserver, and it answers what the probes ask."""

import http.client
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import yaml

from deploy.kubernetes.render import render
from deploy.kubernetes.request import KubernetesRequest, Source
from deploy.monitoring.objective import Objective
from deploy.repository.layout import CONFIG_FILE
from deploy.repository.protobuf import format_config, parse_config
from deploy.serve import local
from deploy.serve.engines import Engine
from deploy.serve.memory import peak_memory
from deploy.serve.ports import Ports, WantedPorts, choose_ports
from deploy.serve.serving import serving
from tests.kubernetes.agreement import flags
from tests.repository.samples import Sample
from tests.serve.production import known_flags, started
from tests.serve.tiny import Linear, publish

OBJECTIVE = Objective(model="pets", bound_ms=15.0, quantile=0.99)


def get(port: int, path: str) -> int:
    with closing(http.client.HTTPConnection("127.0.0.1", port, timeout=5)) as connection:
        connection.request("GET", path)
        with connection.getresponse() as response:
            return response.status


def moved(arguments: list[str], repository: Path, ports: Ports) -> list[str]:
    """The same flags with this machine's paths and ports."""
    elsewhere = {"/models": str(repository), "0.0.0.0": "127.0.0.1"}
    elsewhere |= {"8000": str(ports.http), "8001": str(ports.grpc), "8002": str(ports.metrics)}
    pairs = (flag.partition("=") for flag in arguments)
    return [f"{name}={elsewhere.get(value, value)}" if value else name for name, _, value in pairs]


@pytest.mark.engine
@pytest.mark.parametrize("target", ["24.10-cpu", "26.08-cpu"])
def test_a_real_server_serves_with_the_rendered_line_and_config(target: str, engine: Engine, tmp_path: Path) -> None:
    """24.10 exports summaries and 26.08 histograms; the server here knows the flags of both."""
    version = publish(tmp_path / "models", Linear().onnx(), Sample())
    claim = (Source.parse("pvc://models"),)
    request = KubernetesRequest(version=version, image="pets:1", sources=claim, target=target, objectives=(OBJECTIVE,))
    rendered = render(request)
    server = yaml.safe_load(rendered.files["base/deployment.yaml"])["spec"]["template"]["spec"]["containers"][0]
    by_kserve = yaml.safe_load(rendered.files["kserve/runtime.yaml"])["spec"]["containers"][0]
    assert {f"--{name}" for name in flags(server) | flags(by_kserve)} - known_flags(engine, tmp_path) == set()
    # The config that the ConfigMap lays over the repository's, with the words that the local engine's backends need.
    data = yaml.safe_load(rendered.files["base/config.yaml"])["data"]
    view = tmp_path / "view"
    local.served_view(view, [version], engine)
    config = local.adapt(version, parse_config(data["config.pbtxt"])) if engine.kind == "local" else None
    (view / "pets" / CONFIG_FILE).write_text(format_config(config) if config else data["config.pbtxt"])
    ports = choose_ports("127.0.0.1", WantedPorts())
    with started(engine, moved(server["args"], view, ports), tmp_path, ports=ports):
        for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
            assert get(ports.http, path_of(server, probe)) == http.client.OK
        # A server without this version is no server of this Deployment.
        assert get(ports.http, path_of(server, "readinessProbe").replace("/1/", "/2/")) != http.client.OK
        assert get(ports.metrics, "/metrics") == http.client.OK


def path_of(server: dict[str, Any], probe: str) -> str:
    return str(server[probe]["httpGet"]["path"])


@pytest.mark.engine
def test_the_memory_of_a_server_is_that_of_all_its_processes(engine: Engine, tmp_path: Path) -> None:
    version = publish(tmp_path / "models", Linear().onnx(), Sample())
    with serving([version], engine=engine) as server:
        found = peak_memory(server.pid)
    assert 50_000_000 < found < 8_000_000_000
