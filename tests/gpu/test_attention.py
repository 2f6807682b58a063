"""Attention on the GPU takes a fused kernel, and what FlexAttention's computes is proven like everything else."""

import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch

from deploy.checkpoint.load import read_checkpoint
from deploy.convert.aoti import compile_aoti
from deploy.convert.export import export_program
from deploy.errors import ExitCode
from deploy.processes import run_alone
from deploy.repository.find import read_manifest
from deploy.request import PackageRequest, Resources
from deploy.targets import LOCAL_CUDA, find_target
from tests import models
from tests.gpu.models import TOKENS, Attention, Masked, attention
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


def test_attention_under_a_mask_takes_a_fused_kernel(tmp_path: Path) -> None:
    """A mask that is the same everywhere too, as transformers make it where a call gives none."""
    checkpoint = run_alone("read", read_checkpoint, models.save(Masked, tmp_path, TOKENS)).value
    program = run_alone("export", export_program, checkpoint, max_batch=4, folder=tmp_path, device="cuda").value
    compiled = run_alone("compile", compile_aoti, program, target=find_target(LOCAL_CUDA), folder=tmp_path)
    with zipfile.ZipFile(compiled.value.path) as archive:
        source = "".join(archive.read(name).decode() for name in archive.namelist() if name.endswith("wrapper.cpp"))
    assert "scaled_dot_product" in source
    assert "_bmm_out(" not in source
