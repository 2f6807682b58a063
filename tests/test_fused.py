"""A checkpoint with its preprocessing inside: from the file to a served version that takes real images as they are."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from deploy.checkpoint.load import read_checkpoint
from deploy.checkpoint.model import PreprocessingRequest
from deploy.convert.export import export_program
from deploy.errors import ExitCode, UsageError
from deploy.evidence import Verdict
from deploy.package import package, plan_package
from deploy.repository.find import read_manifest
from deploy.request import PackageRequest
from deploy.serve.engines import Engine
from tests.packaging import lively, make_request
from tests.pictures import sample_pixels
from tests.validate.rig import convert, make_rig

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


@pytest.mark.slow
def test_an_artifact_that_normalises_otherwise_fails_and_its_constant_is_named(
    asked: PackageRequest, tmp_path: Path
) -> None:
    right = read_checkpoint(asked.checkpoint)
    drifted = right.preprocessing.model_copy(update={"mean": (0.485, 0.456, 0.416)})
    wrong = right.model_copy(update={"preprocessing": drifted})
    (tmp_path / "right").mkdir()
    rig = make_rig(right, tmp_path / "right")
    (tmp_path / "wrong").mkdir()
    program = export_program(wrong, max_batch=4, folder=tmp_path / "wrong")
    evidence = rig.judge(convert(program, "onnx", tmp_path / "wrong" / "onnx"))
    assert evidence.judgement.verdict is Verdict.FAIL
    assert evidence.place is not None
    assert evidence.place.name == "preprocess_mean"
    assert rig.judge(convert(rig.program, "onnx", tmp_path / "right" / "onnx")).judgement.passed


def test_a_mean_that_training_did_not_use_is_refuted_by_what_it_computed(asked: PackageRequest, tmp_path: Path) -> None:
    wrong = replace(asked.checkpoint, preprocessing=replace(FUSE, mean=(0.5, 0.5, 0.5)))
    result = package(replace(asked, checkpoint=wrong, repository=tmp_path / "models", serve_check=False))
    assert result.exit_code is ExitCode.NO
    assert result.behaviour.status == "refuted"
    assert not result.outcome.published


@pytest.mark.slow
@pytest.mark.engine
def test_whole_photographs_are_resized_and_cropped_inside_both_formats(
    asked: PackageRequest, engine: Engine, tmp_path: Path
) -> None:
    resizing = replace(FUSE, resize=20, crop=16, interpolation="bicubic", image_size=(48, 64))
    request = replace(
        asked,
        checkpoint=replace(asked.checkpoint, preprocessing=resizing),
        samples=None,
        repository=tmp_path / "models",
        formats=("aoti", "onnx"),
    )
    result = package(request)
    assert result.exit_code is ExitCode.OK, result.outcome.judgement.reason
    assert all(evidence.judgement.passed for evidence in result.parity) and len(result.parity) == 2
    assert result.outcome.served[0].judgement.passed
