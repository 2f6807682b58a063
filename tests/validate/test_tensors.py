"""Slips that happen to weights are called by their names."""

from collections.abc import Callable

import numpy as np
import pytest

from deploy.validate.tensors import difference
from tests.validate.mutants import to_bfloat16, with_nan

WEIGHT = np.random.default_rng(0).standard_normal((8, 8)).astype(np.float32)
KERNEL = np.random.default_rng(1).standard_normal((6, 3, 5, 5)).astype(np.float32)


@pytest.mark.parametrize(
    ("wanted", "change", "words"),
    [
        (WEIGHT, with_nan, "holds 1 NaN, the first at [3, 5]"),
        (WEIGHT, np.zeros_like, "is all zeros"),
        (WEIGHT, to_bfloat16, "is rounded to bfloat16"),
        (WEIGHT, lambda array: array.astype(np.float16).astype(np.float32), "is rounded to float16"),
        (WEIGHT, np.transpose, "is transposed"),
        (KERNEL, lambda array: array.swapaxes(2, 3), "is transposed"),
        (KERNEL, lambda array: array[:, ::-1], "has its entries along axis 1 in another order"),
        (WEIGHT, lambda array: np.roll(array, 1, axis=0), "has its entries along axis 0 in another order"),
        (WEIGHT, lambda array: array * np.float32(1.001), "is scaled by 1.001"),
        (WEIGHT, lambda array: array + np.float32(0.01), "differs by 0.01"),
        (KERNEL, lambda array: array[:, :2], "has the shape [6, 2, 5, 5] instead of [6, 3, 5, 5]"),
    ],
)
def test_a_slip_is_named(wanted: np.ndarray, change: Callable[[np.ndarray], np.ndarray], words: str) -> None:
    found = difference(wanted, change(wanted.copy()))
    assert found is not None
    assert words in found.words


def test_equal_arrays_and_roundings_are_no_difference() -> None:
    assert difference(WEIGHT, WEIGHT.copy()) is None
    assert difference(WEIGHT, np.nextafter(WEIGHT, np.float32(9))) is None
    assert difference(KERNEL.reshape(6, -1), KERNEL.reshape(6, -1).T) is None
