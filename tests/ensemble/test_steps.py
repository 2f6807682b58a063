"""The two Python steps by themselves: images as training sees them, scores as softmax has them, refusals in words."""

import io
import struct
import zlib
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from PIL import Image

from deploy.ensemble.images import damaged_images, seeded_images
from deploy.ensemble.inputs import NamedInput
from deploy.ensemble.models.image import BadImage, prepare
from deploy.ensemble.models.scores import BadOutput, best
from deploy.ensemble.proof import EnsembleQuestion, judge_transform, make_question
from deploy.ensemble.reference import Answers, TrainedAnswers, _training_transform
from deploy.ensemble.transform import ImageTransform
from deploy.errors import UsageError
from deploy.evidence import Verdict
from tests.pictures import encoded

TRANSFORM = ImageTransform(
    mode="RGB",
    resize=64,
    crop=56,
    interpolation="bilinear",
    size=(56, 56),
    mean=(0.485, 0.456, 0.406),
    std=(0.229, 0.224, 0.225),
    value_range=(0.0, 1.0),
    dtype="float32",
    exif_orientation=False,
)
VARIANTS = {
    "bilinear": {},
    "bicubic": {"interpolation": "bicubic"},
    "nearest": {"interpolation": "nearest"},
    "both edges": {"resize": (56, 56), "crop": None},
    "stretched": {"resize": (60, 90)},
    "from -1 to 1": {"value_range": (-1.0, 1.0)},
    "half": {"dtype": "float16"},
    "pixels": {"mean": None, "std": None, "dtype": "uint8"},
    "grey": {"mode": "L", "mean": (0.5,), "std": (0.25,)},
    "turned by EXIF": {"exif_orientation": True},
    "cropped as transformers does": {"crop_rounds": "down", "resize": 59, "crop": 56},
}


def changed(**changes: Any) -> ImageTransform:
    return TRANSFORM.model_copy(update=changes)


def trained(images: tuple[NamedInput, ...], transform: ImageTransform) -> TrainedAnswers:
    """What training makes of the images, without a network behind it."""
    make = _training_transform(transform)
    inputs = tuple(make(image.data)[np.newaxis] for image in images)
    return TrainedAnswers(inputs=inputs, reference=np.zeros((len(images), 2)), eager=())


@pytest.mark.parametrize("changes", VARIANTS.values(), ids=VARIANTS)
def test_every_kind_of_image_becomes_what_torchvision_makes_of_it(changes: dict[str, Any]) -> None:
    transform = changed(**changes)
    images = seeded_images(transform)
    assert len(images) == 7
    judgement = judge_transform(images, transform, trained(images, transform))
    assert judgement.passed, judgement.reason


@pytest.mark.parametrize(
    "drifted",
    [
        {"mean": (0.5, 0.5, 0.5)},
        {"interpolation": "bicubic"},
        {"resize": 65},
        {"exif_orientation": True},
        {"resize": 59, "crop_rounds": "down"},
    ],
    ids=str,
)
def test_a_step_that_drifted_from_training_fails(drifted: dict[str, Any]) -> None:
    images = seeded_images(TRANSFORM)
    trained_as = changed(resize=drifted["resize"]) if "crop_rounds" in drifted else TRANSFORM
    judgement = judge_transform(images, changed(**drifted), trained(images, trained_as))
    assert judgement.verdict is Verdict.FAIL


def test_exif_orientation_turns_the_one_image_that_has_it() -> None:
    turned = next(image for image in seeded_images(TRANSFORM) if "turned" in image.name)
    as_is = prepare(turned.data, TRANSFORM.model_dump(mode="json"))
    upright = prepare(turned.data, changed(exif_orientation=True).model_dump(mode="json"))
    assert not np.array_equal(as_is, upright)


@dataclass(frozen=True)
class Refused:
    data: bytes
    reason: str


