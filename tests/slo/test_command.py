"""`deployctl slo` as pipelines run it, against a real tritonserver over both protocols."""

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest

from deploy.errors import UsageError
from deploy.repository.attest import attestations
from deploy.repository.layout import Version
from deploy.repository.promotion import promote
from deploy.serve.engines import Engine
from deploy.serve.ports import WantedPorts
from deploy.serve.server import ServerOptions, TritonServer
from deploy.serve.serving import serving
from deploy.slo.request import parse_url
from tests.repository.samples import Sample
from tests.serve.tiny import Linear, images, publish

# A pass is quick with a bound on p90, for which a tenth of the queries that p99 asks for are enough.
QUICK = ("--duration", "5", "--min-duration", "0", "--warm-up", "0.2", "--timeout-ms", "2000", "--rate", "200")


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """A version that is served, its server, and samples for it."""

    version: Version
    server: TritonServer
    samples: Path


@pytest.fixture(scope="module")
def setting(engine: Engine, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Setting]:
    """One server for all tests that leave it alone."""
    folder = tmp_path_factory.mktemp("slo")
    version = publish(folder / "models", Linear().onnx(), Sample())
    samples = folder / "samples.npz"
    np.savez(samples, allow_pickle=False, image=images(8))
    with serving([version], engine=engine) as server:
        yield Setting(version=version, server=server, samples=samples)


def slo(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "deploy", "slo", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)


def asked(setting: Setting, *arguments: str) -> subprocess.CompletedProcess[str]:
    where = ("--repository", str(setting.version.repository), "--samples", str(setting.samples))
    url = () if "--url" in arguments or "--config" in arguments else ("--url", setting.server.grpc_address)
    return slo(setting.version.name, *where, *url, *QUICK, *arguments)


@pytest.mark.engine
@pytest.mark.alone
def test_a_pass_is_printed_written_and_kept(setting: Setting, tmp_path: Path) -> None:
    before = len(attestations(setting.version))
    files = ("--junit", str(tmp_path / "slo.xml"), "--markdown", str(tmp_path / "slo.md"))
    found = asked(setting, "--p90-ms", "1500", "--error-rate", "0.05", *files)
    assert found.returncode == 0, found.stderr
    assert "PASS" in found.stdout
    assert "p90 <= 1500 ms" in found.stdout
    suite = ElementTree.parse(tmp_path / "slo.xml").getroot()[0]
    assert (suite.get("failures"), suite.get("errors")) == ("0", "0")
    assert "PASS: pets:1" in (tmp_path / "slo.md").read_text()
    kept = attestations(setting.version)
    assert [one.kind for one in kept[before:]] == ["slo"]


@pytest.mark.engine
@pytest.mark.alone
def test_over_http_the_servers_own_counters_explain_the_time(setting: Setting) -> None:
    found = asked(setting, "--p90-ms", "1500", "--protocol", "http", "--url", setting.server.http_address, "--json")
    assert found.returncode == 0, found.stderr
    record = json.loads(found.stdout)
    assert record["exit_code"] == 0
    assert record["client"]["protocol"] == "http"
    server = record["server"]
    assert server["requests"] >= record["queries"]
    assert server["failures"] == 0
    assert server["compute_infer"] > 0
    assert sum(int(size) * count for size, count in server["batches"].items()) == server["requests"]


@pytest.mark.engine
@pytest.mark.alone
def test_a_fail_ends_in_1_and_says_so_in_junit(setting: Setting, tmp_path: Path) -> None:
    found = asked(setting, "--p50-ms", "0.01", "--junit", str(tmp_path / "slo.xml"))
    assert found.returncode == 1, found.stderr
    assert "FAIL" in found.stdout
    assert ElementTree.parse(tmp_path / "slo.xml").getroot()[0].get("failures") == "1"


@pytest.mark.engine
@pytest.mark.alone
def test_the_table_slo_of_a_toml_says_the_same(setting: Setting, tmp_path: Path) -> None:
    config = tmp_path / "deploy.toml"
    config.write_text(f'[slo]\nurl = "{setting.server.grpc_address}"\np99_ms = 1500.0\np50_ms = 1000\nseed = 5\n')
    record = json.loads(asked(setting, "--config", str(config), "--p50-ms", "900", "--duration", "1", "--json").stdout)
    assert record["seed"] == 5
    assert [bound["bound"]["limit"] for bound in record["bounds"]] == [900, 1500], "an option outdoes the file"


