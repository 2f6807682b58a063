"""A server starts, says why when it does not, and leaves nothing behind however it ends."""

import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np
import psutil
import pytest

from deploy.errors import MissingError, UsageError
from deploy.repository.layout import Version
from deploy.repository.promotion import promote
from deploy.serve.client import Client, ModelAddress
from deploy.serve.engines import LIBRARIES, Engine
from deploy.serve.local import adapt, check_programs, check_shared_memory, config_difference, served_view
from deploy.serve.ports import Ports, WantedPorts, choose_ports
from deploy.serve.server import ServerFailed, ServerOptions, TritonServer
from deploy.serve.serving import chosen_versions, serving
from tests.repository.samples import Sample
from tests.serve.leftovers import all_gone, descendants, server_processes, shared_memory
from tests.serve.tiny import Linear, images, publish

# Serves a repository with the local engine, says so, and waits to be ended.
CHILD = """
import sys, time
from pathlib import Path
from deploy.serve.engines import find_engine
from deploy.serve.serving import chosen_versions, serving
with serving(chosen_versions(Path(sys.argv[1]), []), engine=find_engine("local")) as server:
    print("ready", flush=True)
    time.sleep(600)
"""


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """One promoted version of the classifier."""
    publish(tmp_path / "models", Linear().onnx(), Sample())
    return tmp_path / "models"


@pytest.fixture
def version(repository: Path) -> Version:
    return Version(repository=repository, name="pets", number=1)


@contextmanager
def taken_port() -> Iterator[int]:
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        held.listen()
        yield held.getsockname()[1]


def ask(server: TritonServer, number: int) -> float:
    """The first score of the first image."""
    with Client("grpc", server.grpc_address) as client:
        model = ModelAddress(name="pets", version=number, outputs=("OUTPUT__0",))
        return float(client.infer(model, {"INPUT__0": images(1)})["OUTPUT__0"][0, 0])


@pytest.mark.engine
@pytest.mark.parametrize("at_once", [False, True])
def test_leaving_the_block_leaves_no_process_no_memory_and_no_folder(
    engine: Engine, version: Version, at_once: bool
) -> None:
    with serving([version], engine=engine, options=ServerOptions(end_at_once=at_once)) as server:
        processes = descendants(server.pid)
        mapped = shared_memory(processes)
        folders = [server.repository, server.log.parent]
        assert server.ready_seconds > 0
        assert len(processes) == 2, "server and stub"
        assert mapped
    assert all_gone(processes, mapped)
    assert not any(folder.exists() for folder in folders)


@pytest.mark.engine
@pytest.mark.parametrize("when", ["loading", "ready"])
def test_kill_9_of_the_parent_leaves_nothing(engine: Engine, repository: Path, when: str) -> None:
    with subprocess.Popen([sys.executable, "-c", CHILD, str(repository)], stdout=subprocess.PIPE) as parent:
        assert parent.stdout is not None
        if when == "ready":
            assert parent.stdout.readline() == b"ready\n"
        else:
            wait_for_stub(parent.pid)
        processes = descendants(parent.pid)
        files = shared_memory(processes) | {server_folder(processes)}
        assert len(processes) >= 3, "guard, server and stub"
        parent.kill()
    assert all_gone(processes, files)


def server_folder(processes: list[psutil.Process]) -> Path:
    """The folder with the view, the backends and the log, as the guard was told it."""
    guard = next(process.cmdline() for process in processes if any("guard.py" in word for word in process.cmdline()))
    folder = Path(guard[4])
    assert (folder / "models").is_dir()
    return folder


def wait_for_stub(pid: int) -> None:
    until = time.monotonic() + 60
    while time.monotonic() < until:
        with suppress(psutil.NoSuchProcess):
            for process in descendants(pid):
                parent = process.parent()
                # Before the stub of the model the backend runs one below a shell, to ask for its version.
                if parent and parent.name() == "tritonserver" and process.name().startswith("triton_python"):
                    return
        time.sleep(0.01)
    pytest.fail("no stub was started")


