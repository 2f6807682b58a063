"""From a file to an ensemble that a real tritonserver serves: real photographs in, labels and scores out."""

import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from deploy.checkpoint.model import PreprocessingRequest
from deploy.ensemble.proof import Asked
from deploy.errors import ExitCode, UsageError
from deploy.evidence import ServedEvidence
from deploy.package import package, plan_package
from deploy.repository.find import find_version, read_manifest
from deploy.repository.integrity import require_intact
from deploy.repository.layout import promoted_version
from deploy.repository.promotion import promote
from deploy.request import PackageRequest, PackageResult
from deploy.serve.client import Client, ModelAddress, RequestFailed
from deploy.serve.engines import Engine
from deploy.serve.server import TritonServer
from deploy.serve.serving import chosen_versions, serving
from deploy.serve.snippet import ClientExample
from deploy.verify import verify
from tests.packaging import CLASSES, make_request
from tests.pictures import write_photographs
from tests.repository.samples import PETS, put

TRAINED = PreprocessingRequest(
    mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225), resize=20, crop=16, interpolation="bilinear"
)
ADDRESS = ModelAddress(name="tiny_image", version=1, outputs=("LABELS", "SCORES"))
# Each with a letter that ASCII lacks, in which Triton's stub reads files where nobody says otherwise.
LABELS = tuple(f"{name} Ä\u2028日本 😀" for name in CLASSES)
PARTS = ["tiny", "tiny_preprocess", "tiny_postprocess", "tiny_image"]


@pytest.fixture(scope="module")
def asked(tmp_path_factory: pytest.TempPathFactory) -> PackageRequest:
    folder = tmp_path_factory.mktemp("ensemble")
    request = make_request(folder)
    images = write_photographs(folder / "images")
    (folder / "labels.txt").write_bytes("\n".join(LABELS).encode())
    # With a second one behind the first, as some cameras write them: half of the file is a whole photograph.
    (images / "china.jpg").write_bytes((images / "china.jpg").read_bytes() * 2)
    return replace(
        request,
        checkpoint=replace(request.checkpoint, preprocessing=TRAINED),
        ensemble="image",
        images=images,
    )


@pytest.fixture(scope="module")
def server(repository: Path, engine: Engine) -> Iterator[TritonServer]:
    with serving(chosen_versions(repository, ["tiny_image"]), engine=engine) as running:
        yield running


@pytest.mark.engine
def test_photographs_are_answered_as_training_would(packaged: PackageResult, repository: Path) -> None:
    names = [published.version.name for published in packaged.outcome.published]
    assert names == PARTS
    version = find_version(repository, "tiny_image")
    manifest = require_intact(version)
    assert [str(step) for step in manifest.steps] == ["tiny_preprocess:1", "tiny:1", "tiny_postprocess:1"]
    assert manifest.verdicts.parity.passed and "9 images against torchvision's own" in manifest.verdicts.parity.reason
    served = ServedEvidence.read(version.evidence / "served.json")
    assert served.judgement.passed
    assert {check.name for check in served.checks} == {
        "one image at a time",
        "damaged images, each before a whole one",
        "batches, and one with a damaged image",
    }
    assert json.loads((version.repository / "tiny_preprocess/1/transform.json").read_text())["crop"] == 16


@pytest.mark.engine
def test_a_bad_image_fails_its_own_request_and_the_server_lives(server: TritonServer, asked: PackageRequest) -> None:
    assert asked.images is not None
    photograph = (asked.images / "china.jpg").read_bytes()
    with Client("grpc", server.grpc_address) as client:

        def ask(*images: bytes) -> dict[str, np.ndarray]:
            return client.infer(ADDRESS, {"IMAGE": np.array([[image] for image in images], object)})

        answer = ask(photograph, photograph)
        assert {label.decode() for label in answer["LABELS"][0]} == set(LABELS)
        np.testing.assert_allclose(answer["SCORES"].sum(axis=1), 1.0, rtol=1e-5)
        with pytest.raises(RequestFailed, match="the image is empty"):
            ask(b"")
        with pytest.raises(RequestFailed, match=r"image 2 of 3: the image of .* is damaged"):
            ask(photograph, photograph[:2000], photograph)
        assert ask(photograph)["LABELS"].tolist() == answer["LABELS"][:1].tolist()


