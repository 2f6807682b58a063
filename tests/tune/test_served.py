"""`deployctl tune` on a real tritonserver: loaded with a config override, probed, proven and published."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from deploy.progress import Silent
from deploy.repository.find import find_model
from deploy.repository.layout import Version
from deploy.repository.protobuf import parse_config
from deploy.serve.client import Client
from deploy.serve.engines import Engine
from deploy.slo.counters import ServerTalk, compare
from deploy.slo.records import Bound
from deploy.slo.tune_records import Setting, TuneEvidence, TuneTrial
from deploy.tune.bed import Bed, BedPlan, ServerGone, SettingRefused
from deploy.tune.knobs import apply
from deploy.tune.publish import Successor, publish_tuned
from tests.tune.beds import put_version

PROBE = """
import json, sys
from deploy.cli.main import main
try:
    main()
finally:
    heavy = [name for name in ("torch", "onnx", "onnxruntime") if name in sys.modules]
    print(json.dumps(heavy), file=sys.stderr)
"""


def bed(version: Version, engine: Engine) -> Bed:
    bound = Bound(kind="latency", q=0.99, limit=500.0)
    return Bed(BedPlan(version=version, engine=engine, bound=bound, probe_seconds=0.5))


def tune(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", PROBE, "tune", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=150)


@pytest.mark.engine
@pytest.mark.alone
def test_settings_are_loaded_without_a_restart_and_a_dead_server_is_started_again(
    engine: Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    version = put_version(tmp_path / "models")
    with bed(version, engine) as served:
        served.load(Setting(batch_limit=2, delay_us=0, instances=1, threads=1))
        pid = served.server.pid
        assert batches_of_a_burst(served, version) <= {1, 2}, "the preferred size is the limit"
        served.load(Setting(batch_limit=8, delay_us=5000, instances=1, threads=1))
        assert max(batches_of_a_burst(served, version)) > 2
        served.load(Setting(batch_limit=1, instances=2, threads=1))
        assert batches_of_a_burst(served, version) == {1}
        assert served.probe(50.0).kept
        with pytest.raises(SettingRefused, match="shm has"):
            served.load(Setting(batch_limit=1, instances=10_000_000, threads=1))
        absent = parse_config(version.config.read_text().replace("model.onnx", "absent.onnx"))
        with monkeypatch.context() as patch, pytest.raises(SettingRefused, match="the server refused"):
            patch.setattr(served, "_config", absent)
            served.load(Setting(batch_limit=1, instances=1, threads=1))
        assert not served.revive()
        assert served.server.pid == pid
        served.server.stop()
        with pytest.raises(ServerGone):
            served.load(Setting(batch_limit=1, instances=1, threads=1))
        assert served.revive()
        served.load(Setting(batch_limit=1, instances=1, threads=1))
        assert served.pace() > 0
        monkeypatch.setattr(served, "_unload", lambda: False)
        served.load(Setting(batch_limit=1, instances=2, threads=1))
        assert served.restarts == 2, "a setting that the server does not let go of costs a restart"
        assert served.probe(50.0).kept


def batches_of_a_burst(served: Bed, version: Version) -> set[int]:
    """The sizes of the runs that a few bursts came to; what the warm-up ran before is not among them."""
    row = served.one_row()
    with Client("grpc", served.server.grpc_address) as client, ServerTalk(served.server.grpc_address, "grpc") as talk:
        before = talk.counters(version.name, str(version.number))
        for _ in range(3):
            client.infer_all(served.address(), [row] * 64)
        found = compare(before, talk.counters(version.name, str(version.number)))
    assert found is not None
    return set(found.batches)


@pytest.mark.engine
def test_a_tuned_version_is_served_from_the_stage_before_it_is_published(engine: Engine, tmp_path: Path) -> None:
    version = put_version(tmp_path / "models")
    config = parse_config(version.config.read_text())
    chosen = Setting(batch_limit=4, delay_us=1000, instances=2, threads=1)
    evidence = evidence_of(version, chosen)
    successor = Successor(
        version=version, config=apply(config, chosen), evidence=evidence, command=("x",), engine=engine, promote=False
    )
    published = publish_tuned(successor, progress=Silent())
    served = json.loads((published.version.evidence / "served.json").read_text())
    assert served["judgement"]["verdict"] == "pass"
    assert served["executions"] < served["inferences"]


def evidence_of(version: Version, chosen: Setting) -> TuneEvidence:
    facts: dict[str, Any] = {
        "model": version.name,
        "version": 1,
        "version_digest": "0",
        "bound": {"kind": "latency", "q": 0.99, "limit": 15.0},
        "judgement": {"verdict": "pass", "reason": "better"},
        "outcome": "better",
        "own": {"instances": 1},
        "chosen": chosen,
        "knobs": (),
        "space": 1,
        "best": 0,
        "trials": (
            TuneTrial(number=0, setting=chosen, status="measured", rate=9.0, score=9.0, reason="", seconds=1.0),
        ),
        "confirmation": None,
        "seed": 0,
        "probe_seconds": 1.0,
        "protocol": "grpc",
        "engine": "",
        "mode": "",
        "machine": "",
        "created": "",
        "command": (),
        "seconds": 1.0,
        "sampler": "",
        "method": "",
    }
    return TuneEvidence.model_validate(facts)


@pytest.mark.engine
@pytest.mark.alone
def test_the_command_ends_with_a_verdict_and_imports_no_torch(engine: Engine, tmp_path: Path) -> None:
    version = put_version(tmp_path / "models")
    quick = ("--p99-ms", "40", "--trials", "1", "--seconds-per-probe", "0.4", "--storage", str(tmp_path / "t.journal"))
    found = tune(str(version.repository), version.name, *quick, "--json")
    assert found.returncode == 0, found.stderr
    record = json.loads(found.stdout)
    assert record["outcome"] == "stays", "the only trial is the version's own setting"
    assert len(record["trials"]) == 1
    assert record["own"] == record["trials"][0]["setting"]
    assert record["trials"][0]["probes"][0]["batch_reached"] >= 1
    assert record["published"] is None
    assert find_model(version.repository, version.name).versions == (1,)
    assert json.loads(found.stderr.splitlines()[-1]) == []


@pytest.mark.parametrize(("arguments", "said"), [
    (("--p99-ms", "15", "--dry-run", "--promote"), "nothing to promote"),
    (("--p99-ms", "0"), "--p99-ms"),
    ((), "Missing option '--p99-ms'"),
    (("--p99-ms", "15", "--trials", "0"), "--trials"),
])  # fmt: skip
def test_wrong_use_is_one_clear_error(arguments: tuple[str, ...], said: str, engine: Engine, tmp_path: Path) -> None:
    version = put_version(tmp_path / "models")
    found = tune(str(version.repository), version.name, *arguments)
    assert found.returncode == 2
    assert said in found.stderr
    assert "Traceback" not in found.stderr
