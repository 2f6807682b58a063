"""`deployctl serve` and `deployctl engine` as people run them."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest

from deploy.serve.engines import Engine
from tests.repository.samples import Sample
from tests.serve.leftovers import all_gone, descendants, shared_memory
from tests.serve.tiny import Linear, publish

DEPLOYCTL = [sys.executable, "-m", "deploy"]


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """Two versions of one model, of which the first is promoted, and another model."""
    publish(tmp_path / "models", Linear().onnx(), Sample())
    publish(tmp_path / "models", Linear(seed=7).onnx(), Sample())
    publish(tmp_path / "models", Linear().onnx(), Sample(name="cats"))
    return tmp_path / "models"


@contextmanager
def serve(*arguments: str) -> Iterator[tuple[subprocess.Popen[str], dict[str, Any]]]:
    """The command and what it printed once it was ready."""
    command = [*DEPLOYCTL, "serve", *arguments, "--engine", "local", "--json"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        line = process.stdout.readline()
        try:
            assert line, process.communicate()
            yield process, json.loads(line)
        finally:
            process.send_signal(signal.SIGINT)
            process.communicate()


def run(*arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    command = [*DEPLOYCTL, *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False, env={**os.environ, **variables})


@pytest.mark.engine
def test_ctrl_c_after_ready_is_a_clean_end_that_leaves_nothing(engine: Engine, repository: Path) -> None:
    with serve(str(repository), "pets") as (process, _):
        started = descendants(process.pid)
        mapped = shared_memory(started)
        assert len(started) >= 3, "guard, server and stub"
        process.send_signal(signal.SIGINT)
        assert process.wait(60) == 0
    assert all_gone(started, mapped)


@pytest.mark.engine
def test_the_printed_clients_work_as_they_are(engine: Engine, repository: Path) -> None:
    with serve(str(repository), "pets:2", "cats") as (_, ready):
        assert [(model["name"], model["version"]) for model in ready["models"]] == [("pets", 2), ("cats", 1)]
        unpromoted = ready["models"][0]
        python = subprocess.run(
            [sys.executable, "-c", unpromoted["python"]], capture_output=True, text=True, check=True
        )
        # A row of zeros leaves the bias.
        assert python.stdout.split() == ["[[0.", "1.", "2.]]"]
        curl = subprocess.run(["bash", "-c", unpromoted["curl"]], capture_output=True, text=True, check=True)
        answer = json.loads(curl.stdout)
        assert (answer["model_name"], answer["model_version"]) == ("pets", "2")
        assert answer["outputs"][0]["data"] == [0.0, 1.0, 2.0]


@pytest.mark.engine
def test_it_listens_on_loopback_only_and_never_loads_torch(engine: Engine, repository: Path) -> None:
    with serve(str(repository)) as (process, ready):
        assert [model["name"] for model in ready["models"]] == ["cats", "pets"]
        server = next(one for one in descendants(process.pid) if one.name() == "tritonserver")
        listening = [one.laddr for one in server.net_connections() if one.status == psutil.CONN_LISTEN]
        assert {address.ip.removeprefix("::ffff:") for address in listening} == {"127.0.0.1"}
        assert {f"127.0.0.1:{address.port}" for address in listening} == {ready[x] for x in ("http", "grpc", "metrics")}
        loaded = {Path(region.path).name for region in psutil.Process(process.pid).memory_maps()}
        assert not any(name.startswith(("libtorch", "onnxruntime")) for name in loaded)


def test_what_does_not_exist_is_bad_input(repository: Path, tmp_path: Path) -> None:
    assert run("serve", str(tmp_path / "none")).returncode == 2
    unknown = run("serve", str(repository), "pets:9")
    assert unknown.returncode == 2
    assert "pets:1, pets:2" in unknown.stderr


def test_no_engine_is_something_missing(repository: Path, tmp_path: Path) -> None:
    result = run("serve", str(repository), DEPLOYCTL_CACHE=str(tmp_path), PATH="/nowhere")
    assert result.returncode == 3
    assert "deployctl engine install" in result.stderr


def test_engine_list_shows_both_kinds(engine: Engine, tmp_path: Path) -> None:
    here = run("engine", "list", PATH="/nowhere")
    assert here.returncode == 0
    assert "release 24.10, tritonserver 2.51.0" in here.stdout
    assert str(engine.executable) in here.stdout
    assert "native  none" in here.stdout
    nothing = run("engine", "list", "--json", DEPLOYCTL_CACHE=str(tmp_path), PATH="/nowhere")
    assert json.loads(nothing.stdout) == []


def test_engine_install_refuses_another_file(tmp_path: Path) -> None:
    (tmp_path / "other.whl").write_bytes(b"PK")
    result = run("engine", "install", "--from", str(tmp_path / "other.whl"), "--json", DEPLOYCTL_CACHE=str(tmp_path))
    assert result.returncode == 2
    error = json.loads(result.stdout)["error"]
    assert "sha256" in error["found"]
    assert error["expected"]
    assert error["to_do"]