@pytest.mark.engine
@pytest.mark.alone
def test_without_a_repository_the_server_says_what_it_takes(setting: Setting, tmp_path: Path) -> None:
    np.savez(tmp_path / "wire.npz", allow_pickle=False, INPUT__0=images(4))
    url = ("--url", setting.server.grpc_address, "--samples", str(tmp_path / "wire.npz"))
    found = slo(setting.version.name, *url, "--p90-ms", "1500", *QUICK)
    assert found.returncode == 0, found.stderr
    found = slo("dogs", *url, "--p99-ms", "1500", *QUICK)
    assert found.returncode == 2
    assert "does not serve dogs" in found.stderr


@pytest.mark.engine
def test_the_port_of_the_other_protocol_is_recognised(setting: Setting) -> None:
    for url in (f"grpc://{setting.server.http_address}", f"http://{setting.server.grpc_address}"):
        found = asked(setting, "--url", url, "--p99-ms", "1500")
        assert found.returncode == 4
        assert "no server answers at" in found.stderr
        assert "Traceback" not in found.stderr


@pytest.mark.engine
@pytest.mark.alone
@pytest.mark.slow
def test_the_highest_rate_is_found_confirmed_and_kept(setting: Setting) -> None:
    found = asked(setting, "--find-rate", "--p99-ms", "250", "--rate", "200", "--json")
    record = json.loads(found.stdout)
    assert found.returncode == 0, found.stderr
    assert record["final"]["judgement"]["verdict"] == "pass"
    assert record["final"]["rate"] == record["highest"] < record["next_rate"]
    assert attestations(setting.version)[-1].kind == "rate"


@pytest.mark.engine
@pytest.mark.alone
def test_a_server_that_restarts_in_the_middle_is_a_verdict(setting: Setting, engine: Engine, tmp_path: Path) -> None:
    with serving([setting.version], engine=engine) as first:
        ports = WantedPorts(http=first.ports.http, grpc=first.ports.grpc, metrics=first.ports.metrics)
        process = start(setting, first.grpc_address)
        time.sleep(4)
    with serving([setting.version], engine=engine, options=ServerOptions(wanted=ports)):
        record = finish(process, expected=1)
    assert record["judgement"]["verdict"] == "fail"
    assert record["errors"]


@pytest.mark.engine
@pytest.mark.alone
def test_a_promotion_during_the_run_takes_no_part_in_it(setting: Setting) -> None:
    repository = setting.version.repository
    other = publish(repository, Linear(seed=1).onnx(), Sample())
    already = attestations(setting.version)
    process = start(setting, setting.server.grpc_address, "--max-queries", "900")
    time.sleep(4)
    promote(repository, other.name, other.number)
    try:
        assert finish(process, expected=0)["version"] == setting.version.number
    finally:
        promote(repository, other.name, setting.version.number)
    assert len(attestations(setting.version)) == len(already) + 1
    assert attestations(other) == ()


@pytest.mark.engine
@pytest.mark.alone
def test_a_version_that_is_removed_during_the_run_loses_no_result(setting: Setting, tmp_path: Path) -> None:
    report, away = tmp_path / "slo.xml", setting.version.repository.parent / "away"
    already = len(attestations(setting.version))
    process = start(setting, setting.server.grpc_address, "--max-queries", "900", "--junit", str(report))
    time.sleep(4)
    setting.version.folder.rename(away)
    try:
        found = finish(process, expected=4)
    finally:
        away.rename(setting.version.folder)
    assert found["judgement"]["verdict"] == "pass"
    assert "was removed meanwhile, so the result of slo is not kept" in found["error"]["found"]
    assert (found["attestation"], len(attestations(setting.version))) == (None, already)
    assert 'failures="0"' in report.read_text()


@pytest.mark.engine
@pytest.mark.alone
def test_an_interrupt_ends_the_run_and_its_child(setting: Setting) -> None:
    process = start(setting, setting.server.grpc_address, "--duration", "60", "--min-duration", "60")
    time.sleep(4)
    process.terminate()
    _, said = process.communicate(timeout=30)
    assert process.returncode == 130
    assert "Traceback" not in said
    assert children(process.pid) == []


def start(setting: Setting, url: str, *arguments: str) -> "subprocess.Popen[str]":
    command = [sys.executable, "-m", "deploy", "slo", setting.version.name, "--url", url, "--json", *QUICK]
    command += ["--repository", str(setting.version.repository), "--samples", str(setting.samples)]
    command += ["--p99-ms", "500", "--duration", "20", "--min-duration", "15", *arguments]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def finish(process: "subprocess.Popen[str]", *, expected: int) -> dict[str, Any]:
    out, said = process.communicate(timeout=90)
    assert process.returncode == expected, said
    record: dict[str, Any] = json.loads(out)
    return record


