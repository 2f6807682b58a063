"""A checkpoint with its preprocessing inside: from the file to a served version that takes real images as they are."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from deploy.checkpoint.model import PreprocessingRequest
from deploy.errors import ExitCode, UsageError
from deploy.package import package, plan_package
from deploy.repository.find import read_manifest
from deploy.request import PackageRequest
from deploy.serve.engines import Engine
from tests.packaging import make_request
from tests.pictures import sample_pixels

FUSE = PreprocessingRequest(mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225), fuse=True)


@pytest.fixture(scope="module")
def asked(tmp_path_factory: pytest.TempPathFactory) -> PackageRequest:
    """The tiny net with fused preprocessing, and patches of photographs with what training computed for them."""
    folder = tmp_path_factory.mktemp("fused")
    plain = make_request(folder)
    request = replace(plain, labels=None, checkpoint=replace(plain.checkpoint, preprocessing=FUSE))
    images = sample_pixels(12, size=16)
    mean, std = (np.array(values, np.float32).reshape(-1, 1, 1) for values in (FUSE.mean, FUSE.std))
    trained = torch.from_numpy((images.astype(np.float32) / 255 - mean) / std)
    from tests.packaging import lively

    with torch.no_grad():
        expected = lively(0)(trained).numpy()
    assert request.samples is not None
    np.savez(request.samples, allow_pickle=False, **{"image": images, "expected/output": expected})
    return request


@pytest.mark.engine
def test_pixels_go_in_and_the_answers_are_those_of_training(asked: PackageRequest, engine: Engine) -> None:
    result = package(asked)
    assert result.exit_code is ExitCode.OK, result.outcome.judgement.reason
    (published,) = result.outcome.published
    manifest = read_manifest(published.version)
    (image,) = manifest.spec.inputs
    assert (image.dtype, image.values) == ("uint8", (0, 255))
    assert manifest.preprocessing.fused == ("scale", "normalize")
    assert result.behaviour.status == "confirmed"
    assert "TYPE_UINT8" in published.version.config.read_text()
    (served,) = result.outcome.served
    assert served.judgement.passed


def test_samples_that_are_normalised_already_are_refused(asked: PackageRequest) -> None:
    normalised = replace(asked, samples=asked.checkpoint.path.parent / "float.npz")
    assert normalised.samples is not None
    np.savez(normalised.samples, allow_pickle=False, image=np.zeros((4, 3, 16, 16), np.float32))
    with pytest.raises(UsageError, match="float32") as error:
        plan_package(replace(normalised, serve_check=False))
    assert "uint8" in error.value.expected
