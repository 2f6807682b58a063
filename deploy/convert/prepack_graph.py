"""A program's graph with its normalizations folded and its weights packed, all of it computed from the weights as they
are.

Owns which nodes that is and what they become; each rewrite takes what it can prove equal and leaves the rest, and none
looks at a weight's value. Called by aoti_prepack, in a child process.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import prod
from operator import attrgetter
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor, fx

_IMAGE = 4  # dimensions of a batch of images: rows, channels, height, width
_MATRIX = 2
_FEW = 262_144  # weights, 1 MB: as many as a core's own cache holds
_ROWS = 1  # of the batch for which oneDNN is asked for a layout; other batches take the same one
_LARGE = 450_000_000  # bytes of all weights: to compile, prove and serve them packed takes their memory once more
# From here on a packed linear layer takes less time, by measurement (docs/performance.md): to set up a call of oneDNN
# takes longer than MKL takes to read few weights. Weights, and multiplications for the smallest input.
_MANY = 131_072
_MUCH = 4_000_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Operators:
    """The operators that pack the weight of a convolution and of a linear layer."""

    convolution: Any
    linear: Any


def has_weights_to_pack(module: fx.GraphModule) -> bool:
    """Whether an exported graph has a layer of floats that is worth packing, and weights that may be packed.

    Those of small integers are quantized: packed, they would be float32 in memory. Many would not fit into the memory
    that packaging is allowed.
    """
    import torch

    if sum(tensor.nbytes for tensor in _tensors(module)) >= _LARGE:
        return False
    if any(tensor.dtype in (torch.int8, torch.uint8) and tensor.dim() > 1 for tensor in _tensors(module)):
        return False
    constants = _constants(module.graph)
    return any(_is_worth_packing(module, node, constants) for node in module.graph.nodes)


def _tensors(module: fx.GraphModule) -> Iterator[Tensor]:
    yield from module.parameters()
    yield from module.buffers()


def _constants(graph: fx.Graph) -> set[fx.Node]:
    """The nodes that are weights, or follow from weights alone."""
    found: set[fx.Node] = set()
    for node in graph.nodes:
        if node.op == "get_attr" or (node.all_input_nodes and found.issuperset(node.all_input_nodes)):
            found.add(node)
    return found


def _is_worth_packing(module: fx.GraphModule, node: fx.Node, constants: set[fx.Node]) -> bool:
    import torch

    aten = torch.ops.aten
    if node.target not in (aten.conv2d.default, aten.linear.default, aten.addmm.default, aten.mm.default):
        return False
    arguments: tuple[Any, ...] = node.args
    rows, weight = arguments[1:3] if node.target is aten.addmm.default else arguments[:2]
    if weight not in constants or "val" not in rows.meta or not _is_float32(node):
        return False
    if node.target is aten.conv2d.default:
        return _is_image_of_many(rows.meta["val"])
    held = attrgetter(str(weight.target))(module) if weight.op == "get_attr" else weight.meta.get("val")
    return held is not None and _pays(rows.meta["val"].shape[:-1], held.shape)


def _pays(rows: Sequence[Any], weight: Sequence[Any]) -> bool:
    """Whether a linear layer has so many weights, or so many rows in the smallest input, that packing them pays."""
    weights = prod(map(_least, weight))
    return weights >= _MANY or prod(map(_least, rows)) * weights >= _MUCH


def _least(size: Any) -> int:
    """A size, or the least that a dynamic one can be."""
    return size if isinstance(size, int) else int(size.node.shape_env.bound_sympy(size.node.expr).lower)


def _is_image_of_many(image: Tensor) -> bool:
    """Whether these are images of a fixed size, of several channels and pixels.

    Of one alone it cannot be told whether channels come first or last: the compiler takes the first, and oneDNN gives a
    packed convolution the last.
    """
    channels, *pixels = image.shape[1:] if image.dim() == _IMAGE else (1,)
    return all(isinstance(size, int) for size in (channels, *pixels)) and channels > 1 and pixels != [1, 1]


def fold_batch_norms(module: fx.GraphModule) -> int:
    """Make each normalization by stored statistics part of the convolution before it; gives how many.

    The convolution's new weight and bias are computed in the graph.
    """
    import torch

    aten, count = torch.ops.aten, 0
    for node in list(module.graph.nodes):
        convolution = node.args[0] if node.target is aten.batch_norm.default else None
        if convolution is None or convolution.target is not aten.conv2d.default or len(convolution.users) > 1:
            continue
        _, gamma, beta, mean, variance, training, _, epsilon, _ = node.args
        if training or mean is None or variance is None:
            continue
        _fold(module.graph, node, convolution, (gamma, beta, mean, variance, epsilon))
        count += 1
    module.graph.eliminate_dead_code()
    module.recompile()
    return count


def _fold(graph: fx.Graph, node: fx.Node, convolution: fx.Node, statistics: tuple[Any, ...]) -> None:
    import torch

    aten = torch.ops.aten
    gamma, beta, mean, variance, epsilon = statistics
    image, weight, bias, *rest = convolution.args if len(convolution.args) > _MATRIX else (*convolution.args, None)

    def call(target: Any, *arguments: Any) -> fx.Node:
        return graph.call_function(target, arguments)

    with graph.inserting_before(node):
        scale = call(aten.rsqrt.default, call(aten.add.Scalar, variance, epsilon))
        scale = scale if gamma is None else call(aten.mul.Tensor, gamma, scale)
        folded = call(aten.mul.Tensor, weight, call(aten.reshape.default, scale, [-1, 1, 1, 1]))
        centre = mean if bias is None else call(aten.sub.Tensor, mean, bias)
        shift = call(aten.neg.default, call(aten.mul.Tensor, centre, scale))
        shift = shift if beta is None else call(aten.add.Tensor, beta, shift)
        made = call(aten.conv2d.default, image, folded, shift, *rest)
    made.meta.update(node.meta)
    node.replace_all_uses_with(made)
    graph.erase_node(node)


def sum_single_pixels(module: fx.GraphModule) -> int:
    """Write each small convolution of images of one pixel as a product and a sum; gives how many.

    Such are the two in a squeeze-and-excitation block. The compiler makes a loop of each, with what follows in it; a
    call of oneDNN would take longer to set up than to run.
    """
    import torch

    found = [node for node in module.graph.nodes if node.target is torch.ops.aten.conv2d.default]
    shapes = {node: shape for node in found if (shape := _few_weights(module, *node.args))}
    for node, (outputs, inputs) in shapes.items():
        _sum(module.graph, node, outputs, inputs)
    module.graph.eliminate_dead_code()
    module.recompile()
    return len(shapes)


def _few_weights(
    module: fx.GraphModule, image: fx.Node, weight: fx.Node, _bias: Any = None, _stride: Any = 1, padding: Any = 0,
    *rest: Any,
) -> tuple[int, int] | None:  # fmt: skip
    """The outputs and inputs of a convolution of one pixel that has few weights; None for any other.

    `rest` is dilation and groups.
    """
    if weight.op != "get_attr" or "val" not in image.meta:
        return None
    pixels, sizes = image.meta["val"].shape[2:], attrgetter(str(weight.target))(module).shape
    fixed = all(isinstance(size, int) for size in pixels)
    if len(sizes) != _IMAGE or not fixed or [*pixels, *sizes[2:]] != [1, 1, 1, 1]:
        return None
    if padding not in (0, [0, 0]) or rest[1:] not in ((), (1,)) or sizes[0] * sizes[1] > _FEW:
        return None
    return int(sizes[0]), int(sizes[1])


def _sum(graph: fx.Graph, node: fx.Node, outputs: int, inputs: int) -> None:
    import torch

    image, weight, bias, *_ = (*node.args, None)
    aten = torch.ops.aten
    with graph.inserting_before(node):
        rows = graph.call_function(aten.reshape.default, (image, [-1, 1, inputs]))
        columns = graph.call_function(aten.reshape.default, (weight, [1, outputs, inputs]))
        products = graph.call_function(aten.mul.Tensor, (rows, columns))
        made = graph.call_function(aten.sum.dim_IntList, (products, [-1]))
        if bias is not None:
            made = graph.call_function(aten.add.Tensor, (made, bias))
        made = graph.call_function(aten.reshape.default, (made, [-1, outputs, 1, 1]))
    made.meta.update(node.meta)
    node.replace_all_uses_with(made)
    graph.erase_node(node)


def pack_weights(graph: fx.Graph, operators: Operators) -> None:
    """Pack, in a graph of AOTInductor's, each weight that follows from constants alone."""
    import torch

    aten, constants = torch.ops.aten, _constants(graph)
    for node in list(graph.nodes):
        if node in constants:
            continue
        if node.target is aten.convolution.default and node.args[1] in constants and _is_packable(node):
            _replace(graph, node, *_convolution(graph, node, operators.convolution))
        elif node.target is aten.addmm.default and node.args[2] in constants and not node.kwargs:
            bias, rows, weight = node.args
            _pack_product(graph, node, (rows, weight, bias), operators.linear)
        elif node.target is aten.mm.default and node.args[1] in constants:
            _pack_product(graph, node, (*node.args, None), operators.linear)


