"""The user's real samples: a `.npz` of inputs, optionally with `expected/<output>` and `labels`, checked on reading.

Owns the file's format and its refusals; seeded inputs are made in `families`. Called by package, run and behaviour.
"""

import hashlib
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from deploy.errors import UsageError
from deploy.spec import Dim, Spec, TensorSpec, check_sizes, wire_input, wire_output

LABELS = "labels"
EXPECTED = "expected"
_SAVE = "save it with numpy.savez(file, **arrays), one array per input"


@dataclass(frozen=True, slots=True, kw_only=True)
class Samples:
    """Real inputs in the spec's order, one row per sample; `expected` by the output's name as the file has it."""

    path: Path
    inputs: tuple[np.ndarray, ...]
    expected: dict[str, np.ndarray] = field(default_factory=dict)
    labels: np.ndarray | None = None
    digest: str

    @property
    def rows(self) -> int:
        """The number of samples."""
        return len(self.inputs[0])

    def expected_outputs(self, spec: Spec) -> dict[int, np.ndarray]:
        """The expected arrays by output index. Raises UsageError if a name or a shape is not one of the spec's."""
        names = {name: index for index, output in enumerate(spec.outputs) for name in (output.name, wire_output(index))}
        if len(spec.outputs) == 1:
            names[""] = 0
        found = {}
        for name, array in self.expected.items():
            if name not in names:
                raise UsageError(
                    f"{self.path}: '{EXPECTED}/{name}' is the name of no output",
                    expected=f"one of {', '.join(f'{EXPECTED}/{output.name}' for output in spec.outputs)}",
                )
            index = names[name]
            _check_row_shape(self.path, f"{EXPECTED}/{name}".rstrip("/"), array, spec.outputs[index])
            found[index] = array
        return found


def load_samples(path: Path, inputs: Sequence[TensorSpec], dims: Sequence[Dim] = ()) -> Samples:
    """The samples in an `.npz`: one array per input under its spec name or `INPUT__i`, rows first.

    A model with one input may have its array under any name. `expected/<output>` (or `expected` for one output) holds
    what the training side computed, `labels` the true class of each row. A dynamic dim beside the batch has one size in
    all rows, within the bounds that `dims` has for it. Raises UsageError for anything else.
    """
    arrays = dict(_read(path))
    labels = arrays.pop(LABELS, None)
    expected = {name.removeprefix(EXPECTED).removeprefix("/"): arrays.pop(name) for name in _expected_names(arrays)}
    found = tuple(_pick(path, arrays, inputs, dims))
    rows = _common_rows(path, {tensor.name: array for tensor, array in zip(inputs, found, strict=True)})
    for name, array in expected.items():
        _check_rows(path, f"{EXPECTED}/{name}".rstrip("/"), array, rows)
        _check_numbers(path, f"{EXPECTED}/{name}".rstrip("/"), array)
    if labels is not None:
        _check_rows(path, LABELS, labels, rows)
        if labels.ndim != 1 or labels.dtype.kind not in "iu":
            raise UsageError(f"{path}: 'labels' is {labels.dtype} {list(labels.shape)}", expected="one integer per row")
    return Samples(path=path, inputs=found, expected=expected, labels=labels, digest=digest_arrays(found))


def digest_arrays(arrays: Sequence[np.ndarray]) -> str:
    """The hex SHA-256 of the arrays' dtypes, shapes and bytes, in order."""
    digest = hashlib.sha256()
    for array in arrays:
        digest.update(f"{array.dtype.str}{array.shape}".encode())
        digest.update(np.ascontiguousarray(array).data)
    return digest.hexdigest()


def _read(path: Path) -> Iterator[tuple[str, np.ndarray]]:
    if not path.is_file():
        raise UsageError(f"there is no samples file {path}", expected="an .npz file", fix=_SAVE)
    if not zipfile.is_zipfile(path):
        raise UsageError(f"{path} is not an .npz file", expected="a numpy .npz archive", fix=_SAVE)
    try:
        with np.load(path, allow_pickle=False) as archive:
            for name in archive.files:
                array = archive[name]
                if not isinstance(array, np.ndarray):
                    raise UsageError(f"{path}: entry {name!r} is not a numpy array", expected="arrays only", fix=_SAVE)
                yield name, array
    except (zipfile.BadZipFile, zlib.error, EOFError, OSError) as error:
        raise UsageError(f"{path} is damaged: {error}", expected="a whole .npz file", fix="write it again") from error
    except ValueError as error:
        raise UsageError(
            f"{path} holds an array that cannot be read without unpickling: {error}",
            expected="numeric arrays; object arrays are refused",
            fix="convert it, for instance with numpy.stack",
        ) from error