@pytest.mark.engine
def test_a_server_that_dies_is_noticed_and_its_signal_named(engine: Engine, version: Version) -> None:
    with serving([version], engine=engine) as server:
        processes = descendants(server.pid)
        mapped = shared_memory(processes)
        victim = next(process for process in processes if process.name() == "tritonserver")
        victim.kill()
        with pytest.raises(ServerFailed, match="killed by SIGKILL"):
            server.wait()
    assert all_gone(processes, mapped)


@pytest.mark.engine
def test_a_broken_artifact_ends_the_wait_with_the_runtimes_own_words(engine: Engine, tmp_path: Path) -> None:
    broken = publish(tmp_path / "models", b"this is no graph", Sample())
    with pytest.raises(ServerFailed, match=r"failed to load 'pets' version 1.*INVALID_PROTOBUF") as caught:
        serve_once(engine, broken)
    assert "model.onnx" in caught.value.tail


@pytest.mark.engine
@pytest.mark.parametrize("format", ["onnx", "aoti"])
def test_a_file_that_is_not_the_proven_one_is_not_loaded(
    engine: Engine, tmp_path: Path, archive: bytes, format: str
) -> None:
    onnx = publish(tmp_path / "models", Linear().onnx(), Sample())
    aoti = publish(tmp_path / "models", archive, Sample(name="pets_aoti", format="aoti"))
    chosen, file = (onnx, "model.onnx") if format == "onnx" else (aoti, "model.pt2")
    with (chosen.folder / file).open("ab") as stream:
        stream.write(b"\0")
    # Past the look that comes before a server is started: what is changed after it is found by the backend.
    view = served_view(tmp_path / "view", [chosen], engine)
    with pytest.raises(ServerFailed, match="is not the file that was proven"), TritonServer(view, engine=engine):
        pass


@pytest.mark.engine
def test_native_code_that_nobody_vouches_for_is_not_loaded(engine: Engine, tmp_path: Path, archive: bytes) -> None:
    version = publish(tmp_path / "models", archive, Sample(format="aoti"))
    view = served_view(tmp_path / "view", [version], engine)
    config = view / "pets" / "config.pbtxt"
    config.write_text(config.read_text().replace("deployctl_sha256:", "somebody_elses:"))
    with pytest.raises(ServerFailed, match="comes without an expected digest"), TritonServer(view, engine=engine):
        pass


@pytest.mark.engine
def test_a_config_that_does_not_parse_is_named_with_its_line(engine: Engine, repository: Path, tmp_path: Path) -> None:
    (repository / "pets" / "config.pbtxt").write_text('default_model_name: "model.onnx"\n')
    log = tmp_path / "server.log"
    with (
        pytest.raises(ServerFailed, match=r'Poll failed.*no field named "default_model_name"') as caught,
        TritonServer(repository, engine=engine, log=log),
    ):
        pass
    assert str(log) in caught.value.fix
    assert log.exists()


@pytest.mark.engine
def test_a_version_that_is_not_served_is_not_called_ready(engine: Engine, repository: Path) -> None:
    options = ServerOptions(expect=(("pets", 1), ("pets", 7)))
    with (
        pytest.raises(ServerFailed, match="pets:7 is not served"),
        TritonServer(repository, engine=engine, options=options),
    ):
        pass


@pytest.mark.engine
def test_a_wait_ends_at_its_limit(engine: Engine, repository: Path) -> None:
    options = ServerOptions(ready_seconds=0.0)
    with (
        pytest.raises(ServerFailed, match="not ready after 0 s"),
        TritonServer(repository, engine=engine, options=options),
    ):
        pass
    assert server_processes(repository) == []


