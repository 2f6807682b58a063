"""A folder that `torch.distributed.checkpoint` wrote becomes whole tensors, read shard by shard into their places.

Owns reading its metadata without running any of it, and the proof that every shard is there. Never holds two copies: a
tensor is allocated once, and one shard at a time is copied into it. Optimizer state is not read.
Called by formats.
"""

import io
import pickle
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from deploy.checkpoint.pickles import load_plain
from deploy.checkpoint.sniff import damaged
from deploy.checkpoint.weights import may_hold_weights
from deploy.errors import UsageError

if TYPE_CHECKING:
    from torch.distributed.checkpoint.default_planner import DefaultLoadPlanner
    from torch.distributed.checkpoint.filesystem import FileSystemReader
    from torch.distributed.checkpoint.metadata import Metadata, TensorStorageMetadata

METADATA = ".metadata"
_CHECKPOINT = "torch.distributed.checkpoint"
_ALLOWED = frozenset((
    *(f"{_CHECKPOINT}.metadata.{name}" for name in (
        "Metadata", "TensorStorageMetadata", "BytesStorageMetadata", "ChunkStorageMetadata", "TensorProperties",
        "MetadataIndex", "StorageMeta", "_MEM_FORMAT_ENCODING",
    )),
    *(f"{_CHECKPOINT}.filesystem.{name}" for name in ("_StorageInfo", "_StoragePrefix", "SerializationFormat")),
    "torch.Size", "torch.serialization._get_layout", "collections.OrderedDict", "pathlib.PosixPath",
))  # fmt: skip


def read_sharded(folder: Path) -> dict[str, Any]:
    """What was saved, nested as it was, but for the optimizer's part.

    Raises UsageError if the metadata is damaged or asks for a type of its own, or if a shard is missing or cut short.
    """
    from torch.distributed.checkpoint.api import CheckpointException
    from torch.distributed.checkpoint.state_dict_loader import load

    metadata = _read_metadata(folder)
    paths = _paths(metadata)
    wanted = {name: _empty(metadata, name) for name, path in paths.items() if _may_hold_weights(path)}
    _check_shards(folder, metadata, wanted)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that this is one process, which it is
            load(wanted, storage_reader=_reader(folder, metadata), planner=_planner(), no_dist=True)
    except CheckpointException as error:  # no Exception; it holds whatever a damaged shard led the reader to
        raise damaged(folder, next(iter(error.failures.values()))[0]) from error
    return _nested((paths[name], value) for name, value in wanted.items())


def _read_metadata(folder: Path) -> "Metadata":
    from torch.distributed.checkpoint.metadata import Metadata

    path = folder / METADATA
    try:
        metadata = _MetadataUnpickler(io.BytesIO(path.read_bytes()), path).load()
    except UsageError:
        raise
    except Exception as error:  # a damaged pickle raises anything
        raise damaged(path, error) from error
    if not isinstance(metadata, Metadata) or not isinstance(metadata.storage_data, dict):
        raise damaged(path, "it holds no table of shards")
    return metadata


class _MetadataUnpickler(pickle.Unpickler):
    """Makes the few types that metadata consists of, and no other."""

    def __init__(self, stream: io.BytesIO, path: Path) -> None:
        super().__init__(stream)
        self._path = path

    def find_class(self, module: str, name: str) -> Any:
        import torch

        if f"{module}.{name}" in _ALLOWED:
            return super().find_class(module, name)
        if module == "torch" and isinstance(value := getattr(torch, name, None), torch.dtype | torch.layout):
            return value
        raise UsageError(
            f"{self._path} is a pickle that needs another type than a table of shards does: {module}.{name}",
            expected=f"what {_CHECKPOINT} writes; unpickling more can run any code",
            fix="save the checkpoint again with torch.distributed.checkpoint.save",
        )


def _paths(metadata: "Metadata") -> dict[str, tuple[str | int, ...]]:
    """Where each entry was in what was saved: its keys from the top."""
    kept = metadata.planner_data if isinstance(metadata.planner_data, Mapping) else {}
    return {name: tuple(kept.get(name) or (name,)) for name in metadata.state_dict_metadata}


def _may_hold_weights(path: tuple[str | int, ...]) -> bool:
    return all(may_hold_weights(key) for key in path[:-1] if isinstance(key, str))


def _empty(metadata: "Metadata", name: str) -> Any:
    """The place an entry is read into: a tensor of its size, or a stream of bytes."""
    import torch
    from torch.distributed.checkpoint.metadata import TensorStorageMetadata

    entry = metadata.state_dict_metadata[name]
    if isinstance(entry, TensorStorageMetadata):
        return torch.empty(entry.size, dtype=entry.properties.dtype)
    return io.BytesIO()


def _check_shards(folder: Path, metadata: "Metadata", wanted: Mapping[str, Any]) -> None:
    """Raises UsageError for a file that is missing or too short, and for a tensor whose shards do not cover it."""
    from torch.distributed.checkpoint.metadata import TensorStorageMetadata

    ends: dict[str, int] = {}
    for index, info in metadata.storage_data.items():
        if index.fqn in wanted:
            ends[info.relative_path] = max(ends.get(info.relative_path, 0), info.offset + info.length)
    for name, end in sorted(ends.items()):
        path = folder / name
        if not path.resolve().is_relative_to(folder.resolve()):
            raise damaged(folder / METADATA, f"the shard {name!r} lies outside the folder")
        if not path.is_file():
            raise UsageError(
                f"{folder} lacks the shard {name}, of {len(ends)} that hold the weights",
                expected="the files of every rank in one folder",
                fix="copy what each node wrote into it",
            )
        if path.stat().st_size < end:
            raise damaged(path, f"it has {path.stat().st_size} bytes of at least {end}")
    for name in wanted:
        entry = metadata.state_dict_metadata[name]
        if isinstance(entry, TensorStorageMetadata) and _covered(entry) != entry.size.numel():
            raise damaged(
                folder / METADATA, f"the shards of {name!r} hold {_covered(entry)} of {entry.size.numel()} elements"
            )


def _covered(entry: "TensorStorageMetadata") -> int:
    return sum(chunk.sizes.numel() for chunk in entry.chunks)


def _reader(folder: Path, metadata: "Metadata") -> "FileSystemReader":
    """Torch's own reader, but for the metadata, which it would unpickle whatever it asks for."""
    from torch.distributed.checkpoint.filesystem import FileSystemReader

    class Reader(FileSystemReader):
        def read_metadata(self, *args: Any, **kwargs: Any) -> "Metadata":
            return metadata

    return Reader(folder)


def _planner() -> "DefaultLoadPlanner":
    """Torch's own planner, but for entries that are no tensors, which it would unpickle whatever they ask for."""
    from torch.distributed.checkpoint.default_planner import DefaultLoadPlanner

    class Planner(DefaultLoadPlanner):
        def load_bytes(self, read_item: Any, value: io.BytesIO) -> None:
            name = read_item.dest_index.fqn
            try:
                self.state_dict[name] = load_plain(value)
            except pickle.UnpicklingError:
                # No weights, and of a type that would run code: as if it had not been saved.
                self.state_dict[name] = None

    return Planner(flatten_state_dict=False, flatten_sharded_tensors=False)


def _nested(entries: Iterator[tuple[tuple[str | int, ...], Any]]) -> dict[str, Any]:
    result: dict[Any, Any] = {}
    for path, value in entries:
        place = result
        for key in path[:-1]:
            place = place.setdefault(key, {})
        place[path[-1]] = value
    return result
