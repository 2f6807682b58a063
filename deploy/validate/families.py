"""Pools of input rows: real samples where given, and seeded families for every model.

Owns what the inputs of a check look like; how they are batched is in `cases`. Called by run.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from deploy.spec import Spec, TensorSpec
from deploy.validate.samples import Samples

REAL = "real"
CONSTANT = "constant"
SEEDED = ("normal", "image", CONSTANT, "large")
REAL_ROWS = 8
SEEDED_ROWS = 4
_FEWEST_ROWS = 3
_POOL_BYTES = 32 * 1024 * 1024
# Thirty standard deviations: past what preprocessing lets through, short of overflow in any normalised network.
_LARGE = 30.0
# Zero first: there eager is often exact, so that only the floor of the budget stands.
_CONSTANTS = (0.0, 1.0, -1.0, 0.5)
# ImageNet's normalised pixels lie in -2.2..2.7; other recipes are nearer to -1..1.
_IMAGE_LOW, _IMAGE_HIGH = -2.0, 2.5
_GRID = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class Pool:
    """Rows of one family, one array per input in the spec's order. `origin[i]` is row i's number in the user's file."""

    family: str
    inputs: tuple[np.ndarray, ...]
    origin: tuple[int, ...] = ()

    @property
    def rows(self) -> int:
        """The number of rows."""
        return len(self.inputs[0])

    def take(self, rows: Sequence[int]) -> list[np.ndarray]:
        """A batch made of these rows, one array per input."""
        return [np.ascontiguousarray(array[list(rows)]) for array in self.inputs]


def make_pools(spec: Spec, samples: Samples | None, seed: int) -> tuple[Pool, ...]:
    """The real rows (spread evenly over the file) where there are samples, then the seeded families."""
    real = [_real_pool(samples, pool_rows(spec, REAL_ROWS))] if samples else []
    rows = pool_rows(spec, SEEDED_ROWS)
    return (*real, *(_seeded_pool(spec, family, rows=rows, seed=seed) for family in SEEDED))


def pool_rows(spec: Spec, wanted: int) -> int:
    """Rows in a pool: as many as wanted, fewer where no batch holds them or float64 outputs would fill the memory."""
    row_bytes = sum(8 * math.prod(_row_shape(spec, tensor)) for tensor in (*spec.inputs, *spec.outputs))
    wanted = wanted if spec.batch is None else min(wanted, spec.max_batch)
    return max(_FEWEST_ROWS, min(wanted, _POOL_BYTES // max(row_bytes, 1)))


def _real_pool(samples: Samples, rows: int) -> Pool:
    chosen = np.unique(np.linspace(0, samples.rows - 1, min(rows, samples.rows)).round().astype(int))
    return Pool(
        family=REAL,
        inputs=tuple(array[chosen] for array in samples.inputs),
        origin=tuple(int(row) for row in chosen),
    )


def _seeded_pool(spec: Spec, family: str, *, rows: int, seed: int) -> Pool:
    generator = np.random.default_rng([seed, SEEDED.index(family)])
    arrays = []
    for tensor in spec.inputs:
        shape = (rows, *_row_shape(spec, tensor))
        arrays.append(_values(generator, tensor.dtype, family, shape))
    return Pool(family=family, inputs=tuple(arrays))


def _row_shape(spec: Spec, tensor: TensorSpec) -> tuple[int, ...]:
    """A row's shape; other dynamic dims than the batch stand at the size 16, or at the bound nearest to it."""
    sizes = {dim.name: min(max(16, dim.minimum), dim.maximum) for dim in spec.dims}
    return tensor.concrete(**sizes)[1:]


def _values(generator: np.random.Generator, dtype: str, family: str, shape: tuple[int, ...]) -> np.ndarray:
    """Values of one family. Integers are 0 or 1: within any vocabulary, mask or index range of more than one entry."""
    if dtype == "bool" or "int" in dtype:
        return generator.integers(0, 2, shape).astype(dtype)
    if family == "image":
        values = _smooth(generator, shape)
    elif family == "constant":
        per_row = np.resize(np.array(_CONSTANTS), shape[0])
        values = np.broadcast_to(per_row.reshape(-1, *[1] * (len(shape) - 1)), shape)
    else:
        values = generator.standard_normal(shape) * (_LARGE if family == "large" else 1.0)
    return np.ascontiguousarray(values, dtype=dtype)


def _smooth(generator: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    """Low-frequency fields over the last two axes with a little noise, each row spanning the normalised pixel range."""
    smoothed = min(2, len(shape) - 1)
    kept, axes = shape[: len(shape) - smoothed], shape[len(shape) - smoothed :]
    field = generator.standard_normal((*kept, *[_GRID] * smoothed))
    for offset, size in enumerate(axes):
        field = _stretch(field, len(kept) + offset, size)
    field = field + 0.05 * generator.standard_normal(shape)
    flat = field.reshape(shape[0], -1)
    low, high = flat.min(axis=1, keepdims=True), flat.max(axis=1, keepdims=True)
    unit = (flat - low) / np.where(high > low, high - low, 1.0)
    scaled: np.ndarray = _IMAGE_LOW + unit * (_IMAGE_HIGH - _IMAGE_LOW)
    return scaled.reshape(shape)


def _stretch(field: np.ndarray, axis: int, size: int) -> np.ndarray:
    """Linear interpolation along one axis to `size` points."""
    at = np.linspace(0, field.shape[axis] - 1, size)
    left = np.minimum(at.astype(int), field.shape[axis] - 2)
    weight = (at - left).reshape(-1, *[1] * (field.ndim - axis - 1))
    result: np.ndarray = field.take(left, axis) * (1 - weight) + field.take(left + 1, axis) * weight
    return result
