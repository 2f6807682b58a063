"""An ONNX model as a checked skeleton and the weights that are written apart from it.

Owns what is written apart, and that ONNX's checker has seen the rest; the encoding is in onnx_wire. Called by onnx and
onnx_weights.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from deploy.convert.onnx_wire import Initializer, Skeleton, write_beside, write_inside
from deploy.errors import UnfinishedError

if TYPE_CHECKING:
    import onnx
    import onnx_ir as ir

_LARGE = 65_536  # bytes of a tensor that is written by itself


def write_model(model: ir.Model, path: Path, *, inline_limit: int) -> tuple[str, ...]:
    """The names of the files written, relative to the folder of `path`.

    One file up to `inline_limit` bytes of weights. Above it `path` becomes a folder with the graph, of the same name,
    and the weights beside it: what Triton wants of a model in several files. Takes large weights out of `model`.
    Raises UnfinishedError if the model breaks ONNX's rules.
    """
    import onnx_ir as ir

    weights = {name: value.const_value for name, value in model.graph.initializers.items()}
    beside = sum(tensor.nbytes for tensor in weights.values() if tensor is not None) > inline_limit
    apart = {
        name: tensor
        for name, tensor in weights.items()
        if tensor is not None and tensor.dtype != ir.DataType.STRING and (beside or tensor.nbytes >= _LARGE)
    }
    for name in apart:
        del model.graph.initializers[name]
    held = [initializer(name, tensor) for name, tensor in apart.items()]
    skeleton = checked_skeleton(model, held)
    if beside:
        return write_beside(path, skeleton, held, lambda name: apart[name].tobytes())
    write_inside(path, skeleton, held, lambda name: apart[name].tobytes())
    return (path.name,)


def initializer(name: str, tensor: ir.TensorProtocol) -> Initializer:
    """What a file says of a weight beside its bytes."""
    dims = tuple(int(size) for size in tensor.shape.numpy())
    return Initializer(name=name, data_type=int(tensor.dtype), dims=dims, size=tensor.nbytes)


def checked_skeleton(model: ir.Model, held: Sequence[Initializer]) -> Skeleton:
    """The model, which lacks the weights `held`. Raises UnfinishedError if with them it breaks ONNX's rules."""
    import onnx_ir as ir

    rest = ir.to_proto(model)
    _check(_with_inputs(rest, held))
    graph = rest.graph.SerializeToString()
    rest.ClearField("graph")
    return Skeleton(model=rest.SerializeToString(), graph=graph)


def _with_inputs(rest: onnx.ModelProto, held: Sequence[Initializer]) -> onnx.ModelProto:
    """A copy whose weights written apart are inputs: the checker sees every node, and none of their values."""
    import onnx

    copy = onnx.ModelProto()
    copy.CopyFrom(rest)
    for one in held:
        copy.graph.input.append(onnx.helper.make_tensor_value_info(one.name, one.data_type, one.dims))
    return copy


def _check(model: onnx.ModelProto) -> None:
    import onnx

    try:
        onnx.checker.check_model(model)
    except onnx.checker.ValidationError as error:
        raise UnfinishedError(f"the ONNX model is not valid: {str(error).strip().splitlines()[0]}") from error
