"""The I/O contract of a model: names, dtypes, shapes, dynamic dims and where a decision is taken.

Owns the words; knows nothing of torch, ONNX or Triton beyond the wire names both formats share.
Called by every room.
"""

from collections.abc import Sequence
from itertools import count
from math import isqrt
from typing import TYPE_CHECKING, Self

from pydantic import model_validator

from deploy.errors import UsageError
from deploy.records import Record

if TYPE_CHECKING:
    import numpy as np

BATCH = "batch"

DTYPES = (
    "bool", "uint8", "int8", "int16", "int32", "int64", "float16", "float32", "float64", "bfloat16", "string",
    # Exchanged with a language model only; nothing that is exported takes or gives it.
    "uint32",
)  # fmt: skip


class Dim(Record):
    """A dynamic dimension and its inclusive bounds."""

    name: str
    minimum: int
    maximum: int

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if not 1 <= self.minimum <= self.maximum:
            raise ValueError(f"dim {self.name!r} needs 1 <= minimum <= maximum")
        return self

    @property
    def middle(self) -> int:
        """A size between the bounds, odd where there is one: near their geometric mean, which keeps it cheap."""
        return min(isqrt(self.minimum * self.maximum) | 1, self.maximum)


class TensorSpec(Record):
    """One input or output. `shape` holds an int per static dim and a dim's name per dynamic one.

    `decision_axis` is the axis of the whole shape (the batch included) along which the consumer takes an argmax;
    None where the output carries no decision. `values` is the inclusive range that an integer input takes, such as
    token ids; None means 0 and 1 only. A `mask` is 1 for a prefix, at least one long, and then 0, along its dynamic dim
    beside the batch, or its last axis where it has none.
    """

    name: str
    dtype: str
    shape: tuple[int | str, ...]
    decision_axis: int | None = None
    values: tuple[int, int] | None = None
    mask: bool = False

    @model_validator(mode="after")
    def _known(self) -> Self:
        if self.dtype not in DTYPES:
            raise ValueError(f"dtype {self.dtype!r} is none of {', '.join(DTYPES)}")
        if any(isinstance(size, int) and size < 0 for size in self.shape):
            raise ValueError(f"tensor {self.name!r} has a negative size in {self.shape}")
        self._check_values()
        return self

    def _check_values(self) -> None:
        import numpy as np  # every command imports this module, few compute

        if self.values is None:
            if self.mask and len(self.shape) < 2:
                raise ValueError(f"tensor {self.name!r} is a mask and has no axis beside the batch")
            return
        if self.mask or "int" not in self.dtype:
            raise ValueError(f"tensor {self.name!r} is {self.dtype}{' and a mask' * self.mask}: it has no range")
        low, high = self.values
        limits = np.iinfo(self.dtype)
        if not limits.min <= low <= high <= limits.max:
            raise ValueError(f"tensor {self.name!r} takes {low}..{high}, which is no range of {self.dtype}")

    @property
    def mask_axis(self) -> int:
        """The axis along which a mask is a prefix of ones."""
        dynamic = [axis for axis, size in enumerate(self.shape) if axis and isinstance(size, str)]
        return dynamic[0] if dynamic else len(self.shape) - 1

    def concrete(self, **sizes: int) -> tuple[int, ...]:
        """The shape with each dynamic dim replaced by its size in `sizes`."""
        return tuple(sizes[size] if isinstance(size, str) else size for size in self.shape)


