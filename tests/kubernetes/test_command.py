"""`deployctl k8s` on the command line: what it prints, what it refuses, and that it needs no torch."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from click.testing import CliRunner, Result

from deploy.cli.main import cli
from deploy.errors import UsageError
from deploy.evidence import Verdict
from deploy.kubernetes.request import Source, check_image, object_name, prometheus_namespace
from deploy.monitoring.objective import objectives_of
from deploy.repository.attest import attest
from deploy.slo.records import Bound
from tests.kubernetes.example import NAME, REPOSITORIES
from tests.report.samples import slo
from tests.repository.samples import put

CPU = REPOSITORIES / "cpu"
IMAGE = "registry.example.com/digits:1"


def run(*arguments: object) -> Result:
    return CliRunner().invoke(cli, ["k8s", *map(str, arguments)])


def test_the_command_says_what_to_do_next(tmp_path: Path) -> None:
    result = run(CPU, NAME, "--output", tmp_path / "out", "--image", IMAGE)
    assert result.exit_code == 0, result.output
    assert result.stdout.splitlines()[-1] == f"kubectl apply -k {tmp_path}/out/overlays/cpu"
    notes = result.stderr
    assert "no alert watches latency" in notes
    assert "no SLO check: no image holds deployctl" in notes
    assert "named by its tag" in notes


def test_a_release_without_histograms_is_said_to_prove_less(tmp_path: Path) -> None:
    put(tmp_path / "models")
    arguments = (tmp_path / "models", "pets", "--output", tmp_path / "out", "--image", IMAGE, "--p99-ms", "15")
    assert "no more than a lower bound" in run(*arguments, "--target", "24.10-cpu").stderr
    assert "no more than a lower bound" not in run(*arguments, "--target", "26.08-cpu").stderr


def test_json_names_everything(tmp_path: Path) -> None:
    result = run(CPU, NAME, "--output", tmp_path / "out", "--models", "s3://b/m", "--tool-image", "tools:1", "--json")
    found = json.loads(result.stdout)
    assert (found["version"], found["target"]) == (f"{NAME}:1", "26.08-cpu")
    assert found["image"] == "nvcr.io/nvidia/tritonserver:26.08-py3"
    assert all(Path(path).is_file() for path in found["files"])


def test_a_file_says_what_no_option_says(tmp_path: Path) -> None:
    (tmp_path / "deploy.toml").write_text(
        '[k8s]\nimage = "registry.example.com/digits:1"\nnamespace = "shop"\nreplicas = 3\nslo = "deploy.toml"\n'
        "[slo]\np99_ms = 20.0\nrate = 100\n"
    )
    result = run(CPU, NAME, "--output", tmp_path / "out", "--config", tmp_path / "deploy.toml", "--replicas", "5")
    assert result.exit_code == 0, result.output
    deployment = yaml.safe_load((tmp_path / "out" / "base" / "deployment.yaml").read_text())
    assert deployment["spec"]["replicas"] == 5
    assert yaml.safe_load((tmp_path / "out" / "base" / "kustomization.yaml").read_text())["namespace"] == "shop"
    assert "p99-20ms" in (tmp_path / "out" / "components" / "monitoring" / "rules.yaml").read_text()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "nothing says where a server finds"),
        (["--image", "digits"], "another image tomorrow"),
        (["--image", "digits:latest"], "another image tomorrow"),
        (["--image", "Digits Server:1"], "--image is"),
        (["--models", "http://host/models"], "--models is"),
        (["--models", "s3://key:secret@host/models", "--tool-image", "t:1"], "holds credentials"),
        (["--models", "s3://b/m"], "need an image with deployctl"),
        (["--models", "pvc://a", "--models", "pvc://b"], "twice for one way"),
        (["--models", "pvc://claim/../../etc"], "inside of the volume"),
        (["--image", IMAGE, "--target", "26.08-cuda-sm90"], "its config runs it on cpu"),
        (["--image", IMAGE, "--target", "26.99-cpu"], "there is no target"),
        (["--models", "pvc://claim", "--target", "local-cpu"], "has no image to serve with"),
        (["--image", IMAGE, "--namespace", "Shop"], "--namespace is"),
        (["--image", IMAGE, "--name", "9pets"], "cannot name the objects"),
        (["--image", IMAGE, "--prometheus", "prometheus:9090"], "--prometheus is"),
        (["--image", IMAGE, "--p99-ms", "5", "--slo", "deploy.toml"], "one of them"),
    ],
)
def test_what_cannot_be_meant_is_refused_before_anything_is_written(
    arguments: list[str], words: str, tmp_path: Path
) -> None:
    result = run(CPU, NAME, "--output", tmp_path / "out", *arguments)
    assert isinstance(result.exception, UsageError), result.output
    assert words in str(result.exception)
    assert list(tmp_path.iterdir()) == []


def test_a_version_that_was_changed_is_refused(tmp_path: Path) -> None:
    version = put(tmp_path / "models").version
    (version.folder / "model.onnx").write_bytes(b"another")
    result = run(tmp_path / "models", "pets", "--output", tmp_path / "out", "--image", IMAGE)
    assert "model.onnx has changed" in str(result.exception)


def test_the_check_asks_for_what_was_kept_at_the_rate_at_which_it_was(tmp_path: Path) -> None:
    """A later run that failed at a higher rate says nothing of these bounds at that one."""
    version = put(tmp_path / "models").version
    for verdict, rate in ((Verdict.PASS, 100.0), (Verdict.FAIL, 500.0)):
        attest(version, "slo", slo(verdict, rate=rate))
    given = ("--target", "26.08-cpu", "--models", "s3://b/m", "--tool-image", "tools:1")
    result = run(tmp_path / "models", "pets", "--output", tmp_path / "out", *given)
    assert result.exit_code == 0, result.output
    (job,) = (path for path in (tmp_path / "out").rglob("*.yaml") if "kind: Job" in path.read_text())
    arguments = job.read_text().replace("'", "").split()
    assert "100" in arguments and "500" not in arguments
    assert "15" in arguments


def test_bounds_on_tokens_are_no_promise_of_the_servers_metrics() -> None:
    bounds = [Bound(kind="ttft", q=0.99, limit=200.0), Bound(kind="latency", q=0.99, limit=15.0)]
    assert [one.name for one in objectives_of("pets", bounds)] == ["p99-15ms"]


def test_names_of_objects() -> None:
    assert object_name("Digits_ResNet18.v2", None) == "digits-resnet18-v2"
    with pytest.raises(UsageError, match="cannot name"):
        object_name("9lives", None)
    with pytest.raises(UsageError, match="cannot name"):
        object_name("a" * 41, None)


def test_references_of_images() -> None:
    for good in ("a:1", "host:5000/a/b:1", "a@sha256:" + "0" * 64, "host:5000/a:1@sha256:" + "0" * 64):
        assert check_image(good, "--image") == good
    for bad in ("host:5000/a", "a@sha256:00", "", "a:"):
        with pytest.raises(UsageError):
            check_image(bad, "--image")


def test_sources() -> None:
    assert Source.parse("pvc://claim/a/b/").claim == ("claim", "a/b")
    assert Source.parse("image://host/a:1").place == "host/a:1"
    assert Source.parse("gs://bucket/x") == Source(way="store", place="gs://bucket/x")


def test_the_namespace_of_prometheus_is_read_from_its_address() -> None:
    assert prometheus_namespace("http://prometheus-operated.monitoring.svc:9090") == "monitoring"
    assert prometheus_namespace("http://p.obs.svc.cluster.local:9090") == "obs"
    assert prometheus_namespace("https://prometheus.example.com") is None


PROBE = """
import sys
from deploy.cli.main import cli
cli.main(sys.argv[1:], standalone_mode=False)
print([name for name in ("torch", "onnx", "onnxruntime", "torchvision") if name in sys.modules], file=sys.stderr)
"""


def test_the_command_imports_no_torch(tmp_path: Path) -> None:
    arguments = ["k8s", str(CPU), NAME, "--output", str(tmp_path / "out"), "--image", IMAGE]
    result = subprocess.run([sys.executable, "-c", PROBE, *arguments], capture_output=True, text=True, check=True)
    assert result.stderr.splitlines()[-1] == "[]"
