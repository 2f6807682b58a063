"""The command line of production: a real server knows each flag and becomes ready with it."""

import http.client
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from deploy.errors import UsageError
from deploy.serve.engines import Engine
from deploy.serve.flags import Production, production_flags
from deploy.serve.local import served_view
from deploy.serve.ports import WantedPorts, choose_ports
from tests.repository.samples import Sample
from tests.serve.production import known_flags, started
from tests.serve.tiny import Linear, publish

EVERYTHING = Production(control="explicit", models=("pets",), gpu=True, grpc_connection_seconds=600)
SUMMARIES = Production(latency="summaries", quantiles=(0.99, 0.856))


def names(flags: tuple[str, ...]) -> set[str]:
    return {flag.split("=")[0] for flag in flags}


@pytest.mark.engine
@pytest.mark.parametrize("options", [EVERYTHING, SUMMARIES, replace(SUMMARIES, latency="histograms", quantiles=())])
def test_a_real_server_knows_each_flag(options: Production, engine: Engine, tmp_path: Path) -> None:
    known = known_flags(engine, tmp_path)
    assert names(production_flags(options)) - known == set()
    assert "--no-such-flag" not in known


def metrics(port: int) -> str:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
    connection.request("GET", "/metrics")
    return connection.getresponse().read().decode()


@pytest.mark.engine
def test_a_real_server_starts_with_the_line_of_production(engine: Engine, tmp_path: Path) -> None:
    version = publish(tmp_path / "models", Linear().onnx(), Sample())
    view = served_view(tmp_path / "view", [version], engine)
    ports = choose_ports("127.0.0.1", WantedPorts())
    options = replace(SUMMARIES, repository=str(view), host="127.0.0.1", ports=ports)
    with started(engine, production_flags(options), tmp_path, ports=ports):
        exported = metrics(ports.metrics)
    # The warm-up was counted, and the summaries hold the quantiles that were asked for and no others.
    assert 'nv_inference_request_success{model="pets",version="1"}' in exported
    found = {line.split('quantile="')[1].split('"')[0] for line in exported.splitlines() if "quantile=" in line}
    assert found == {"0.856", "0.99"}


@pytest.mark.engine
def test_a_model_that_does_not_load_ends_the_server(engine: Engine, tmp_path: Path) -> None:
    version = publish(tmp_path / "models", b"no graph", Sample())
    view = served_view(tmp_path / "view", [version], engine)
    ports = choose_ports("127.0.0.1", WantedPorts())
    flags = production_flags(Production(repository=str(view), host="127.0.0.1", ports=ports))
    with (
        pytest.raises(AssertionError, match="failed to load 'pets'"),
        started(engine, flags, tmp_path, ports=ports),
    ):
        pass


@pytest.mark.parametrize(
    ("wrong", "word"),
    [
        ({"control": "explicit"}, "0 models are named"),
        ({"models": ("pets",)}, "1 models are named"),
        ({"latency": "summaries"}, "0 quantiles"),
        ({"quantiles": (0.99,)}, "1 quantiles"),
        ({"latency": "summaries", "quantiles": (99.0,)}, "quantiles are"),
        ({"http_threads": 0}, "below 1"),
    ],
)
def test_a_line_that_contradicts_itself_is_refused(wrong: dict[str, Any], word: str) -> None:
    with pytest.raises(UsageError, match=word):
        replace(Production(), **wrong)


def test_the_load_api_and_polling_are_off_unless_asked_for() -> None:
    assert "--model-control-mode=none" in production_flags()
    assert not any(flag.startswith("--load-model") for flag in production_flags())
