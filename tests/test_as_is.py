"""From a TorchScript archive to what a real tritonserver serves of it: proven by `expected/`, or marked unproven."""

import shutil
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from torch import Tensor, nn

from deploy.checkpoint.model import CheckpointRequest
from deploy.checkpoint.torchscript import read_script
from deploy.cli.main import cli
from deploy.cli.types import Shape
from deploy.convert.export import program_dims
from deploy.errors import DeployError, UsageError
from deploy.evidence import ServedEvidence, Verdict
from deploy.repository.find import find_version, read_manifest
from deploy.repository.integrity import require_intact
from deploy.repository.manifest import verify_files
from deploy.repository.protobuf import parse_config
from deploy.serve.client import Client, ModelAddress
from deploy.serve.engines import Engine
from deploy.serve.serving import serving
from deploy.validate.script import ScriptModel
from deploy.verify import verify
from tests.models import IMAGE
from tests.packaging import lively, save_samples

SHAPE = ("--input-shape", ",".join(map(str, IMAGE)))
ACCEPT = "--unsafe-accept-parity-failure"


def call(*arguments: object) -> tuple[int, str]:
    """The exit code and the output of `deployctl package ...`. Raises what the command raises."""
    found = CliRunner().invoke(cli, ["package", *map(str, arguments)], standalone_mode=False)
    if isinstance(found.exception, DeployError):
        raise found.exception
    assert found.exception is None, found.exception
    return (found.return_value or 0), found.stdout


def save(module: nn.Module, path: Path, *examples: Tensor) -> Path:
    """What training leaves where it still writes TorchScript: traced with examples, else scripted."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch tells everybody that TorchScript is on its way out
        made = torch.jit.trace(module, examples) if examples else torch.jit.script(module)
        torch.jit.save(made, str(path))
    return path


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save(lively(0), tmp_path_factory.mktemp("archive") / "old.pt", torch.zeros(2, *IMAGE))


@pytest.fixture(scope="module")
def repository(archive: Path, engine: Engine) -> Path:
    """Published with the outputs that training computed."""
    save_samples(archive.parent / "samples.npz", lively(0))
    where = archive.parent / "repository"
    code, out = call(
        archive, "--as-is", *SHAPE, "--repository", where, "--samples", archive.parent / "samples.npz", "--max-batch", 4
    )
    assert code == 0, out
    assert "UNPROVEN" not in out
    return where


@pytest.mark.engine
def test_an_archive_is_proven_by_what_training_computed_and_served(repository: Path, engine: Engine) -> None:
    version = find_version(repository, "old")
    manifest = require_intact(version)
    config = parse_config(version.config.read_text())
    assert (config.backend, config.platform, config.default_model_filename) == (
        "pytorch",
        "pytorch_libtorch",
        "model.pt",
    )
    assert (manifest.format, manifest.unsafe_accepted) == ("torchscript", ())
    assert manifest.verdicts.parity.passed
    assert "12 rows of the archive against what training computed" in manifest.verdicts.parity.reason
    assert "no float64 reference" in manifest.verdicts.parity.reason
    served = ServedEvidence.read(version.evidence / "served.json")
    assert served.judgement.passed
    assert served.backend.startswith("pytorch (python-based, torch ")

    images = torch.randn(3, *IMAGE)
    with serving([version], engine=engine) as server, Client("http", server.http_address) as client:
        address = ModelAddress(name="old", version=1, outputs=("OUTPUT__0",))
        found = client.infer(address, {"INPUT__0": images.numpy()})["OUTPUT__0"]
    with torch.no_grad():
        np.testing.assert_allclose(found, lively(0)(images).numpy(), rtol=1e-4, atol=1e-5)


@pytest.mark.slow
@pytest.mark.engine
def test_an_archive_that_changed_is_not_loaded(repository: Path, engine: Engine, tmp_path: Path) -> None:
    from deploy.serve.parity import ServedQuestion, check_served
    from deploy.serve.server import ServerFailed
    from deploy.validate.store import load_baseline

    again = verify(repository, "old", engine=engine)
    assert again.exit_code == 0
    assert again.versions[0].checks["target"].passed

    copy = tmp_path / "repository"
    shutil.copytree(repository, copy)
    version = find_version(copy, "old")
    baseline = load_baseline(version.evidence, read_manifest(version).spec)
    save(lively(1), version.folder / "model.pt", torch.zeros(2, *IMAGE))
    assert "model.pt has changed" in verify(copy, "old", engine=engine).versions[0].checks["digests"].reason
    # The server's own backend compares the digest too, whoever links it into a view.
    with pytest.raises(ServerFailed, match="is not the file that was proven"):
        check_served(version, engine, ServedQuestion(baseline=baseline, format="torchscript"), staged=True)


@pytest.mark.slow
def test_what_nothing_proves_is_published_only_where_that_is_accepted_and_marked(archive: Path, tmp_path: Path) -> None:
    asked = (archive, "--as-is", *SHAPE, "--repository", tmp_path / "repository", "--no-serve-check")
    code, out = call(*asked)
    assert code == 1
    assert "published: nothing: it is unproven: give --samples with expected/ outputs" in out
    assert not list((tmp_path / "repository").glob("*/*/manifest.json"))

    code, out = call(*asked, ACCEPT)
    assert code == 0
    assert "UNPROVEN, and marked so for ever" in out
    manifest = verify_files(tmp_path / "repository" / "old" / "1")
    assert manifest.verdicts.parity.verdict is Verdict.UNDECIDED
    assert manifest.verdicts.parity.reason.startswith("unproven: a TorchScript archive has no architecture to build")
    assert manifest.unsafe_accepted == ("parity",)


@pytest.mark.slow
def test_an_archive_of_another_network_fails(archive: Path, tmp_path: Path) -> None:
    save_samples(tmp_path / "samples.npz", lively(1))
    asked = (archive, "--as-is", *SHAPE, "--repository", tmp_path / "repository", "--samples", tmp_path / "samples.npz")
    code, out = call(*asked)
    assert code == 1
    assert "from the samples' expected outputs" in " ".join(out.split())
    assert "published: nothing: it is wrong" in out
    assert not (tmp_path / "repository" / "old").exists()


class Named(nn.Module):
    """What Triton's backend cannot hand out."""

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        return {"double": x * 2}


