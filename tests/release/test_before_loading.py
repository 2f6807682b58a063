"""Every command that loads or serves a published version looks at its digests first: no server, no runtime before.

The `tritonserver` on PATH here is a script that leaves a mark when it is started, and an intact version makes it.
"""

import json
import os
import stat
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import psutil
import pytest
from click.testing import CliRunner, Result

from deploy.cli.main import cli
from deploy.errors import UsageError
from deploy.repository.integrity import require_intact
from deploy.repository.layout import Version
from deploy.serve.engines import Engine
from deploy.serve.serving import serving
from deploy.slo.records import Bound
from deploy.tune.bed import Bed, BedPlan
from deploy.tune.request import TuneRequest
from deploy.tune.run import tune
from tests.repository.samples import Sample, put
from tests.tune.beds import put_version

RECORDER = """#!/bin/sh
touch "{mark}"
exit 1
"""

SPOILT: dict[str, tuple[Callable[[Version], object], str]] = {
    "changed artifact": (lambda v: (v.folder / "model.onnx").write_bytes(b"other"), "model.onnx has changed"),
    "changed config": (lambda v: v.config.write_text(v.config.read_text() + "\n"), "config.pbtxt has changed"),
    "changed sample": (lambda v: (v.evidence / "parity.json").write_text("[]"), "evidence/parity.json has changed"),
    "a backend in the version": (
        lambda v: (v.folder / "libtriton_onnxruntime.so").write_bytes(b""),
        "libtriton_onnxruntime.so is not in the manifest",
    ),
    "a backend in the model": (
        lambda v: (v.model_folder / "libtriton_onnxruntime.so").write_bytes(b""),
        "pets/libtriton_onnxruntime.so does not belong",
    ),
    "no config": (lambda v: v.config.unlink(), "config.pbtxt is missing"),
    "a config that is no text": (lambda v: v.config.write_bytes(b"\xff\xfe"), "config.pbtxt has changed"),
    "no manifest": (lambda v: v.manifest.unlink(), "manifest.json is missing"),
}
COMMANDS = {
    "serve": ("serve", "{repository}", "pets:1", "--engine", "native"),
    "serve what is promoted": ("serve", "{repository}", "--engine", "native"),
    "verify": ("verify", "{repository}", "pets:1", "--engine", "native", "--json"),
    "bench": ("bench", "{repository}", "pets:1", "--batch", "1"),
    "tune": ("tune", "{repository}", "pets:1", "--p99-ms", "100", "--engine", "native"),
    "slo": ("slo", "pets:1", "--url", "127.0.0.1:1", "--p99-ms", "9", "--rate", "9", "--repository", "{repository}"),
    "slo --find-rate": (
        "slo", "pets:1", "--url", "127.0.0.1:1", "--p99-ms", "9", "--rate", "9", "--find-rate",
        "--repository", "{repository}",
    ),
    "promote": ("promote", "{repository}", "pets:1"),
    "diff": ("diff", "{repository}", "pets", "1", "2", "--no-latency"),
    "docker": ("docker", "{repository}", "pets:1", "--output", "{repository}/../rendered", "--target", "26.08-cpu"),
    "k8s": ("k8s", "{repository}", "pets:1", "--output", "{repository}/../rendered", "--image", "registry.example/i:1"),
    "promote under a policy": ("promote", "{repository}", "pets:1", "--require-native"),
}  # fmt: skip
SERVES = ("serve", "verify", "tune")


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """A version that is whole, and where the mark appears if a server is started."""

    version: Version
    mark: Path
    programs: Path

    def run(self, name: str) -> Result:
        arguments = [word.format(repository=self.version.repository) for word in COMMANDS[name]]
        path = f"{self.programs}:{os.environ['PATH']}"
        variables = {"PATH": path, "DEPLOYCTL_CACHE": str(self.programs / "cache")}
        return CliRunner().invoke(cli, arguments, env=variables, prog_name="deployctl")


@pytest.fixture
def place(tmp_path: Path) -> Place:
    program = tmp_path / "bin" / "tritonserver"
    program.parent.mkdir()
    program.write_text(RECORDER.format(mark=tmp_path / "started"))
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    version = put_version(tmp_path / "models")
    put_version(tmp_path / "models")
    return Place(version=version, mark=tmp_path / "started", programs=program.parent)


@pytest.mark.parametrize("name", SERVES)
def test_an_intact_version_does_start_the_server(place: Place, name: str) -> None:
    place.run(name)
    assert place.mark.exists()


@pytest.mark.parametrize("name", COMMANDS)
def test_a_backend_beside_the_versions_is_refused_before_anything_is_started(place: Place, name: str) -> None:
    spoil, reason = SPOILT["a backend in the model"]
    spoil(place.version)
    refused(place, name, reason)


@pytest.mark.parametrize("name", COMMANDS)
def test_a_changed_artifact_is_refused_before_anything_is_started(place: Place, name: str) -> None:
    spoil, reason = SPOILT["changed artifact"]
    spoil(place.version)
    refused(place, name, reason)


