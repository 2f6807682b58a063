"""How an ONNX model comes to lie on disk: checked, in one file, without a second copy of its weights in memory.

Owns the file's bytes; changes nothing in the graph. Called by onnx.

Protobuf's own serializer, and the checker given a path, each hold several copies of all weights at once: 1.6 GB for the
350 MB of a ViT. A message is its fields one after the other, so large tensors are written straight into the file.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from deploy.errors import UnfinishedError

if TYPE_CHECKING:
    import onnx
    import onnx_ir as ir

_LARGE = 65_536  # bytes of a tensor that is written by itself
_LENGTH_DELIMITED = 2  # protobuf's wire type of bytes and messages
# Field numbers of onnx.proto, which never change.
_MODEL_GRAPH, _GRAPH_INITIALIZER, _TENSOR_RAW_DATA = 7, 5, 9


def write_model(model: ir.Model, path: Path, *, inline_limit: int) -> tuple[str, ...]:
    """The names of the files written, relative to the folder of `path`.

    One file up to `inline_limit` bytes of weights. Above it `path` becomes a folder with the graph, of the same name,
    and the weights beside it: what Triton wants of a model in several files. Takes large weights out of `model`.
    Raises UnfinishedError if the model breaks ONNX's rules.
    """
    import onnx_ir as ir

    name = path.name
    weights = [value.const_value for value in model.graph.initializers.values()]
    if sum(tensor.nbytes for tensor in weights if tensor is not None) > inline_limit:
        path.mkdir()
        ir.save(model, path / name, external_data=f"{name}.data")
        _check(str(path / name))
        return (f"{name}/{name}", f"{name}/{name}.data")
    large = _take_large(model)
    rest = ir.to_proto(model)
    _check(_with_inputs(rest, large))
    _write(rest, large, path)
    return (name,)


def _take_large(model: ir.Model) -> dict[str, ir.TensorProtocol]:
    import onnx_ir as ir

    taken = {}
    for name, value in list(model.graph.initializers.items()):
        tensor = value.const_value
        if tensor is not None and tensor.nbytes >= _LARGE and tensor.dtype != ir.DataType.STRING:
            taken[name] = tensor
            del model.graph.initializers[name]
    return taken


def _with_inputs(rest: onnx.ModelProto, large: dict[str, ir.TensorProtocol]) -> onnx.ModelProto:
    """A copy whose large weights are inputs: the checker sees every node, and no weights."""
    import onnx

    copy = onnx.ModelProto()
    copy.CopyFrom(rest)
    for name, tensor in large.items():
        shape = [int(size) for size in tensor.shape.numpy()]
        copy.graph.input.append(onnx.helper.make_tensor_value_info(name, int(tensor.dtype), shape))
    return copy


def _check(model: onnx.ModelProto | str) -> None:
    import onnx

    try:
        onnx.checker.check_model(model)
    except onnx.checker.ValidationError as error:
        raise UnfinishedError(f"the ONNX model is not valid: {str(error).strip().splitlines()[0]}") from error


def _write(rest: onnx.ModelProto, large: dict[str, ir.TensorProtocol], path: Path) -> None:
    graph = rest.graph.SerializeToString()
    rest.ClearField("graph")
    heads = [_initializer_head(name, tensor) for name, tensor in large.items()]
    length = len(graph) + sum(map(len, heads)) + sum(tensor.nbytes for tensor in large.values())
    with path.open("wb") as stream:
        stream.write(rest.SerializeToString())
        stream.write(_field(_MODEL_GRAPH, length))
        stream.write(graph)
        for head, tensor in zip(heads, large.values(), strict=True):
            stream.write(head)
            stream.write(tensor.tobytes())


def _initializer_head(name: str, tensor: ir.TensorProtocol) -> bytes:
    """All of a graph's initializer but the tensor's bytes, which come last."""
    import onnx

    facts = onnx.TensorProto(name=name, data_type=int(tensor.dtype), dims=tensor.shape.numpy()).SerializeToString()
    inner = facts + _field(_TENSOR_RAW_DATA, tensor.nbytes)
    return _field(_GRAPH_INITIALIZER, len(inner) + tensor.nbytes) + inner


def _field(number: int, length: int) -> bytes:
    return _varint(number << 3 | _LENGTH_DELIMITED) + _varint(length)


def _varint(value: int) -> bytes:
    groups = []
    while value > 0x7F:
        groups.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*groups, value])
