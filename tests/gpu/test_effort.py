"""A faster artifact is looked for on the GPU: every tactic that runs there is made and proven, one of them served."""

from dataclasses import replace
from pathlib import Path

import pytest

from deploy.convert.model import FORMATS, Precision
from deploy.convert.ort_session import options_in
from deploy.convert.tactics import DEFAULT, alternatives
from deploy.errors import ExitCode
from deploy.evidence import ServedEvidence
from deploy.gpu import GpuStack
from deploy.package import package
from deploy.repository.find import read_manifest
from deploy.serve.engines import Engine
from tests.gpu.test_package import on_gpu
from tests.notes import Notes
from tests.packaging import make_request

pytestmark = pytest.mark.gpu


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_each_tactic_is_made_and_proven_there_and_the_choice_is_served(
    stack: GpuStack, installed: Engine | None, tmp_path: Path, precision: Precision
) -> None:
    request = on_gpu(make_request(tmp_path), stack, installed)
    notes = Notes()

    asked = replace(request, effort="max", precision=precision, resources=replace(request.resources, cache=False))
    result = package(asked, progress=notes)

    assert result.exit_code is ExitCode.OK, result.outcome.judgement.reason
    said = "\n".join(notes.said)
    print(said)
    known = {DEFAULT, "tensorrt", *(one.name for name in FORMATS for one in alternatives(name, "max", "cuda"))}
    assert result.outcome.published
    for made in result.outcome.published:
        manifest = read_manifest(made.version)
        assert manifest.artifact["tactic"] in known
        assert manifest.artifact["precision"] == precision
        if options := options_in(manifest.artifact):
            assert all(value in made.version.config.read_text() for value in options.values())
        if installed is not None:
            assert ServedEvidence.read(made.version.evidence / "served.json").judgement.passed
    # The tiny net has no attention; all else has to be built, and none may be wrong.
    lost = [line for line in notes.said if "is left out" in line and "no rewrite applies" not in line]
    assert not lost and "is dropped" not in said
    assert ("tensorrt" in said) is (not stack.tensorrt)