def _expected_names(arrays: dict[str, np.ndarray]) -> list[str]:
    return [name for name in arrays if name == EXPECTED or name.startswith(f"{EXPECTED}/")]


def _pick(
    path: Path, arrays: dict[str, np.ndarray], inputs: Sequence[TensorSpec], dims: Sequence[Dim]
) -> Iterator[np.ndarray]:
    if len(inputs) == 1 and len(arrays) == 1:
        arrays = {inputs[0].name: next(iter(arrays.values()))}
    known = {name for index, tensor in enumerate(inputs) for name in (tensor.name, wire_input(index))}
    unknown = sorted(set(arrays) - known)
    wanted = ", ".join(f"{tensor.name} {tensor.dtype} {list(tensor.shape)}" for tensor in inputs)
    if unknown:
        raise UsageError(f"{path}: array {unknown[0]!r} belongs to no input", expected=wanted)
    taken: dict[str, int] = {}
    for index, tensor in enumerate(inputs):
        array = arrays.get(tensor.name, arrays.get(wire_input(index)))
        if array is None:
            raise UsageError(f"{path} has no array for input {tensor.name!r}", expected=wanted, fix=_SAVE)
        if array.dtype.name != tensor.dtype:
            raise UsageError(
                f"{path}: {tensor.name!r} is {array.dtype}",
                expected=tensor.dtype,
                fix=f"save it with .astype('{tensor.dtype}'), preprocessed as in training",
            )
        _check_row_shape(path, tensor.name, array, tensor)
        row = tensor.model_copy(update={"shape": tensor.shape[1:], "mask": False})
        found_shape = f"{path}: {tensor.name!r} is {list(array.shape)}"
        check_sizes(row, array.shape[1:], dims, found=found_shape, taken=taken)
        _check_numbers(path, tensor.name, array)
        _check_range(path, tensor, array)
        yield array


def _check_row_shape(path: Path, name: str, array: np.ndarray, tensor: TensorSpec) -> None:
    row = tensor.shape[1:]
    fits = array.ndim == len(row) + 1 and all(
        isinstance(declared, str) or declared == actual for declared, actual in zip(row, array.shape[1:], strict=True)
    )
    if not fits:
        raise UsageError(f"{path}: {name!r} is {list(array.shape)}", expected=f"{['rows', *row]}, samples first")


def _check_numbers(path: Path, name: str, array: np.ndarray) -> None:
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        row = int(np.argwhere(~np.isfinite(array))[0][0])
        raise UsageError(f"{path}: {name!r} holds NaN or infinity in row {row}", expected="finite numbers")


def _check_range(path: Path, tensor: TensorSpec, array: np.ndarray) -> None:
    """Refuse what the model would fail on: an index beyond its table, a row of which nothing is left by its mask."""
    if tensor.values is not None:
        low, high = tensor.values
        outside = (array < low) | (array > high)
        if outside.any():
            place = tuple(map(int, np.argwhere(outside)[0]))
            found = f"{path}: {tensor.name!r} holds {array[place]} in row {place[0]}"
            raise UsageError(found, expected=f"values in {low}..{high}")
    if tensor.mask:
        rows = array.reshape(len(array), -1)
        wrong = ~np.isin(rows, (0, 1)).all(axis=1) | (rows == 0).all(axis=1)
        if wrong.any():
            found = f"{path}: {tensor.name!r} is no mask in row {int(np.flatnonzero(wrong)[0])}"
            raise UsageError(found, expected="1 where a row has content, 0 where it is padded, and not all 0")


def _check_rows(path: Path, name: str, array: np.ndarray, rows: int) -> None:
    if array.ndim == 0 or len(array) != rows:
        found = "no rows" if array.ndim == 0 else f"{len(array)} rows"
        raise UsageError(f"{path}: {name!r} has {found}", expected=f"{rows}, as many as the inputs")


def _common_rows(path: Path, arrays: dict[str, np.ndarray]) -> int:
    counts = {name: len(array) for name, array in arrays.items()}
    rows = next(iter(counts.values()))
    if len(set(counts.values())) > 1:
        raise UsageError(f"{path}: the inputs differ in rows: {counts}", expected="one row per sample in each")
    if rows == 0:
        raise UsageError(f"{path} holds no rows", expected="at least one sample")
    return rows