GOOD = encoded(np.full((80, 100, 3), 90, np.uint8), kind="JPEG")
REFUSED = {
    "empty": Refused(b"", "the image is empty"),
    "text": Refused(b"{}", "these 2 bytes are no image in the formats JPEG and PNG"),
    "half a JPEG": Refused(GOOD[: len(GOOD) // 2], "is damaged: "),
    "another format": Refused(encoded(np.zeros((80, 80), np.uint8), kind="BMP"), "are no image in the formats"),
    "a damaged PNG": Refused(
        encoded(np.random.default_rng(0).integers(0, 255, (80, 80, 3), np.uint8))[:-300], "is damaged: "
    ),
}


@pytest.mark.parametrize("refused", REFUSED.values(), ids=REFUSED)
def test_what_is_no_image_is_refused_with_the_reason(refused: Refused) -> None:
    with pytest.raises(BadImage, match=refused.reason):
        prepare(refused.data, TRANSFORM.model_dump(mode="json"))


def test_an_image_that_claims_too_many_pixels_is_refused_before_it_is_decoded() -> None:
    transform = changed(max_pixels=1000).model_dump(mode="json")
    with pytest.raises(BadImage, match="has 100 x 80 pixels; at most 1000 are taken"):
        prepare(GOOD, transform)


def test_an_image_that_claims_more_than_pillow_opens_is_too_large_and_not_damaged() -> None:
    header = b"IHDR" + struct.pack(">IIBBBBB", 50_000, 50_000, 8, 2, 0, 0, 0)
    data = (
        b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + header + struct.pack(">I", zlib.crc32(header)) + b"\0\0\0\0IDAT"
    )
    with pytest.raises(BadImage, match="the image has more than the 178956970 pixels that are taken"):
        prepare(data, TRANSFORM.model_dump(mode="json"))


def test_an_image_that_training_would_have_padded_is_refused() -> None:
    with pytest.raises(BadImage, match="too small for training's crop of 56"):
        prepare(GOOD, changed(resize=40).model_dump(mode="json"))


def test_every_damaged_image_of_the_proof_is_refused() -> None:
    damaged = damaged_images(seeded_images(TRANSFORM)[0].data)
    for image in damaged:
        with pytest.raises(BadImage):
            prepare(image.data, TRANSFORM.model_dump(mode="json"))


def test_sixteen_bit_grey_is_what_pillow_makes_of_it() -> None:
    stream = io.BytesIO()
    Image.fromarray(np.linspace(0, 65535, 6400).reshape(80, 80).astype(np.uint16)).save(stream, "PNG")
    images = (NamedInput(name="deep.png", data=stream.getvalue()),)
    assert judge_transform(images, TRANSFORM, trained(images, TRANSFORM)).passed


def test_the_best_classes_come_first_with_softmax_scores() -> None:
    logits = np.array([[1.0, 3.0, 2.0], [0.0, 0.0, 0.0], [1e4, -1e4, 0.0]], np.float32)
    classes, scores = best(logits, 2)
    assert classes.tolist() == [[1, 2], [0, 1], [0, 2]]
    np.testing.assert_allclose(scores[0], np.exp([3.0, 2.0]) / np.exp([1.0, 2.0, 3.0]).sum(), rtol=1e-6)
    np.testing.assert_allclose(scores[1:], [[1 / 3, 1 / 3], [1.0, 0.0]], rtol=1e-6)


@pytest.mark.parametrize("lost", [[np.nan, 1.0], [np.inf, 1.0], [-np.inf, -np.inf]], ids=str)
def test_an_answer_that_is_no_number_has_no_scores(lost: list[float]) -> None:
    """As where a float16 network leaves its range: refused, and not answered with the first class and NaN."""
    with pytest.raises(BadOutput, match="answer 2 of 2 holds NaN or infinity"):
        best(np.array([[1.0, 2.0], lost], np.float32), 2)
    assert best(np.array([[-np.inf, 2.0]]), 2)[1].tolist() == [[1.0, 0.0]]


@pytest.mark.parametrize(
    ("outputs", "found"),
    [([[0.1, 0.9], [0.7, 0.3]], "adds up to 1, as behind a softmax"), ([[0.9, 0.9], [0.1, 0.3]], "behind a sigmoid")],
)
def test_scores_of_scores_are_refused(outputs: list[list[float]], found: str) -> None:
    """A network that ends with a softmax of its own would be answered with another one's, all classes alike."""
    question = EnsembleQuestion(names=(), damaged=0, labels=("a", "b"), count=2, allowed=0.0, max_batch=1)
    whole = [NamedInput(name="one", data=b"1"), NamedInput(name="two", data=b"2")]
    values = np.array(outputs)
    with pytest.raises(UsageError, match=found):
        make_question(whole, [], Answers(reference=values, eager=(values,)), question)
    logits = np.log(values)
    make_question(whole, [], Answers(reference=logits, eager=(logits,)), question)