def children(parent: int) -> list[int]:
    """Processes whose session or parent belonged to a process that is gone."""
    import psutil

    return [process.pid for process in psutil.process_iter() if process.ppid() == parent]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--p99-ms", "15", "--rate", "10"), "--url is missing"),
        (("--url", "localhost:1", "--p99-ms", "15"), "--rate is missing"),
        (("--url", "localhost", "--p99-ms", "15", "--rate", "10"), "expected: HOST:PORT"),
        (("--url", "https://localhost:8000", "--p99-ms", "15", "--rate", "10"), "without encryption"),
        (("--url", "http://localhost:1", "--protocol", "grpc", "--p99-ms", "15", "--rate", "1"), "one of the two"),
        (("--url", "localhost:1", "--rate", "10"), "no bound was given"),
        (("--url", "localhost:1", "--rate", "nan", "--p99-ms", "15"), "'nan' is not a finite number"),
        (("--url", "localhost:1", "--rate", "10", "--p99-ms", "inf"), "'inf' is not a finite number"),
        (("--url", "localhost:1", "--rate", "10", "--error-rate", "1e-17"), "1e-17 is not in the range"),
        (("--url", "localhost:1", "--rate", "1e7", "--duration", "3600", "--p99-ms", "15"), "queries"),
        (
            ("--url", "127.0.0.1:1", "--rate", "10", "--p99-ms", "15", "--junit", "/proc/no/slo.xml"),
            "cannot be written",
        ),
        (("--url", "127.0.0.1:1", "--rate", "10", "--p99-ms", "15", "--markdown", "x" * 300), "cannot be written"),
        (
            ("--url", "127.0.0.1:1", "--rate", "10", "--p99-ms", "15", "--junit", "x.out", "--markdown", "./x.out"),
            "a file for each",
        ),
        (("--config", "absent.toml"), "there is no file absent.toml"),
    ],
)
def test_wrong_use_is_one_clear_error(arguments: tuple[str, ...], said: str) -> None:
    found = slo("pets", *arguments)
    assert found.returncode == 2
    assert said in found.stderr
    assert "Traceback" not in found.stderr


def test_a_run_that_comes_to_nothing_leaves_no_earlier_result(tmp_path: Path) -> None:
    junit, markdown, samples = tmp_path / "slo.xml", tmp_path / "slo.md", tmp_path / "samples.npz"
    for file in (junit, markdown):
        file.write_text("PASS of an earlier run")
    np.savez(samples, allow_pickle=False, image=images(1))
    where = ("--url", "127.0.0.1:1", "--samples", str(samples), "--junit", str(junit), "--markdown", str(markdown))
    found = slo("pets", *where, "--rate", "10", "--p90-ms", "15")
    assert found.returncode == 4, found.stderr
    assert ElementTree.parse(junit).getroot()[0].get("errors") == "1"
    assert "nobody listens at" in markdown.read_text()


def test_an_option_that_click_refuses_is_said_to_machines_too() -> None:
    found = slo("pets", "--rate", "many", "--json")
    assert found.returncode == 2
    assert json.loads(found.stdout)["exit_code"] == 2
    assert "'many' is not a valid" in json.loads(found.stdout)["error"]["found"]


@pytest.mark.parametrize(
    "url", ["localhost:0", "localhost:65536", "localhost:²", "::1:8001", "a b:8001", "[x]:1", ":1"]
)
def test_what_is_no_address_is_refused(url: str) -> None:
    with pytest.raises(UsageError, match="HOST:PORT"):
        parse_url(url, None)


def test_an_address_of_the_newer_internet_stands_in_brackets() -> None:
    assert parse_url("[::1]:8001", None) == ("[::1]:8001", "grpc")
    assert parse_url("http://[fe80::1%eth0]:8000/", None) == ("[fe80::1%eth0]:8000", "http")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[slo]\np99_ms = -1\n", "p99_ms"),
        ("[slo]\np99_ms = inf\n", "p99_ms"),
        ("[slo]\nrate = nan\n", "rate"),
        ("[slo]\nrate = inf\nwarm_up = 0\n", "rate"),
        ("[slo]\np98_ms = 1\n", "p98_ms"),
        ("[other]\n", "the table [other] is not known"),
        ("[package]\n", "has no table [slo]"),
        ("[slo\n", "is not TOML"),
    ],
)
def test_a_toml_that_nobody_can_mean_is_refused(tmp_path: Path, text: str, said: str) -> None:
    (tmp_path / "deploy.toml").write_text(text)
    found = slo("pets", "--config", str(tmp_path / "deploy.toml"))
    assert found.returncode == 2
    assert said in found.stderr
