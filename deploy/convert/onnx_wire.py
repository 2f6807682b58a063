"""ONNX files written piece by piece: a graph's bytes, and its weights straight from where they lie.

Owns the few pieces of protobuf's encoding that takes. Knows no graph, and needs no ONNX library: importing one takes
longer than writing the weights. Called by onnx_file and onnx_weights, in a child process.

Protobuf's own serializer, and the checker given a path, each hold several copies of all weights at once: 1.6 GB for the
350 MB of a ViT. A message is its fields one after the other, so weights are written behind the rest of their graph.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from deploy.records import Record

VARINT, LENGTH_DELIMITED = 0, 2  # protobuf's wire types of numbers, and of bytes and messages
# Field numbers of onnx.proto, which never change.
MODEL_GRAPH, GRAPH_INITIALIZER = 7, 5
_TENSOR_DIMS, _TENSOR_TYPE, _TENSOR_NAME, TENSOR_RAW_DATA, _TENSOR_EXTERNAL, _TENSOR_LOCATION = 1, 2, 8, 9, 13, 14
_ENTRY_KEY, _ENTRY_VALUE = 1, 2
_EXTERNAL = 1  # TensorProto.DataLocation.EXTERNAL
_PAGE = 4096  # bytes; whoever maps a weight does so from the start of a page

Content = Callable[[str], "bytes | memoryview"]


class Initializer(Record):
    """A weight in a graph: its ONNX data type as a number, its shape, its size in bytes."""

    name: str
    data_type: int
    dims: tuple[int, ...]
    size: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Skeleton:
    """A model without the weights that are written apart: the bytes of all fields but the graph, and of the graph."""

    model: bytes
    graph: bytes

    def whole(self) -> bytes:
        """The model in one piece, its graph last."""
        return self.model + field(MODEL_GRAPH, len(self.graph)) + self.graph

    @classmethod
    def parted(cls, whole: bytes, *, graph: int) -> Skeleton:
        """What `whole` gave, the graph of so many bytes again apart from the rest."""
        end = len(whole) - graph
        return cls(model=whole[: end - len(field(MODEL_GRAPH, graph))], graph=whole[end:])


def write_inside(path: Path, skeleton: Skeleton, held: Sequence[Initializer], content: Content) -> None:
    """Write the model with its weights in the same file; `content` gives a weight's bytes by its name."""
    heads = [_inside(one) for one in held]
    length = len(skeleton.graph) + sum(map(len, heads)) + sum(one.size for one in held)
    with path.open("wb") as stream:
        stream.write(skeleton.model + field(MODEL_GRAPH, length) + skeleton.graph)
        for head, one in zip(heads, held, strict=True):
            stream.write(head)
            stream.write(_sized(one, content))


def write_beside(path: Path, skeleton: Skeleton, held: Sequence[Initializer], content: Content) -> tuple[str, str]:
    """Write the model and its weights into the new folder `path`; gives both files' names, relative to its parent.

    The model is called as the folder is: what Triton wants of a model in several files.
    """
    model, data = path / path.name, path / f"{path.name}.data"
    path.mkdir()
    heads, offset = [], 0
    with data.open("wb") as stream:
        for one in held:
            offset = -(-offset // _PAGE) * _PAGE
            stream.seek(offset)
            stream.write(_sized(one, content))
            placed = outside(_facts(one), data.name, offset=offset, size=one.size) if one.size else _inside(one)
            heads.append(placed)
            offset += one.size
    length = len(skeleton.graph) + sum(map(len, heads))
    model.write_bytes(b"".join([skeleton.model, field(MODEL_GRAPH, length), skeleton.graph, *heads]))
    return f"{path.name}/{model.name}", f"{path.name}/{data.name}"


def field(number: int, length: int) -> bytes:
    """What comes before `length` bytes of a field."""
    return _varint(number << 3 | LENGTH_DELIMITED) + _varint(length)


def _sized(one: Initializer, content: Content) -> bytes | memoryview:
    found = content(one.name)
    assert len(found) == one.size, f"{one.name} has {len(found)} bytes instead of {one.size}"
    return found


def _inside(one: Initializer) -> bytes:
    """All of a weight's field but its bytes, which come last."""
    inner = _facts(one) + field(TENSOR_RAW_DATA, one.size)
    return field(GRAPH_INITIALIZER, len(inner) + one.size) + inner


def outside(facts: bytes, file: str, *, offset: int, size: int) -> bytes:
    """A weight's whole field: the fields `facts`, and the place of its bytes in another file."""
    where = {"location": file, "offset": str(offset), "length": str(size)}
    entries = (_text(_ENTRY_KEY, key) + _text(_ENTRY_VALUE, value) for key, value in where.items())
    told = b"".join(field(_TENSOR_EXTERNAL, len(entry)) + entry for entry in entries)
    inner = facts + told + _number(_TENSOR_LOCATION, _EXTERNAL)
    return field(GRAPH_INITIALIZER, len(inner)) + inner


def _facts(one: Initializer) -> bytes:
    return b"".join(_fact_fields(one))


def _fact_fields(one: Initializer) -> Iterator[bytes]:
    for size in one.dims:
        yield _number(_TENSOR_DIMS, size)
    yield _number(_TENSOR_TYPE, one.data_type)
    yield _text(_TENSOR_NAME, one.name)


def _text(number: int, text: str) -> bytes:
    encoded = text.encode()
    return field(number, len(encoded)) + encoded


def _number(number: int, value: int) -> bytes:
    return _varint(number << 3 | VARINT) + _varint(value)


def _varint(value: int) -> bytes:
    groups = []
    while value > 0x7F:
        groups.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*groups, value])
