"""A samples file is read whole and right, or refused with what was found, expected, and to do."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from deploy.errors import UsageError
from deploy.spec import BATCH, Dim, Spec, TensorSpec
from deploy.validate.samples import load_samples

IMAGE = TensorSpec(name="image", dtype="float32", shape=(BATCH, 3, 4))
MASK = TensorSpec(name="mask", dtype="int64", shape=(BATCH, 2))
LOGITS = TensorSpec(name="logits", dtype="float32", shape=(BATCH, 5), decision_axis=1)


def images(rows: int = 6) -> np.ndarray:
    return np.random.default_rng(0).standard_normal((rows, 3, 4)).astype(np.float32)


def saved(folder: Path, **arrays: Any) -> Path:
    path = folder / "samples.npz"
    np.savez(path, **arrays)
    return path


@pytest.mark.parametrize("name", ["image", "INPUT__0", "whatever"])
def test_one_input_may_have_its_spec_name_its_wire_name_or_any(name: str, tmp_path: Path) -> None:
    samples = load_samples(saved(tmp_path, **{name: images()}), [IMAGE])
    assert samples.rows == 6
    np.testing.assert_array_equal(samples.inputs[0], images())


def test_several_inputs_come_in_the_order_of_the_spec(tmp_path: Path) -> None:
    mask = np.zeros((6, 2), np.int64)
    samples = load_samples(saved(tmp_path, INPUT__1=mask, image=images()), [IMAGE, MASK])
    assert [array.dtype.name for array in samples.inputs] == ["float32", "int64"]


def test_expected_outputs_and_labels_are_kept_apart_from_inputs(tmp_path: Path) -> None:
    expected = np.ones((6, 5), np.float32)
    path = saved(tmp_path, image=images(), labels=np.arange(6), **{"expected/logits": expected})
    samples = load_samples(path, [IMAGE])
    spec = Spec(inputs=(IMAGE,), outputs=(LOGITS,), dims=(Dim(name=BATCH, minimum=1, maximum=4),))
    np.testing.assert_array_equal(samples.expected_outputs(spec)[0], expected)
    assert samples.labels is not None and samples.labels.tolist() == list(range(6))


def test_a_lone_output_may_be_called_expected(tmp_path: Path) -> None:
    samples = load_samples(saved(tmp_path, image=images(), expected=np.ones((6, 5), np.float32)), [IMAGE])
    assert list(samples.expected_outputs(Spec(inputs=(IMAGE,), outputs=(LOGITS,), dims=(batch(),)))) == [0]


def batch() -> Dim:
    return Dim(name=BATCH, minimum=1, maximum=4)


def test_the_digest_tells_other_values_apart(tmp_path: Path) -> None:
    first = load_samples(saved(tmp_path, image=images()), [IMAGE]).digest
    assert first == load_samples(saved(tmp_path, other=images()), [IMAGE]).digest
    assert first != load_samples(saved(tmp_path, image=images() + 1), [IMAGE]).digest


@pytest.mark.parametrize(
    ("arrays", "words"),
    [
        ({"image": images().astype(np.float64)}, ["'image' is float64", "float32", "astype('float32')"]),
        ({"image": images().transpose(0, 2, 1)}, ["[6, 4, 3]", "['rows', 3, 4]"]),
        ({"image": images()[0]}, ["[3, 4]"]),
        ({"image": images(0)}, ["no rows"]),
        ({"image": np.full((2, 3, 4), np.nan, np.float32)}, ["NaN or infinity in row 0"]),
        ({"image": images(), "labels": np.arange(5)}, ["'labels' has 5 rows", "6"]),
        ({"image": images(), "labels": np.ones(6)}, ["'labels' is float64", "one integer per row"]),
        ({"image": images(), "expected/logits": np.ones((5, 5))}, ["'expected/logits' has 5 rows"]),
        ({"image": np.array([{}, None], object)}, ["object arrays are refused", "numpy.stack"]),
        ({"image": images(), "depth": images()}, ["'depth' belongs to no input", "image float32"]),
        ({"labels": np.arange(3)}, ["no array for input 'image'"]),
    ],
    ids=[
        "double precision",
        "another layout",
        "one sample without rows",
        "empty",
        "NaN",
        "too few labels",
        "labels that are scores",
        "too few expected",
        "pickled objects",
        "an unknown array",
        "no inputs",
    ],
)
def test_a_wrong_file_is_refused(arrays: dict[str, Any], words: list[str], tmp_path: Path) -> None:
    with pytest.raises(UsageError) as raised:
        load_samples(saved(tmp_path, **arrays), [IMAGE])
    assert [word for word in words if word not in str(raised.value)] == [], str(raised.value)


def test_inputs_of_different_length_are_refused(tmp_path: Path) -> None:
    path = saved(tmp_path, image=images(6), mask=np.zeros((5, 2), np.int64))
    with pytest.raises(UsageError, match="differ in rows"):
        load_samples(path, [IMAGE, MASK])


def test_an_expected_output_of_another_name_or_width_is_refused(tmp_path: Path) -> None:
    spec = Spec(inputs=(IMAGE,), outputs=(LOGITS,), dims=(batch(),))
    named = load_samples(saved(tmp_path, image=images(), **{"expected/scores": np.ones((6, 5))}), [IMAGE])
    with pytest.raises(UsageError, match="'expected/scores' is the name of no output"):
        named.expected_outputs(spec)
    wide = load_samples(saved(tmp_path, image=images(), **{"expected/logits": np.ones((6, 7))}), [IMAGE])
    with pytest.raises(UsageError, match="'expected/logits' is \\[6, 7\\]"):
        wide.expected_outputs(spec)


@pytest.mark.parametrize(
    ("content", "words"),
    [(b"hello", "is not an .npz file"), (b"", "is not an .npz file"), (None, "there is no samples file")],
    ids=["text", "empty", "absent"],
)
def test_what_is_no_archive_is_refused(content: bytes | None, words: str, tmp_path: Path) -> None:
    path = tmp_path / "samples.npz"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UsageError, match=words):
        load_samples(path, [IMAGE])


def test_a_damaged_archive_is_refused(tmp_path: Path) -> None:
    path = saved(tmp_path, image=images())
    data = bytearray(path.read_bytes())
    data[200] ^= 0xFF
    path.write_bytes(bytes(data))
    with pytest.raises(UsageError, match="is damaged"):
        load_samples(path, [IMAGE])


def test_a_lone_array_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "samples.npy"
    np.save(path, images())
    with pytest.raises(UsageError, match=r"is not an \.npz file"):
        load_samples(path, [IMAGE])
