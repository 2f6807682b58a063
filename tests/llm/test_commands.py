"""The commands on a language model: packaged from the command line, and refused where there is nothing compiled."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from deploy.cli.main import cli
from deploy.errors import DeployError, UsageError
from deploy.repository.find import read_manifest
from deploy.repository.integrity import require_compiled
from deploy.repository.layout import Version
from deploy.targets import find_target
from deploy.verify import verify
from tests.llm.checkpoints import Llama

TINY = Llama()
GPU = ("--target", "26.08-cuda-sm90", "--gpu", "H100-80GB")


@pytest.fixture(autouse=True)
def without_vllm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DEPLOYCTL_CACHE", str(tmp_path / "cache"))


def call(*arguments: str | Path) -> tuple[int, str]:
    """Exit code and output; what was refused is raised."""
    found = CliRunner().invoke(cli, [*map(str, arguments)], standalone_mode=False)
    if isinstance(found.exception, DeployError):
        raise found.exception
    return (found.return_value or 0), found.stdout


@pytest.fixture
def version(tmp_path: Path) -> Version:
    path, repository = TINY.write(tmp_path / "llama"), tmp_path / "repository"
    call("package", path, "--backend", "vllm", *GPU, "--repository", repository, "--no-serve-check", "--name", "chat")
    return Version(repository=repository, name="chat", number=1)


def test_packaging_says_what_was_not_proven(tmp_path: Path) -> None:
    path = TINY.write(tmp_path / "llama")
    asked = ("package", path, "--backend", "vllm", *GPU, "--repository", tmp_path / "r", "--no-serve-check", "--json")
    code, output = call(*asked)
    found = json.loads(output)
    assert (code, found["exit_code"]) == (0, 0)
    assert found["verdicts"]["tokens"]["verdict"] == "undecided"
    assert "not done" in found["verdicts"]["tokens"]["reason"]
    assert (found["tokens"], found["served"]) == (None, None)
    assert found["engine_arguments"]["model"] == "/models/llama/1/weights"


def test_a_dry_run_shows_the_arithmetic(tmp_path: Path) -> None:
    path = TINY.write(tmp_path / "llama")
    _, output = call("package", path, "--backend", "vllm", *GPU, "--repository", tmp_path / "r", "--dry-run")
    assert "H100-80GB, on one: 90% of 80.00 GB = 72.00 GB" in output
    assert "sequences of full length at once; 8 are wanted" in output
    assert not (tmp_path / "r").exists()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--context", "64"), "--context does not go with the rest"),
        (("--backend", "vllm", "--formats", "onnx"), "--formats does not go with the rest"),
        (("--backend", "vllm", "--arch", "resnet18"), "--arch does not go with the rest"),
        (("--backend", "vllm", "--adapter", "nothing"), "names no adapter"),
    ],
)
def test_options_of_the_other_way_are_refused(tmp_path: Path, arguments: tuple[str, ...], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        call("package", TINY.write(tmp_path / "llama"), *arguments)


def test_what_needs_a_compiled_artifact_refuses_it(version: Version) -> None:
    for command in (("bench", version.repository, "chat"), ("diff", version.repository, "chat", "1", "1")):
        with pytest.raises(UsageError, match="chat:1 is a language model that vLLM loads as it is"):
            call(*command)
    with pytest.raises(UsageError, match="cannot be measured"):
        require_compiled(version, read_manifest(version), doing="be measured")


def test_verify_knows_the_targets_vllm_and_never_passes_what_was_not_proven(version: Version) -> None:
    (found,) = verify(version.repository, None, engine=None).versions
    assert {name: one.passed for name, one in found.checks.items()} == {"digests": True, "lint": True, "target": True}
    (found,) = verify(version.repository, None, target=find_target("26.08-cuda-sm80"), engine=None).versions
    assert "its memory was computed for 26.08-cuda-sm90" in found.checks["target"].reason
    weights = version.folder / "weights" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"x")
    (found,) = verify(version.repository, None, engine=None).versions
    assert "weights/model.safetensors has changed" in found.checks["digests"].reason


def test_a_served_check_is_undecided_where_packaging_had_none(version: Version) -> None:
    from deploy.evidence import Verdict
    from deploy.llm.again import serve_again
    from deploy.serve.engines import Engine

    engine = Engine(kind="local", release="24.10", server_version="2.51.0", executable=Path("tritonserver"))
    found = serve_again(version, engine)
    assert getattr(found, "verdict", None) is Verdict.UNDECIDED


def test_no_torch_is_imported_on_the_way(tmp_path: Path) -> None:
    path = TINY.write(tmp_path / "llama")
    program = (
        "import sys; from deploy.cli.main import cli\n"
        "try: cli.main(sys.argv[1:], prog_name='deployctl')\n"
        "except SystemExit: pass\n"
        "print([name for name in ('torch', 'transformers', 'safetensors', 'onnx') if name in sys.modules])"
    )
    asked = ["package", str(path), "--backend", "vllm", *GPU, "--repository", str(tmp_path / "r"), "--no-serve-check"]
    ended = subprocess.run([sys.executable, "-c", program, *asked], capture_output=True, text=True, check=False)
    assert ended.stdout.splitlines()[-1] == "[]", ended.stderr