class Summed(nn.Module):
    """One answer for the whole batch."""

    def forward(self, x: Tensor) -> Tensor:
        return x.sum(0)


class OneRow(nn.Module):
    """Traced for a batch of one, which tracing wrote into it."""

    def forward(self, x: Tensor) -> Tensor:
        return x.reshape(int(x.shape[0]), 3, 1) * 2


class Counted(nn.Module):
    """An input that is no tensor."""

    def forward(self, x: Tensor, times: int) -> Tensor:
        return x * times


class Unusual(nn.Module):
    """Its author calls the module otherwise than `self`, and a request may leave out the bias."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Linear(3, 2)

    def forward(this, x: Tensor, bias: Tensor | None = None) -> Tensor:  # noqa: N805
        y: Tensor = this.body(x)
        return y if bias is None else y + bias


def test_inputs_are_what_the_archive_takes_of_its_weights_dtype(tmp_path: Path) -> None:
    path = save(Unusual().half(), tmp_path / "old.pt")
    one, two = (
        read_script(CheckpointRequest(path=path, input_shapes=shapes)).inputs for shapes in (((3,),), ((3,), (2,)))
    )
    assert [(tensor.name, tensor.dtype) for tensor in one] == [("x", "float16")]
    assert [tensor.name for tensor in two] == ["x", "bias"]
    assert ScriptModel(path, threads=1).run([np.ones((4, 3), np.float16)])[0].shape == (4, 2)


def _weights(path: Path) -> Path:
    torch.save(lively(0).state_dict(), path)
    return path


REFUSED: dict[str, tuple[Callable[[Path], Path], tuple[str, ...], str, str]] = {
    "weights": (_weights, ("3",), "is no TorchScript archive", "leave --as-is out"),
    "named outputs": (lambda path: save(Named(), path), ("3",), "returns a dict", "script it again"),
    "no rows": (lambda path: save(Summed(), path), ("3",), "do not follow the batch", "--max-batch 1"),
    "one batch": (
        lambda path: save(OneRow(), path, torch.zeros(1, 3)),
        ("3",),
        "fails on inputs of shape [2, 3]",
        "--max-batch 1",
    ),
    "an int": (lambda path: save(Counted(), path), ("3",), "times: int", "--input-shape x=SHAPE"),
    "training": (
        lambda path: save(nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2)), path),
        ("3",),
        "when training",
        "model.eval() before torch.jit.script",
    ),
    "no shape": (lambda path: save(Summed(), path), (), "0 input shapes were given", "--input-shape x=SHAPE"),
}


@pytest.mark.parametrize(("make", "shapes", "found", "fix"), REFUSED.values(), ids=REFUSED)
def test_what_cannot_be_served_as_it_is_is_refused(
    make: Callable[[Path], Path], shapes: tuple[str, ...], found: str, fix: str, tmp_path: Path
) -> None:
    path = make(tmp_path / "old.pt")
    with pytest.raises(UsageError) as error:
        checkpoint = read_script(
            CheckpointRequest(path=path, inputs=tuple(Shape().convert(shape, None, None) for shape in shapes))
        )
        ScriptModel(path, threads=1).spec(checkpoint.inputs, program_dims(checkpoint, max_batch=4))
    assert found in error.value.found
    assert fix in error.value.fix


@pytest.mark.slow
def test_a_refusal_by_the_command_leaves_nothing(tmp_path: Path) -> None:
    path = save(Summed(), tmp_path / "old.pt")
    asked = (path, "--as-is", "--input-shape", "3", "--repository", tmp_path / "repository", "--no-serve-check", ACCEPT)
    with pytest.raises(UsageError, match="do not follow the batch"):
        call(*asked)
    assert not (tmp_path / "repository" / "old").exists()


def test_without_it_the_archive_is_refused_with_both_ways_out(archive: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="is a TorchScript archive") as error:
        call(archive, "--repository", tmp_path / "repository", "--no-serve-check")
    assert "state_dict()" in error.value.fix
    assert "--as-is" in error.value.fix


def test_options_that_have_no_use_are_refused(archive: Path, tmp_path: Path) -> None:
    for option in (("--formats", "onnx"), ("--slo-p99-ms", "5"), ("--arch", "resnet18"), ("--ensemble", "image")):
        with pytest.raises(UsageError, match=f"{option[0]} does not go with the rest"):
            call(archive, "--as-is", *SHAPE, *option, "--repository", tmp_path / "repository")


@pytest.mark.slow
def test_a_dry_run_says_what_would_be_and_writes_nothing(archive: Path, tmp_path: Path) -> None:
    code, out = call(
        archive, "--as-is", *SHAPE, "--repository", tmp_path / "repository", "--no-serve-check", "--dry-run"
    )
    assert code == 0
    assert "would_publish: old:1" in out
    assert not (tmp_path / "repository").exists()
