"""FlexAttention from a checkpoint file to served answers, for each kind of attention that people write."""

from pathlib import Path

import numpy as np
import pytest
import torch

from deploy.convert.model import Format
from deploy.errors import ExitCode
from deploy.repository.find import read_manifest
from deploy.request import PackageRequest, Resources
from deploy.serve.engines import Engine
from deploy.targets import find_target
from tests import models
from tests.attention import TOKENS, Causal, LearnedBias, SlidingWindow, Transformer, lively
from tests.packaging import run

pytestmark = pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")


def make_request(folder: Path, factory: type[Transformer], format_: Format) -> PackageRequest:
    """The model's weights and samples with what it computed, to be packaged in one format."""
    checkpoint = models.save(factory, folder, TOKENS)
    module, tokens = lively(factory), torch.randn(8, *TOKENS)
    torch.save(module.state_dict(), checkpoint.path)
    np.savez(folder / "samples.npz", allow_pickle=False, **{"tokens": tokens, "expected/output": module(tokens)})
    return PackageRequest(
        checkpoint=checkpoint,
        repository=folder / "repository",
        target=find_target("local-cpu"),
        name="attention",
        samples=folder / "samples.npz",
        formats=(format_,),
        by_name=True,
        max_batch=4,
        resources=Resources(seconds_per_cell=0.05, threads=1),
    )


def check_served(folder: Path, factory: type[Transformer], format_: Format, *, way: str) -> None:
    result = run(make_request(folder, factory, format_))
    assert result.exit_code is ExitCode.OK
    manifest = read_manifest(result.outcome.published[0].version)
    assert manifest.verdicts.served is not None
    assert manifest.verdicts.served.passed
    assert manifest.verdicts.parity.passed
    assert manifest.artifact["flex_attention"] == way


@pytest.mark.engine
@pytest.mark.parametrize(
    "factory", [LearnedBias, *(pytest.param(kind, marks=pytest.mark.slow) for kind in (Causal, SlidingWindow))]
)
def test_onnx_with_plain_attention_is_served(factory: type[Transformer], engine: Engine, tmp_path: Path) -> None:
    check_served(tmp_path, factory, "onnx", way="decomposed to plain attention")


@pytest.mark.slow
@pytest.mark.engine
@pytest.mark.parametrize("factory", [Causal, SlidingWindow, LearnedBias])
def test_aoti_with_the_fused_kernel_is_served(factory: type[Transformer], engine: Engine, tmp_path: Path) -> None:
    check_served(tmp_path, factory, "aoti", way="fused kernel")
