"""Pools of input rows: real samples where given, and seeded families for every model.

Owns what the inputs of a check look like; how they are batched is in `cases`. Called by run.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from operator import attrgetter

import numpy as np

from deploy.spec import Spec, TensorSpec
from deploy.validate.samples import Samples

REAL = "real"
CONSTANT = "constant"
SEEDED = ("normal", "image", CONSTANT, "large")
# Only where another dim than the batch is dynamic: normal values at the least and the greatest sizes of those dims.
SMALLEST, LARGEST = "smallest", "largest"
REAL_ROWS = 8
SEEDED_ROWS = 4
_FEWEST_ROWS = 3
_EXTREME_ROWS = 2
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
    """The real rows (spread evenly over the file) where there are samples, then the seeded families.

    Dynamic dims beside the batch stand at an odd size between their bounds, and at each bound in a family of its own.
    """
    real = [_real_pool(samples, pool_rows(spec, REAL_ROWS))] if samples else []
    rows = pool_rows(spec, SEEDED_ROWS)
    seeded = [_seeded_pool(spec, family, rows=rows, seed=seed) for family in SEEDED]
    extremes = (SMALLEST, LARGEST) if spec.input_dims else ()
    return (*real, *seeded, *(_extreme_pool(spec, family, seed=seed) for family in extremes))


def pool_rows(spec: Spec, wanted: int) -> int:
    """Rows in a pool: as many as wanted, fewer where no batch holds them or float64 outputs would fill the memory."""
    wanted = wanted if spec.batch is None else min(wanted, spec.max_batch)
    return max(_FEWEST_ROWS, min(wanted, rows_in_memory(spec, SEEDED[0])))


def rows_in_memory(spec: Spec, family: str) -> int:
    """How many rows of a seeded family, with their outputs in float64, fit into the memory for a pool; at least 1."""
    shapes = (_row_shape(spec, tensor, family) for tensor in (*spec.inputs, *spec.outputs))
    return max(1, _POOL_BYTES // max(1, sum(8 * math.prod(shape) for shape in shapes)))


def _real_pool(samples: Samples, rows: int) -> Pool:
    chosen = np.unique(np.linspace(0, samples.rows - 1, min(rows, samples.rows)).round().astype(int))
    return Pool(
        family=REAL,
        inputs=tuple(array[chosen] for array in samples.inputs),
        origin=tuple(int(row) for row in chosen),
    )


def _seeded_pool(spec: Spec, family: str, *, rows: int, seed: int) -> Pool:
    generator = np.random.default_rng([seed, (*SEEDED, SMALLEST, LARGEST).index(family)])
    arrays = []
    for tensor in spec.inputs:
        shape = (rows, *_row_shape(spec, tensor, family))
        arrays.append(_values(generator, tensor, family, shape))
    return Pool(family=family, inputs=tuple(arrays))


def _extreme_pool(spec: Spec, family: str, *, seed: int) -> Pool:
    rows = min(_EXTREME_ROWS, rows_in_memory(spec, family))
    return _seeded_pool(spec, family, rows=rows, seed=seed)


def _row_shape(spec: Spec, tensor: TensorSpec, family: str) -> tuple[int, ...]:
    """A row's shape, with the sizes of other dynamic dims than the batch that the family has."""
    choose = {SMALLEST: attrgetter("minimum"), LARGEST: attrgetter("maximum")}.get(family, attrgetter("middle"))
    return tensor.concrete(**{dim.name: choose(dim) for dim in spec.dims})[1:]


def _values(generator: np.random.Generator, tensor: TensorSpec, family: str, shape: tuple[int, ...]) -> np.ndarray:
    """Values of one family, such as the input takes. Integers are 0 or 1 unless the spec has a range for them."""
    dtype = tensor.dtype
    if tensor.mask:
        return _mask(generator, tensor, family, shape)
    if dtype == "bool" or "int" in dtype:
        return _integers(generator, tensor, family, shape)
    if family == "image":
        values = _smooth(generator, shape)
    elif family == "constant":
        per_row = np.resize(np.array(_CONSTANTS), shape[0])
        values = np.broadcast_to(per_row.reshape(-1, *[1] * (len(shape) - 1)), shape)
    else:
        values = generator.standard_normal(shape) * (_LARGE if family == "large" else 1.0)
    return np.ascontiguousarray(values, dtype=dtype)


def _integers(generator: np.random.Generator, tensor: TensorSpec, family: str, shape: tuple[int, ...]) -> np.ndarray:
    """Integers of the whole range; the families of constant and large values hold its ends."""
    low, high = tensor.values or (0, 1)
    values = generator.integers(low, high, shape, endpoint=True)
    ends = {CONSTANT: low, "large": high}
    if tensor.values and family in ends:
        values.reshape(len(values), -1)[:, :1] = ends[family]
    return values.astype(tensor.dtype)


def _mask(generator: np.random.Generator, tensor: TensorSpec, family: str, shape: tuple[int, ...]) -> np.ndarray:
    """A prefix of ones along the mask's axis, the whole of it in the first row; nothing is padded in `constant`."""
    length = shape[tensor.mask_axis]
    lengths = generator.integers(1, length, shape[0], endpoint=True)
    lengths[0] = length
    if family == CONSTANT:
        lengths[:] = length
    along = np.arange(length).reshape(-1, *[1] * (len(shape) - 1 - tensor.mask_axis))
    kept = along < lengths.reshape(-1, *[1] * (len(shape) - 1))
    return np.ascontiguousarray(np.broadcast_to(kept, shape), dtype=tensor.dtype)


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
