"""One architecture of timm from outside: enough to tell whether a set of tensors can belong to it.

Owns the value, its file form and the import of timm. An entry holds digests in place of names and shapes, which for
1,300 architectures would be megabytes; an exact comparison builds the module itself. timm_index makes these values,
timm_zoo keeps them, timm_models compares with them.
"""

import gzip
import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

from deploy.checkpoint.architecture import Shapes
from deploy.checkpoint.vision import import_torchvision
from deploy.errors import MissingError

if TYPE_CHECKING:
    from torch import Tensor

TIMM = "timm/"
_SKETCH = 24  # names whose digests are smallest: the share that two sketches have in common estimates that of the names


@dataclass(frozen=True, slots=True, kw_only=True)
class Position:
    """A positional embedding of one row per patch after `prefix` others; a patch has `patch` pixels a side."""

    tensor: str
    prefix: int
    patch: int


@dataclass(frozen=True, slots=True, kw_only=True)
class TimmEntry:
    """One architecture. `shapes` leaves out what a fine-tune changes: `head`, `stem` and the position's tensor.

    `headless` is the digest of the names without those of the head, empty where there is none. `sized` says whether
    the model is built for one image size.
    """

    name: str
    names: str
    headless: str
    shapes: str
    head: tuple[str, ...]
    stem: tuple[str, ...]
    position: Position | None
    sized: bool
    sketch: tuple[int, ...]


TimmIndex = dict[str, TimmEntry]


def timm_version() -> str | None:
    """The installed release of timm, read without importing it; None if there is none."""
    return None if find_spec("timm") is None else version("timm")


def import_timm() -> ModuleType:
    """The module `timm`. Raises MissingError if the extra is not installed."""
    import_torchvision()
    try:
        import timm
    except ImportError as error:
        raise MissingError(
            f"timm cannot be imported: {error}",
            expected="the extra for timm's architectures",
            fix='pip install "deployctl[timm]"',
        ) from error
    return timm


def index_file(folder: Path) -> Path:
    """Where the index of the installed timm lies in a folder: each release adds architectures."""
    return folder / f"timm-{timm_version()}.json.gz"


def shapes_of(tensors: "Mapping[str, Tensor]") -> Shapes:
    """Names and shapes, without counters: files may lack them, and the index does."""
    return {name: tuple(tensor.shape) for name, tensor in tensors.items() if not name.endswith("num_batches_tracked")}


def digest_names(names: Iterable[str]) -> str:
    """A short digest of a set of tensor names."""
    return _digest("\n".join(sorted(names)))


def digest_shapes(shapes: Shapes) -> str:
    """A short digest of tensor names with their shapes."""
    return _digest("\n".join(f"{name} {list(shape)}" for name, shape in sorted(shapes.items())))


def sketch(names: Iterable[str]) -> tuple[int, ...]:
    """The smallest digests of single names: sets of names that are alike have sketches that are alike."""
    return tuple(sorted(int(_digest(name)[:8], 16) for name in names)[:_SKETCH])


def likeness(found: tuple[int, ...], other: tuple[int, ...]) -> float:
    """The estimated share of the names of two sets that both have: 0 to 1."""
    smallest = set(sorted({*found, *other})[:_SKETCH])
    return len(smallest & set(found) & set(other)) / max(1, len(smallest))


def encode(index: Mapping[str, TimmEntry]) -> bytes:
    """The index as compact gzip JSON; the same bytes for the same index."""
    rows = [asdict(entry) for entry in index.values()]
    return gzip.compress(json.dumps(rows, separators=(",", ":")).encode(), mtime=0)


def decode(data: bytes) -> TimmIndex:
    """The index that `encode` wrote."""
    return {row["name"]: _decode_row(row) for row in json.loads(gzip.decompress(data))}


def _decode_row(row: dict[str, object]) -> TimmEntry:
    position = row["position"]
    values = {key: tuple(value) if isinstance(value, list) else value for key, value in row.items()}
    return TimmEntry(**{**values, "position": Position(**position) if isinstance(position, dict) else None})  # type: ignore[arg-type]


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]