@pytest.mark.parametrize(("spoil", "reason"), SPOILT.values(), ids=SPOILT.keys())
def test_serve_refuses_each(place: Place, spoil: Callable[[Version], object], reason: str) -> None:
    spoil(place.version)
    refused(place, "serve", reason)


@pytest.mark.parametrize(("spoil", "reason"), SPOILT.values(), ids=SPOILT.keys())
def test_verify_says_no_to_each(place: Place, spoil: Callable[[Version], object], reason: str) -> None:
    spoil(place.version)
    refused(place, "verify", reason)


def test_verify_says_no_to_an_archive_that_is_none(tmp_path: Path) -> None:
    """Its metadata would be read for the target, without loading it."""
    version = put(tmp_path / "models", Sample(format="aoti")).version
    (version.folder / "model.pt2").write_bytes(b"no archive")
    result = CliRunner().invoke(cli, ["verify", str(version.repository), "pets", "--static"], prog_name="deployctl")
    assert result.exit_code == 1, result.output
    assert "model.pt2 has changed" in " ".join(result.stdout.split())


def servers() -> set[int]:
    """The tritonservers that this process has started, among them those of other tests' fixtures."""
    return {one.pid for one in psutil.Process().children(recursive=True) if one.name() == "tritonserver"}


@pytest.mark.engine
def test_a_file_changed_while_the_server_starts_ends_the_server(engine: Engine, tmp_path: Path) -> None:
    version = put_version(tmp_path / "models")
    late = tmp_path / "tritonserver"
    labels = version.folder / "labels.txt"
    late.write_text(f'#!/bin/sh\necho eel >> "{labels}"\nexec "{engine.executable}" "$@"\n')
    late.chmod(late.stat().st_mode | stat.S_IXUSR)
    others = servers()
    with (
        pytest.raises(UsageError, match=r"labels\.txt has changed"),
        serving([version], engine=replace(engine, executable=late)),
    ):
        pytest.fail("the server was handed on")
    assert servers() <= others


def refused(place: Place, name: str, reason: str) -> None:
    before = sorted(str(path) for path in place.version.repository.rglob("*"))
    result = place.run(name)
    if name == "verify":
        assert result.exit_code == 1, result.output
        checks = json.loads(result.stdout)["versions"][0]["checks"]
        assert reason in checks["digests"]["reason"]
        assert "served" not in checks
    else:
        assert isinstance(result.exception, UsageError), result.output
        assert reason in result.exception.found
    assert not place.mark.exists()
    after = sorted(str(path) for path in place.version.repository.rglob("*"))
    assert [path for path in after if not path.endswith(("attestations", ".lock"))] == before


def test_a_search_looks_before_it_makes_its_bed_and_the_bed_before_its_server(place: Place) -> None:
    engine = Engine(kind="native", release="none", server_version="none", executable=place.programs / "tritonserver")
    bound = Bound(kind="latency", q=0.99, limit=100.0)
    place.version.config.write_text("")
    request = TuneRequest(repository=place.version.repository, reference="pets:1", bound=bound, engine=engine)

    def never(plan: BedPlan) -> Bed:
        pytest.fail("a test bed was made")

    with pytest.raises(UsageError, match=r"config\.pbtxt has changed"):
        tune(request, make_bed=never)
    plan = BedPlan(version=place.version, engine=engine, bound=bound, probe_seconds=1.0)
    with pytest.raises(UsageError, match=r"config\.pbtxt has changed"), Bed(plan):
        pytest.fail("a server was started")
    assert not place.mark.exists()


def test_rollback_refuses_too(tmp_path: Path) -> None:
    from deploy.repository.promotion import promote, rollback

    repository = tmp_path / "models"
    first, second = (put(repository, Sample(weights=weights)).version for weights in (b"one", b"two"))
    promote(repository, "pets", second.number)
    (first.folder / "model.onnx").write_bytes(b"other")
    with pytest.raises(UsageError, match=r"model\.onnx has changed"):
        rollback(repository, "pets")


def test_names_that_are_no_text_are_said_and_neither_crash_nor_colour_a_terminal(place: Place) -> None:
    path = os.path.join(os.fsencode(place.version.folder), b"\xff\x1b[2K.so")  # noqa: PTH118 - bytes, which Path lacks
    os.close(os.open(path, os.O_CREAT | os.O_WRONLY))
    result = place.run("serve")
    assert isinstance(result.exception, UsageError), result.output
    assert "'\\udcff\\x1b[2K.so' is not in the manifest" in result.exception.found
    assert place.run("verify").exit_code == 1
    assert not place.mark.exists()


def test_a_pipe_in_place_of_the_manifest_keeps_nobody_waiting(place: Place) -> None:
    place.version.manifest.unlink()
    os.mkfifo(place.version.manifest)
    result = place.run("serve")
    assert isinstance(result.exception, UsageError), result.output
    assert not place.mark.exists()


def test_intact_gives_the_manifest(place: Place) -> None:
    assert require_intact(place.version).name == "pets"