class Spec(Record):
    """The whole contract. Inputs and outputs are in flattened order: what `INPUT__i` and `OUTPUT__i` count."""

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    dims: tuple[Dim, ...] = ()

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        known = {dim.name for dim in self.dims}
        for tensor in (*self.inputs, *self.outputs):
            unknown = {size for size in tensor.shape if isinstance(size, str)} - known
            if unknown:
                raise ValueError(f"tensor {tensor.name!r} uses undeclared dims {sorted(unknown)}")
        for side in (self.inputs, self.outputs):
            names = [tensor.name for tensor in side]
            if len(set(names)) != len(names):
                raise ValueError(f"tensor names are not unique: {names}")
        return self

    @property
    def batch(self) -> Dim | None:
        """The dynamic batch dim, or None for a static program (`--max-batch 1`)."""
        return next((dim for dim in self.dims if dim.name == BATCH), None)

    @property
    def max_batch(self) -> int:
        """The largest batch the program takes; 1 for a static program."""
        return self.batch.maximum if self.batch else 1

    @property
    def input_dims(self) -> tuple[Dim, ...]:
        """The dynamic dims beside the batch that a request chooses; the others follow from these."""
        chosen = {size for tensor in self.inputs for size in tensor.shape if size != BATCH}
        return tuple(dim for dim in self.dims if dim.name in chosen)

    def sizes_of(self, arrays: "Sequence[np.ndarray]") -> dict[str, int]:
        """The size of each dynamic dim in these inputs, which fit the spec."""
        return {
            declared: actual
            for tensor, array in zip(self.inputs, arrays, strict=True)
            for declared, actual in zip(tensor.shape, array.shape, strict=True)
            if isinstance(declared, str)
        }

    def check_inputs(self, arrays: "Sequence[np.ndarray]") -> None:
        """Raises UsageError if the arrays do not fit the inputs in number, dtype or shape."""
        if len(arrays) != len(self.inputs):
            raise UsageError(
                f"{len(arrays)} input arrays were given",
                expected=f"{len(self.inputs)}: {', '.join(t.name for t in self.inputs)}",
            )
        sizes: dict[str, int] = {}
        for tensor, array in zip(self.inputs, arrays, strict=True):
            found = f"input {tensor.name!r} is {array.dtype} {list(array.shape)}"
            if array.dtype.name != tensor.dtype or len(array.shape) != len(tensor.shape):
                raise UsageError(found, expected=f"{tensor.dtype} {list(tensor.shape)}")
            check_sizes(tensor, array.shape, self.dims, found=found, taken=sizes)


def check_sizes(
    tensor: TensorSpec, shape: Sequence[int], dims: Sequence[Dim], *, found: str, taken: dict[str, int]
) -> None:
    """Raises UsageError, with `found`, if a shape of the right rank does not fit; dims are put into `taken`.

    A dim has one size, whichever tensors it is in. One without bounds in `dims` takes any size.
    """
    bounds = {dim.name: dim for dim in dims}
    wanted = f"{tensor.dtype} {list(tensor.shape)}"
    for declared, actual in zip(tensor.shape, shape, strict=True):
        if isinstance(declared, int):
            if declared != actual:
                raise UsageError(found, expected=wanted)
            continue
        dim = bounds.get(declared)
        if dim is not None and not dim.minimum <= actual <= dim.maximum:
            raise UsageError(found, expected=f"{wanted} with {declared} in {dim.minimum}..{dim.maximum}")
        if taken.setdefault(declared, actual) != actual:
            raise UsageError(found, expected=f"{wanted} with {declared} {taken[declared]}, as in the other inputs")


def wire_input(index: int) -> str:
    """The tensor name that both formats give input `index`; what Triton's AOTInductor path wants."""
    return f"INPUT__{index}"


def wire_output(index: int) -> str:
    """The tensor name that both formats give output `index`."""
    return f"OUTPUT__{index}"


def decision_axis_of(shape: Sequence[int | str], *, floating: bool, num_classes: int | None = None) -> int | None:
    """The axis of an output along which its consumer takes an argmax, from its shape; None where it carries none.

    Scores are floating. In [batch, n] it is the second axis. With more axes it is one as long as there are classes,
    the second (a class per pixel) before the last (a class per token).
    """
    if not floating or len(shape) < 2:
        return None
    if len(shape) == 2:
        return 1 if shape[1] != 1 else None
    if num_classes is None or num_classes < 2:
        return None
    return next((axis for axis in (1, len(shape) - 1) if shape[axis] == num_classes), None)


def unique_names(names: Sequence[str]) -> tuple[str, ...]:
    """The names in order, a repeated one with `_1`, `_2`, ... appended so that none appears twice."""
    taken: set[str] = set()
    result = []
    for name in names:
        candidate = name
        for number in count(1):
            if candidate not in taken:
                break
            candidate = f"{name}_{number}"
        taken.add(candidate)
        result.append(candidate)
    return tuple(result)
