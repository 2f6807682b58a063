"""The heads of safetensors files: which tensors a file holds, and whether it is whole, without loading any.

Owns the format's header (https://github.com/huggingface/safetensors#format). Called by `read`; imports no torch.
"""

import json
import math
from dataclasses import dataclass
from pathlib import Path

from deploy.errors import UsageError

# Bits per element.
_WIDTHS = {
    "BOOL": 8, "U8": 8, "I8": 8, "F8_E4M3": 8, "F8_E5M2": 8, "F8_E8M0": 8, "I16": 16, "U16": 16, "F16": 16, "BF16": 16,
    "I32": 32, "U32": 32, "F32": 32, "I64": 64, "U64": 64, "F64": 64, "F4": 4,
}  # fmt: skip
_MOST_HEADER = 100_000_000


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredTensor:
    """One tensor by its place in a file: dtype in the format's words, shape, and bytes."""

    dtype: str
    shape: tuple[int, ...]
    size: int

    @property
    def elements(self) -> int:
        """How many elements it has."""
        return math.prod(self.shape)


def read_header(path: Path) -> dict[str, StoredTensor]:
    """The tensors of a safetensors file by name. Raises UsageError if the file is none, or was cut short."""
    size = path.stat().st_size
    with path.open("rb") as stream:
        length = int.from_bytes(stream.read(8), "little")
        head = stream.read(length) if 2 <= length <= min(_MOST_HEADER, size - 8) else b""
    try:
        found = json.loads(head)
        tensors = {name: _tensor(entry) for name, entry in found.items() if name != "__metadata__"}
        end = max((entry["data_offsets"][1] for name, entry in found.items() if name != "__metadata__"), default=0)
    except (ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
        raise UsageError(
            f"{path} is no safetensors file", expected="a header and the tensors it names", fix="save the model again"
        ) from error
    if 8 + length + end != size:
        raise UsageError(
            f"{path} has {size:,} bytes and its header speaks of {8 + length + end:,}",
            expected="a whole file",
            fix="copy or save it again: it was cut short",
        )
    return tensors


def _tensor(entry: dict[str, list[int] | str]) -> StoredTensor:
    dtype, shape, place = str(entry["dtype"]), [int(size) for size in entry["shape"]], entry["data_offsets"]
    size = int(place[1]) - int(place[0])
    if size * 8 != math.prod(shape) * _WIDTHS[dtype]:
        raise ValueError(f"{size} bytes for {dtype} {shape}")
    return StoredTensor(dtype=dtype, shape=tuple(shape), size=size)