@pytest.mark.engine
def test_a_polled_repository_serves_what_is_promoted_while_it_runs(engine: Engine, repository: Path) -> None:
    publish(repository, Linear(seed=7).onnx(), Sample())
    with TritonServer(repository, engine=engine, options=ServerOptions(control="poll")) as server:
        assert server.model_ready("pets", 1)
        assert not server.model_ready("pets", 2), "publishing alone changes no traffic"
        assert ask(server, 1) == pytest.approx(float(Linear().outputs(images(1))[0, 0]), abs=1e-4)
        promote(repository, "pets", 2)
        until = time.monotonic() + 60
        while not server.model_ready("pets", 2) and time.monotonic() < until:
            time.sleep(0.1)
        assert ask(server, 2) == pytest.approx(float(Linear(seed=7).outputs(images(1))[0, 0]), abs=1e-4)


@pytest.mark.engine
def test_the_allocator_keeps_what_requests_took_unless_the_caller_says_otherwise(
    engine: Engine, version: Version, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MALLOC_TOP_PAD_", "65536")
    with serving([version], engine=engine) as server:
        [process] = [one for one in descendants(server.pid) if one.name() == "tritonserver"]
        variables = process.environ()
    assert int(variables["MALLOC_MMAP_THRESHOLD_"]) > 4 * 3 * 224 * 224
    assert variables["MALLOC_TOP_PAD_"] == "65536"


@pytest.mark.engine
def test_ports_that_were_asked_for_are_used(engine: Engine, version: Version) -> None:
    ports = choose_ports("127.0.0.1", WantedPorts())
    wanted = WantedPorts(http=ports.http, grpc=ports.grpc, metrics=ports.metrics)
    with serving([version], engine=engine, options=ServerOptions(wanted=wanted)) as server:
        assert server.ports == ports
        assert server.http_address == f"127.0.0.1:{ports.http}"


def has_newer_internet() -> bool:
    with suppress(OSError), socket.socket(socket.AF_INET6) as one:
        one.bind(("::1", 0))
        return True
    return False


@pytest.mark.engine
@pytest.mark.skipif(not has_newer_internet(), reason="this machine has no loopback of IPv6")
@pytest.mark.parametrize("host", ["::1", "::"])
def test_a_server_listens_at_an_address_of_the_newer_internet(engine: Engine, version: Version, host: str) -> None:
    with serving([version], engine=engine, options=ServerOptions(host=host)) as server:
        assert server.http_address == f"[::1]:{server.ports.http}"
        assert np.isfinite(ask(server, 1))


@pytest.mark.engine
@pytest.mark.parametrize("kind", ["http", "grpc", "metrics"])
def test_a_port_that_is_taken_in_the_last_moment_is_chosen_again(engine: Engine, repository: Path, kind: str) -> None:
    with taken_port() as taken:
        calls = []

        def choose(host: str, wanted: WantedPorts) -> Ports:
            calls.append(host)
            return choose_ports(host, WantedPorts(**{kind: taken} if len(calls) == 1 else {}))

        with TritonServer(repository, engine=engine, choose=choose) as server:
            assert len(calls) == 2
            assert getattr(server.ports, kind) != taken


def test_a_port_that_was_asked_for_and_is_taken_is_refused_before_anything_starts(tmp_path: Path) -> None:
    nowhere = Engine(kind="native", release="", server_version="", executable=tmp_path / "tritonserver")
    with taken_port() as taken:
        server = TritonServer(tmp_path, engine=nowhere, options=ServerOptions(wanted=WantedPorts(grpc=taken)))
        with pytest.raises(UsageError, match=f"port {taken} on 127.0.0.1 cannot be used"):
            server.start()
        twice = ServerOptions(wanted=WantedPorts(grpc=taken, http=taken))
        with pytest.raises(UsageError, match="given twice"):
            TritonServer(tmp_path, engine=nowhere, options=twice).start()
    with pytest.raises(UsageError, match=r"the address 192\.0\.2\.1 cannot be used"):
        TritonServer(tmp_path, engine=nowhere, options=ServerOptions(host="192.0.2.1")).start()


def test_the_digests_of_many_files_are_said_in_one_line(engine: Engine, tmp_path: Path) -> None:
    version = publish(tmp_path / "models", b"archive", Sample(format="aoti"))
    version.manifest.unlink()
    (version.folder / "tokenizer.json").write_text("{}")
    assert config_difference(version, engine)[2:] == ("parameters: deployctl_sha256 of 2 files added",)


def test_the_view_adapts_the_config_and_says_how(engine: Engine, tmp_path: Path) -> None:
    version = publish(tmp_path / "models", b"archive", Sample(format="aoti"))
    native = Engine(kind="native", release="26.06", server_version="2.70.0", executable=Path("/tritonserver"))
    assert config_difference(version, engine) == (
        "platform: torch_aoti -> unset",
        "runtime: unset -> model.py",
        "parameters: deployctl_sha256:1/model.pt2 added",
    )
    assert config_difference(version, native) == ()
    view = served_view(tmp_path / "native", [version], native)
    assert (view / "pets" / "config.pbtxt").read_text() == version.config.read_text()


def test_a_staged_version_without_a_manifest_is_adapted_too(repository: Path, tmp_path: Path) -> None:
    from deploy.repository.protobuf import parse_config

    published = Version(repository=repository, name="pets", number=1)
    staged = Version(repository=tmp_path / "stage", name="pets", number=1)
    shutil.copytree(repository, staged.repository)
    staged.manifest.unlink()
    config = parse_config(published.config.read_text())
    assert adapt(staged, config) == adapt(published, config)
    assert config == parse_config(published.config.read_text()), "the message that was given stays as it is"


def test_shared_memory_that_is_too_small_is_named(version: Version) -> None:
    from deploy.repository.protobuf import parse_config

    config = parse_config(version.config.read_text())
    check_shared_memory([config])
    config.max_batch_size = 2**31 - 1
    config.instance_group[0].count = 1000
    with pytest.raises(MissingError, match="/dev/shm has") as caught:
        check_shared_memory([config])
    assert "--shm-size" in caught.value.fix


def test_what_a_stub_lacks_is_named_before_the_server_waits_for_it(engine: Engine, tmp_path: Path) -> None:
    stub = Path(shutil.copy(engine.stub, tmp_path))
    with pytest.raises(MissingError, match="triton_python_backend_stub needs libcudart"):
        check_programs((stub,), {})
    stub.chmod(0o644)
    with pytest.raises(MissingError, match="may not be executed") as caught:
        check_programs((stub,), {})
    assert "TMPDIR" in caught.value.fix
    stub.chmod(0o755)
    assert engine.root and engine.libpython
    check_programs((stub,), {"LD_LIBRARY_PATH": f"{engine.root / LIBRARIES}:{engine.libpython.parent}"})


def test_without_names_the_promoted_versions_are_meant(repository: Path) -> None:
    publish(repository, Linear(seed=7).onnx(), Sample())
    publish(repository, Linear().onnx(), Sample(name="cats"))
    assert [str(version) for version in chosen_versions(repository, [])] == ["cats:1", "pets:1"]
    assert [str(version) for version in chosen_versions(repository, ["pets:2"])] == ["pets:2"]
    for name in ("cats", "pets"):
        (repository / name / "config.pbtxt").unlink()
    with pytest.raises(UsageError, match="has a promoted version") as caught:
        chosen_versions(repository, [])
    assert "NAME:N" in caught.value.fix


def serve_once(engine: Engine, version: Version) -> None:
    with serving([version], engine=engine):
        pass


def test_the_guard_stops_on_sigterm_too(tmp_path: Path) -> None:
    """A container that ends sends SIGTERM to every process; the guard must not leave the server to itself."""
    from deploy.serve import guard

    command = [sys.executable, "-I", guard.__file__, "5", str(tmp_path / "none"), "sleep", "600"]
    with subprocess.Popen(command, stdin=subprocess.PIPE) as process:
        until = time.monotonic() + 30
        while not descendants(process.pid) and time.monotonic() < until:
            time.sleep(0.01)
        sleeping = descendants(process.pid)
        assert sleeping
        process.send_signal(signal.SIGTERM)
        process.wait()
    assert all_gone(sleeping, set())
