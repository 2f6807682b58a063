"""FlexAttention on the GPU takes its own kernel, and what it computes is proven like everything else."""

from pathlib import Path

import numpy as np
import pytest
import torch

from deploy.errors import ExitCode
from deploy.repository.find import read_manifest
from deploy.request import PackageRequest, Resources
from deploy.targets import LOCAL_CUDA, find_target
from tests import models
from tests.gpu.models import TOKENS, Attention, attention
from tests.packaging import run

pytestmark = [pytest.mark.gpu, pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")]


def test_flex_attention_takes_its_own_kernel(tmp_path: Path) -> None:
    checkpoint = models.save(Attention, tmp_path, TOKENS)
    module, tokens = attention(), torch.randn(8, *TOKENS)
    torch.save(module.state_dict(), checkpoint.path)
    np.savez(tmp_path / "samples.npz", allow_pickle=False, **{"tokens": tokens, "expected/output": module(tokens)})
    request = PackageRequest(
        checkpoint=checkpoint,
        repository=tmp_path / "repository",
        target=find_target(LOCAL_CUDA),
        device="cuda",
        name="attention",
        samples=tmp_path / "samples.npz",
        formats=("aoti",),
        by_name=True,
        max_batch=4,
        serve_check=False,
        resources=Resources(seconds_per_cell=0.05, threads=4, cache=False),
    )
    result = run(request)
    assert result.exit_code is ExitCode.OK, result.outcome.judgement.reason
    manifest = read_manifest(result.outcome.published[0].version)
    assert manifest.artifact["flex_attention"] == "fused kernel"