def _is_float32(node: fx.Node) -> bool:
    import torch

    value: Tensor | None = node.meta.get("val")
    return value is not None and value.dtype == torch.float32 and value.device.type == "cpu"


def _is_packable(convolution: fx.Node) -> bool:
    """Whether it is one of images that are packable, and not transposed."""
    image: Tensor = convolution.args[0].meta["val"]  # type: ignore[union-attr]
    return _is_image_of_many(image) and not convolution.args[6] and _is_float32(convolution)


def _convolution(graph: fx.Graph, node: fx.Node, operator: Any) -> tuple[Any, tuple[Any, ...]]:
    """The convolution of oneDNN in place of this one, with the weight packed before it: operator and arguments."""
    import torch

    image, weight, bias, stride, padding, dilation, _, _, groups = node.args
    sizes = [_ROWS, *image.meta["val"].shape[1:]]  # type: ignore[union-attr]
    with graph.inserting_before(node):
        packed = graph.call_function(operator, (weight, padding, stride, dilation, groups, sizes))
    packed.meta["val"] = weight.meta["val"]  # type: ignore[union-attr]
    target = torch.ops.mkldnn._convolution_pointwise.default
    return target, (image, packed, bias, padding, stride, dilation, groups, "none", [], "")


def _pack_product(graph: fx.Graph, node: fx.Node, arguments: tuple[Any, ...], operator: Any) -> None:
    """Put the linear layer of oneDNN in place of this product, where that pays."""
    import torch

    rows, weight, bias = arguments
    if not _is_float32(node) or not _pays(rows.meta["val"].shape[:-1], weight.meta["val"].shape):
        return
    with graph.inserting_before(node):
        turned = graph.call_function(torch.ops.aten.permute.default, (weight, [1, 0]))
        packed = graph.call_function(operator, (turned, _usual(rows.meta["val"].shape[0])))
    turned.meta["val"] = packed.meta["val"] = weight.meta["val"].permute(1, 0)
    _replace(graph, node, torch.ops.mkldnn._linear_pointwise.default, (rows, packed, bias, "none", [], ""))


def _usual(size: Any) -> int:
    """A size, or for a dynamic one that of the example which was exported."""
    return size if isinstance(size, int) else int(size.node.hint)


def _replace(graph: fx.Graph, node: fx.Node, target: Any, arguments: tuple[Any, ...]) -> None:
    with graph.inserting_before(node):
        made = graph.call_function(target, arguments)
    made.meta.update(node.meta)
    node.replace_all_uses_with(made)
    graph.erase_node(node)
