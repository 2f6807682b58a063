"""An ONNX graph whose weights stay where they lie: a small file that names their places in the large one.

Owns reading a file's fields without its weights. Called by onnx_limits, in a child process. ONNX Runtime parses a file
whole, so that a session of one holds the weights of the file beside what it makes of them; named, they are mapped one
at a time.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import NamedTemporaryFile
from typing import BinaryIO

from deploy.convert.onnx_wire import (
    GRAPH_INITIALIZER,
    LENGTH_DELIMITED,
    MODEL_GRAPH,
    TENSOR_RAW_DATA,
    VARINT,
    field,
    outside,
)

_FIXED64, _FIXED32 = 1, 5  # protobuf's wire types that only a reader meets
_LARGE = 65_536  # bytes of a weight that is not copied


@dataclass(frozen=True, slots=True)
class _Field:
    """One field of a message in a file: its number, where it starts, where its content does, where it ends."""

    number: int
    start: int
    content: int
    end: int


@contextmanager
def linked(path: Path) -> Iterator[Path]:
    """While this lasts, a file beside the one at `path` with the same graph, which takes large weights from there."""
    with path.open("rb") as stream, NamedTemporaryFile(prefix=".graph-", suffix=".onnx", dir=path.parent) as made:
        graph = b""
        for one in _fields(stream, 0, path.stat().st_size):
            if one.number == MODEL_GRAPH:
                graph = b"".join(_graph(stream, one, path.name))
            else:
                made.write(_bytes(stream, one.start, one.end))
        made.write(field(MODEL_GRAPH, len(graph)) + graph)
        made.flush()
        yield Path(made.name)


def _graph(stream: BinaryIO, graph: _Field, file: str) -> Iterator[bytes]:
    for one in _fields(stream, graph.content, graph.end):
        large = one.number == GRAPH_INITIALIZER and one.end - one.content >= _LARGE
        yield _named(stream, one, file) if large else _bytes(stream, one.start, one.end)


def _named(stream: BinaryIO, weight: _Field, file: str) -> bytes:
    """A weight's field, with the place of its bytes in place of them; as it is where it has no plain bytes."""
    parts = list(_fields(stream, weight.content, weight.end))
    raw = [part for part in parts if part.number == TENSOR_RAW_DATA]
    if len(raw) != 1:
        return _bytes(stream, weight.start, weight.end)
    facts = b"".join(_bytes(stream, part.start, part.end) for part in parts if part is not raw[0])
    return outside(facts, file, offset=raw[0].content, size=raw[0].end - raw[0].content)


def _fields(stream: BinaryIO, start: int, end: int) -> Iterator[_Field]:
    """The fields of the message between two places of the file. Raises ValueError if there is none."""
    while start < end:
        stream.seek(start)
        number, wire = divmod(_varint(stream), 8)
        content = stream.tell()
        if wire == VARINT:
            _varint(stream)
            size = stream.tell() - content
        elif wire == LENGTH_DELIMITED:
            size = _varint(stream)
            content = stream.tell()
        else:
            size = {_FIXED64: 8, _FIXED32: 4}[wire]
        yield _Field(number, start, content, content + size)
        start = content + size


def _bytes(stream: BinaryIO, start: int, end: int) -> bytes:
    stream.seek(start)
    return stream.read(end - start)


def _varint(stream: BinaryIO) -> int:
    value = shift = 0
    while byte := stream.read(1):
        value |= (byte[0] & 0x7F) << shift
        if byte[0] < 0x80:
            return value
        shift += 7
    raise ValueError("it ends in the middle of a field")
