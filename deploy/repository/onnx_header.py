"""The IR version and the opsets of an ONNX file, read from its head without loading it.

Owns the few fields of the protobuf that say so; needs neither onnx nor ONNX Runtime, and seeks past the weights.
Called by preflight.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from deploy.errors import UsageError

# Field numbers of onnx.proto, which never change, and protobuf's wire types.
_IR_VERSION, _OPSET_IMPORT = 1, 8
_DOMAIN, _VERSION = 1, 2
_VARINT, _FIXED64, _LENGTH, _FIXED32 = 0, 1, 2, 5
_LONGEST_VARINT = 10


@dataclass(frozen=True, slots=True, kw_only=True)
class OnnxHeader:
    """What a runtime looks at first. `opsets` holds the version by domain; ONNX's own is called `""`."""

    ir_version: int
    opsets: dict[str, int]

    @property
    def opset(self) -> int:
        """The version of ONNX's own operators, 0 where the model uses none."""
        return self.opsets.get("", 0)


def read_onnx_header(path: Path) -> OnnxHeader:
    """The header of the model at `path`, a file or a folder with the file of its own name and the weights beside it.

    Raises UsageError if it is no ONNX model.
    """
    file = path / path.name if path.is_dir() else path
    try:
        with file.open("rb") as stream:
            header = _read(stream, file.stat().st_size)
    except (OSError, ValueError) as error:
        raise UsageError(
            f"{file} is no ONNX model: {error}",
            expected="a model that deployctl packaged",
            fix="restore the version from where it was published",
        ) from error
    if header.ir_version < 1 or not header.opsets:
        raise UsageError(
            f"{file} is no ONNX model: it names no IR version or no opset",
            expected="an ONNX model",
            fix="restore the version from where it was published",
        )
    return header


def _read(stream: BinaryIO, size: int) -> OnnxHeader:
    ir_version, opsets = 0, {}
    while stream.tell() < size:
        field, wire = divmod(_varint(stream), 8)
        if wire == _VARINT:
            value = _varint(stream)
            ir_version = value if field == _IR_VERSION else ir_version
        elif wire == _LENGTH and field == _OPSET_IMPORT:
            domain, version = _opset(stream, _varint(stream))
            opsets[domain] = version
        else:
            _skip(stream, wire, size)
    return OnnxHeader(ir_version=ir_version, opsets=opsets)


def _opset(stream: BinaryIO, length: int) -> tuple[str, int]:
    end, domain, version = stream.tell() + length, "", 0
    while stream.tell() < end:
        field, wire = divmod(_varint(stream), 8)
        if (field, wire) == (_DOMAIN, _LENGTH):
            domain = stream.read(_varint(stream)).decode()
        elif (field, wire) == (_VERSION, _VARINT):
            version = _varint(stream)
        else:
            _skip(stream, wire, end)
    # "ai.onnx" is the long name of the same domain.
    return ("" if domain == "ai.onnx" else domain), version


def _skip(stream: BinaryIO, wire: int, end: int) -> None:
    """Pass over one value. Raises ValueError if its wire type does not exist or it would end behind `end`."""
    if wire == _VARINT:
        _varint(stream)
        return
    if wire not in (_FIXED64, _FIXED32, _LENGTH):
        raise ValueError(f"wire type {wire} at byte {stream.tell()}")
    length = _varint(stream) if wire == _LENGTH else {_FIXED64: 8, _FIXED32: 4}[wire]
    if stream.tell() + length > end:
        raise ValueError(f"a field of {length} bytes reaches behind the end")
    stream.seek(length, 1)


def _varint(stream: BinaryIO) -> int:
    value = 0
    for position in range(_LONGEST_VARINT):
        byte = stream.read(1)
        if not byte:
            raise ValueError("it ends in the middle of a field")
        value |= (byte[0] & 0x7F) << (7 * position)
        if byte[0] < 0x80:
            return value
    raise ValueError(f"a number of more than {_LONGEST_VARINT} bytes at byte {stream.tell()}")
