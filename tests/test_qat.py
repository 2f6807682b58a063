"""Quantization-aware fine-tunes of torchao, from the converted file to what a real server answers."""

from pathlib import Path

import pytest
import torch

from deploy.checkpoint.load import build_module, read_checkpoint
from deploy.checkpoint.model import CheckpointRequest, InputRequest
from deploy.convert.model import Format
from deploy.errors import ExitCode, UsageError
from deploy.evidence import Verdict
from deploy.package import package
from deploy.repository.find import read_manifest
from deploy.request import PackageRequest, Resources
from deploy.serve.engines import Engine
from deploy.targets import find_target
from tests.qat import PIXELS, finetune


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("quantized")
    assert finetune(folder) > 0.9
    return folder


def asked(folder: Path) -> CheckpointRequest:
    return CheckpointRequest(
        path=folder / "quantized.pt",
        factory="tests.qat:Perceptron",
        inputs=(InputRequest(name="pixels", shape=(PIXELS,)),),
    )


def test_its_weights_are_the_sixteen_values_of_int4_in_each_group(trained: Path) -> None:
    checkpoint = read_checkpoint(asked(trained))
    assert "weights that torchao has quantized (2 as int4) are computed with as the floats" in checkpoint.notes[0]
    assert checkpoint.found_under == "state_dict"
    weight = build_module(checkpoint).state_dict()["hidden.weight"]
    assert (type(weight), weight.dtype) == (torch.Tensor, torch.float32)
    groups = weight.reshape(-1, 32)
    assert max(len(group.unique()) for group in groups) <= 16
    assert len(weight.unique()) > 16


@pytest.mark.slow
@pytest.mark.engine
@pytest.mark.parametrize("format_", ["onnx", "aoti"])
def test_it_is_served_and_computes_what_the_converted_network_did(
    trained: Path, format_: Format, engine: Engine, tmp_path: Path
) -> None:
    request = PackageRequest(
        checkpoint=asked(trained),
        repository=tmp_path / "repository",
        target=find_target("local-cpu"),
        samples=trained / "samples.npz",
        formats=(format_,),
        by_name=True,
        max_batch=4,
        resources=Resources(seconds_per_cell=0.05, threads=1),
    )
    result = package(request)
    assert result.exit_code is ExitCode.OK, result.outcome.judgement.reason
    assert (
        result.behaviour.judgement.verdict is Verdict.PASS
    )  # its outputs are those of torchao's own converted network
    assert result.behaviour.relative_error is not None
    assert result.behaviour.relative_error < 1e-5
    manifest = read_manifest(result.outcome.published[0].version)
    assert manifest.verdicts.served is not None
    assert manifest.verdicts.served.passed
    assert "torchao has quantized" in manifest.checkpoint.notes[0]


def test_one_that_quantizes_activations_too_is_refused_with_the_way_out(tmp_path: Path) -> None:
    finetune(tmp_path, activations=True)
    with pytest.raises(UsageError, match="whose network quantizes its activations too") as error:
        read_checkpoint(asked(tmp_path))
    assert "IntxWeightOnlyConfig" in error.value.fix