@pytest.mark.engine
def test_the_client_that_serve_prints_works(
    server: TritonServer, repository: Path, asked: PackageRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert asked.images is not None
    shutil.copy(asked.images / "china.jpg", tmp_path / "image.jpg")
    monkeypatch.chdir(tmp_path)
    example = ClientExample.of(find_version(repository, "tiny_image")).python(server.grpc_address)
    ran = subprocess.run([sys.executable, "-c", example], capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
    assert all(name in ran.stdout for name in CLASSES)
    shell = ClientExample.of(find_version(repository, "tiny_image")).curl(server.http_address)
    answer = json.loads(subprocess.run(["bash", "-c", shell], capture_output=True, text=True, check=True).stdout)
    (labels,) = (output["data"] for output in answer["outputs"] if output["name"] == "LABELS")
    assert set(labels) == set(LABELS)


@pytest.mark.slow
@pytest.mark.engine
def test_verify_proves_all_four_again_and_sees_a_step_that_changed(
    repository: Path, engine: Engine, tmp_path: Path
) -> None:
    again = verify(repository, None, engine=engine)
    assert again.exit_code is ExitCode.OK
    checks = {one.version.name: list(one.checks) for one in again.versions}
    assert checks["tiny_image"] == ["digests", "lint", "target", "served"]
    assert checks["tiny_preprocess"] == ["digests", "lint", "target"]

    copy = tmp_path / "repository"
    shutil.copytree(repository, copy)
    changed = copy / "tiny_preprocess" / "1" / "transform.json"
    changed.write_text(changed.read_text().replace("0.485", "0.5"))
    broken = verify(copy, "tiny_image", engine=engine)
    assert broken.exit_code is ExitCode.NO
    assert "tiny_preprocess:1: transform.json has changed" in broken.versions[0].checks["digests"].reason


@pytest.mark.slow
@pytest.mark.engine
def test_answers_of_another_transform_are_no(repository: Path, engine: Engine, tmp_path: Path) -> None:
    """The served check fires: the evidence's own scores against a step that normalises otherwise."""
    from deploy.ensemble.served import check_ensemble

    copy = tmp_path / "repository"
    shutil.copytree(repository, copy)
    changed = copy / "tiny_preprocess" / "1" / "transform.json"
    changed.write_text(changed.read_text().replace("0.485", "0.6"))
    version = find_version(copy, "tiny_image")
    steps = [find_version(copy, f"{name}:1") for name in PARTS[:3]]
    served = check_ensemble([*steps, version], engine, Asked.load(version.evidence), staged=True)
    assert not served.judgement.passed
    assert "off by" in served.judgement.reason


@pytest.mark.slow
def test_a_later_ensemble_waits_and_brings_its_steps_along(asked: PackageRequest, tmp_path: Path) -> None:
    again = replace(asked, repository=tmp_path / "repository", serve_check=False)
    for _ in range(2):
        package(again)
    assert [promoted_version(again.repository / name) for name in PARTS] == [1, 1, 1, 1]
    promote(again.repository, "tiny_image", 2)
    assert [promoted_version(again.repository / name) for name in PARTS] == [2, 2, 2, 2]
    assert [str(step) for step in read_manifest(find_version(again.repository, "tiny_image")).steps] == [
        "tiny_preprocess:2",
        "tiny:2",
        "tiny_postprocess:2",
    ]
    together = chosen_versions(again.repository, ["tiny_image:1", "tiny:2"])
    assert {str(version) for version in together} >= {"tiny:1", "tiny:2", "tiny_image:1"}


def test_a_first_ensemble_round_a_network_that_waits_is_refused(asked: PackageRequest, tmp_path: Path) -> None:
    again = replace(asked, repository=tmp_path / "repository", serve_check=False)
    put(again.repository, replace(PETS, name="tiny"))
    with pytest.raises(UsageError, match="tiny has versions, and tiny_image has none") as refused:
        plan_package(again)
    assert "--promote" in refused.value.fix


@pytest.mark.parametrize(
    ("known", "found", "fix"),
    [
        (replace(TRAINED, mean=None, std=None), "needs mean and std of the preprocessing", "--mean"),
        (replace(TRAINED, resize=None), "needs resize of the preprocessing", "--resize 256"),
        (replace(TRAINED, crop=None), "needs crop of the preprocessing", "--crop 224"),
        (replace(TRAINED, interpolation=None), "interpolation is not known", "--interpolation"),
        (replace(TRAINED, crop=18), "gives (18, 18), and the network takes (16, 16)", "--crop"),
        (replace(TRAINED, fuse=True, image_size=(20, 30)), "--image-size were both given", "--image-size"),
    ],
)
def test_a_transform_that_is_not_known_is_refused_before_any_work(
    asked: PackageRequest, known: PreprocessingRequest, found: str, fix: str
) -> None:
    request = replace(asked, checkpoint=replace(asked.checkpoint, preprocessing=known), samples=None, serve_check=False)
    with pytest.raises(UsageError) as error:
        plan_package(request)
    assert found in error.value.found
    assert fix in error.value.fix


def test_an_image_that_cannot_be_used_is_named_before_any_work(asked: PackageRequest, tmp_path: Path) -> None:
    (tmp_path / "broken.jpg").write_bytes(b"no image")
    with pytest.raises(UsageError, match=r"--images: broken.jpg: these 8 bytes are no image"):
        plan_package(replace(asked, images=tmp_path, serve_check=False))
    with pytest.raises(UsageError, match="is no folder"):
        plan_package(replace(asked, images=asked.repository.parent / "repository.none", serve_check=False))


def test_images_without_an_ensemble_are_refused(asked: PackageRequest) -> None:
    with pytest.raises(UsageError, match="--images was given without --ensemble image"):
        plan_package(replace(asked, ensemble=None, serve_check=False))
