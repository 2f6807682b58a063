"""Whose model it is: confirmed, refuted or unconfirmed by the samples, and labels that belong to it."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from deploy.checkpoint.model import Checkpoint, Preprocessing
from deploy.errors import UsageError
from deploy.spec import BATCH, Dim, Spec, TensorSpec
from deploy.validate.behaviour import check_behaviour, check_labels, read_labels
from deploy.validate.samples import Samples

WEIGHT = np.random.default_rng(0).standard_normal((6, 3)).astype(np.float32)
INPUT = TensorSpec(name="x", dtype="float32", shape=(BATCH, 6))
SPEC = Spec(
    inputs=(INPUT,),
    outputs=(TensorSpec(name="output", dtype="float32", shape=(BATCH, 3), decision_axis=1),),
    dims=(Dim(name=BATCH, minimum=1, maximum=4),),
)
ROWS = np.random.default_rng(1).standard_normal((10, 6)).astype(np.float32)
RIGHT = ROWS @ WEIGHT


def checkpoint(classes: tuple[str, ...] | None = None) -> Checkpoint:
    return Checkpoint(
        path=Path("c.pt"), digest="", format="torch", name="c", architecture="torchvision/resnet18", how="inferred",
        options={}, inputs=(INPUT,), dtype="float32", parameters=18, size=72, classes=classes, num_classes=3,
        preprocessing=Preprocessing(source="unknown"), found_under=None, weights=None, removed_prefixes=(),
        trust_pickle=False,
    )  # fmt: skip


def call(inputs: list[np.ndarray]) -> Sequence[np.ndarray]:
    assert len(inputs[0]) <= SPEC.max_batch
    return [inputs[0] @ WEIGHT]


def samples(expected: np.ndarray | None = None, labels: np.ndarray | None = None) -> Samples:
    named = {} if expected is None else {"": expected}
    return Samples(path=Path("s.npz"), inputs=(ROWS,), expected=named, labels=labels, digest="")


def test_without_samples_the_architecture_is_inferred_and_its_behaviour_unconfirmed() -> None:
    for given in (None, samples()):
        behaviour = check_behaviour(checkpoint(), given, SPEC, call)
        assert behaviour.status == "unconfirmed"
        assert behaviour.statement == "architecture: inferred, behaviour unconfirmed"


def test_expected_outputs_confirm_it() -> None:
    behaviour = check_behaviour(checkpoint(), samples(RIGHT), SPEC, call)
    assert (behaviour.status, behaviour.rows) == ("confirmed", 10)
    assert behaviour.relative_error is not None and behaviour.relative_error < 1e-6


@pytest.mark.parametrize(("relative", "status"), [(1e-3, "confirmed"), (4e-3, "refuted")])
def test_what_tf32_loses_passes_and_a_wrong_epsilon_does_not(relative: float, status: str) -> None:
    noise = np.random.default_rng(2).standard_normal(RIGHT.shape)
    noise *= relative * np.linalg.norm(RIGHT) / np.linalg.norm(noise)
    behaviour = check_behaviour(checkpoint(), samples((RIGHT + noise).astype(np.float32)), SPEC, call)
    assert behaviour.status == status


def softmax(logits: np.ndarray) -> np.ndarray:
    powers = np.exp(logits)
    shares: np.ndarray = powers / powers.sum(axis=1, keepdims=True)
    return shares


@pytest.mark.parametrize(
    ("expected", "words"),
    [
        (np.maximum(RIGHT, 0), "not the architecture that was trained: eager torchvision/resnet18"),
        (softmax(RIGHT), "save the model's own outputs, not probabilities"),
        (np.roll(RIGHT, 1, axis=1), "shifted by one class"),
        (np.full_like(RIGHT, np.nan), "not the architecture"),
    ],
    ids=["another activation", "probabilities", "shifted classes", "NaN"],
)
def test_a_mismatch_refutes_it_and_says_what_it_looks_like(expected: np.ndarray, words: str) -> None:
    behaviour = check_behaviour(checkpoint(), samples(expected), SPEC, call)
    assert behaviour.status == "refuted"
    assert words in behaviour.statement


def test_eagers_accuracy_on_the_labels_is_recorded() -> None:
    labels = RIGHT.argmax(axis=1)
    labels[:2] = (labels[:2] + 1) % 3
    behaviour = check_behaviour(checkpoint(), samples(RIGHT, labels), SPEC, call)
    assert (behaviour.labelled_rows, behaviour.accuracy) == (10, 0.8)
    alone = check_behaviour(checkpoint(), samples(None, labels), SPEC, call)
    assert (alone.status, alone.accuracy) == ("unconfirmed", 0.8)


def test_labels_outside_the_classes_are_refused() -> None:
    with pytest.raises(UsageError, match=r"class numbers in 0\.\.2"):
        check_behaviour(checkpoint(), samples(None, np.full(10, 3)), SPEC, call)


def test_a_label_between_the_rows_that_are_asked_is_looked_at_too() -> None:
    labels = np.zeros(200, dtype=np.int64)
    labels[1] = -100
    many = Samples(path=Path("s.npz"), inputs=(np.tile(ROWS, (20, 1)),), labels=labels, digest="")
    with pytest.raises(UsageError, match=r"'labels' holds -100\.\.0"):
        check_behaviour(checkpoint(), many, SPEC, call)


ANIMALS = ("cat", "dog", "owl")


def test_labels_are_the_checkpoints_own_where_none_are_given() -> None:
    assert check_labels(None, checkpoint(ANIMALS)) == ANIMALS
    assert check_labels(None, checkpoint()) is None
    assert check_labels(ANIMALS, checkpoint()) == ANIMALS
    assert check_labels(list(ANIMALS), checkpoint(ANIMALS)) == ANIMALS


@pytest.mark.parametrize(
    ("labels", "words"),
    [
        (("dog", "owl", "cat"), "shifted by one (label 0 is 'dog', the checkpoint's is 'cat')"),
        (("owl", "cat", "dog"), "shifted by one (label 0 is 'owl'"),
        (("dog", "cat", "owl"), "same names, another order (label 0 is 'dog'"),
        (("cat", "dog", "fox"), "label 2 is 'fox', the checkpoint's is 'owl'"),
        (("cat", "dog"), "there are 2 labels for 3 outputs"),
    ],
    ids=["shifted up", "shifted down", "two exchanged", "another class", "one missing"],
)
def test_labels_in_another_order_are_refused(labels: tuple[str, ...], words: str) -> None:
    with pytest.raises(UsageError) as raised:
        check_labels(labels, checkpoint(ANIMALS))
    assert words in str(raised.value)


def test_a_labels_file_is_read_line_by_line(tmp_path: Path) -> None:
    path = tmp_path / "labels.txt"
    path.write_text("cat\ndog \nowl\n")
    assert read_labels(path) == ANIMALS
    # A mark of the byte order and Windows' ends of lines; and a name with what Python's splitlines breaks at.
    path.write_bytes("\ufeffcat\r\ndog\r\nowl".encode())
    assert read_labels(path) == ANIMALS
    path.write_bytes("日本\u2028東京\nä\x85\x0cö\n".encode())
    assert read_labels(path) == ("日本\u2028東京", "ä\x85\x0cö")


@pytest.mark.parametrize(
    ("content", "words"),
    [("cat\n\nowl", "line 2"), ("", "is empty"), (None, "there is no labels file"), (b"\xff\xfe\x00", "no text file")],
    ids=["a gap", "nothing", "absent", "binary"],
)
def test_a_labels_file_with_gaps_is_refused(content: str | bytes | None, words: str, tmp_path: Path) -> None:
    path = tmp_path / "labels.txt"
    if content is not None:
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(UsageError, match=words):
        read_labels(path)
