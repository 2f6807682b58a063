"""FlexAttention's operator in a program: kept for a kernel of its own where there is one, else plain attention.

Owns these two graph passes; compiles nothing. Called by export, aoti and onnx, always in a child process.

The operator, `torch.ops.higher_order.flex_attention`, carries the user's score_mod and mask_mod as graphs over one
score. ONNX has no such operator, `torch.export.save` cannot write it, and AOTInductor has a kernel for some uses only.
Rewritten, a use becomes what its own eager implementation computes: all scores, the graphs over them, a softmax.
"""

from __future__ import annotations

import importlib
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from deploy.convert.model import Program
from deploy.errors import UnfinishedError

if TYPE_CHECKING:
    from torch import Tensor
    from torch.export import ExportedProgram
    from torch.fx import GraphModule, Node

DETAIL = "flex_attention"  # the key in an artifact's details
FUSED = "fused kernel"
DECOMPOSED = "decomposed to plain attention"

_COMPILED_THREADS = "int64_t num_thread = {{num_thread}};"
_ANY_THREADS = "int64_t num_thread = std::max<int64_t>({{num_thread}}, at::get_num_threads());"
_WHOLE_VECTORS = "N % Vectorized::size() == 0 && 24 * BLOCK_M > K"
_WHOLE_BLOCK = "N == BLOCK_N && 24 * BLOCK_M > K"

# Which of a score's four indices a nesting of vmap maps: the key's first, the batch's last.
_INDEX_MAPS = ((None, None, None, 0), (None, None, 0, None), (None, 0, None, None), (0, None, None, None))


def count_flex_attention(exported: ExportedProgram) -> int:
    """How many times the program uses the operator."""
    return len(_uses(exported))


def attention_detail(program: Program, way: str) -> dict[str, str]:
    """What an artifact's details say of the program's attention; nothing where it does not use the operator."""
    return {DETAIL: way} if program.flex_attention else {}


def plain_attention(exported: ExportedProgram) -> ExportedProgram:
    """The program without the operator; the very same one if it uses none.

    Raises UnfinishedError if a score_mod or mask_mod cannot be rewritten.
    """
    if not _uses(exported):
        return exported
    plain = _functional(exported)  # so that what only the operator needed can be dropped
    for node in _uses(plain):
        _rewrite(plain.graph_module, node)
    _drop_unused(plain.graph_module)
    return plain


def attends_on_gpu(exported: ExportedProgram) -> bool:
    """Whether the program's attention is computed on a GPU, whose kernel is another one than the CPU's."""
    queries: list[Any] = [node.args[0] for node in _uses(exported)]
    return any(query.meta["val"].device.type == "cuda" for query in queries)


def for_a_kernel(exported: ExportedProgram) -> ExportedProgram:
    """The program as AOTInductor's kernels can read it: query, key and value each in contiguous memory of their own.

    torch's CPU kernel takes their sizes from whatever buffer lies beneath, which for a view is another one. That for
    GPUs reads strides, and gets them as they are.
    """
    import torch

    ready = _functional(exported)
    if attends_on_gpu(ready):
        return ready
    for node in _uses(ready):
        for tensor in dict.fromkeys(node.args[:3]):
            assert isinstance(tensor, torch.fx.Node)
            node.replace_input_with(tensor, _copied(tensor))
        for user in list(node.users):
            _copied(user, like=node.meta["val"][user.args[1]])
    ready.graph_module.recompile()
    return ready


@contextmanager
def mended_kernel() -> Iterator[None]:
    """While this lasts, AOTInductor writes a CPU kernel that is right for any number of keys and threads.

    torch's own has room for the threads of the machine that compiles it, and writes beyond that on one with more. And
    where the keys end with a whole vector inside a block (8 keys on AVX2), it multiplies the whole block: it reads
    behind the keys and writes behind the scores.
    Raises UnfinishedError if this release of torch writes the kernel in another way.
    """
    importlib.import_module("torch._inductor.lowering")  # first: the next one imports it, and it the next one
    from torch._inductor.codegen import cpp_flex_attention_template, cpp_micro_gemm

    kernel, product = cpp_flex_attention_template, cpp_micro_gemm.CppMicroGemmFP32Vec
    before = getattr(kernel, "INIT_PARAMS", ""), product.TEMPLATE_KERNEL  # the first is absent before torch 2.12
    if before[0].count(_COMPILED_THREADS) != 1 or before[1].count(_WHOLE_VECTORS) != 1:
        raise UnfinishedError(
            "the FlexAttention kernel of this torch is unknown here, so whether it fits other machines' threads is too"
        )
    kernel.INIT_PARAMS = before[0].replace(_COMPILED_THREADS, _ANY_THREADS)
    product.TEMPLATE_KERNEL = before[1].replace(_WHOLE_VECTORS, _WHOLE_BLOCK)
    try:
        yield
    finally:
        kernel.INIT_PARAMS, product.TEMPLATE_KERNEL = before


def _copied(node: Node, *, like: Tensor | None = None) -> Node:
    """A contiguous copy of the value; with `like`, one laid out like it, which all that used the value use instead."""
    import torch

    graph, users = node.graph, list(node.users)
    order = list(range(4)) if like is None else _order(like)
    steps: list[tuple[Any, ...]] = [(torch.ops.aten.permute.default, (order,), {})] if like is not None else []
    steps.append((torch.ops.aten.clone.default, (), {"memory_format": torch.contiguous_format}))
    if like is not None:
        steps.append((torch.ops.aten.permute.default, (_inverse(order),), {}))
    copy = node
    with graph.inserting_before(node.next):
        for operator, arguments, keywords in steps:
            made = graph.call_function(operator, (copy, *arguments), keywords)
            made.meta = {"val": operator(copy.meta["val"], *arguments, **keywords)}
            copy = made
    for user in users if like is not None else ():
        user.replace_input_with(node, copy)
    return copy


def _uses(exported: ExportedProgram) -> list[Node]:
    import torch

    operator = torch.ops.higher_order.flex_attention
    return [node for node in exported.graph.nodes if node.op == "call_function" and node.target is operator]


def _rewrite(module: GraphModule, node: Node) -> None:
    """Replace one use by the nodes of a trace of plain attention, made with this use's own shapes and graphs."""
    import torch
    from torch.fx.experimental.proxy_tensor import make_fx

    inputs = list(dict.fromkeys(each for each in node.all_input_nodes if each.op != "get_attr"))
    chosen: set[Any] = {user.args[1] for user in node.users}
    wanted = sorted(chosen)
    attend = _attention(module, node.args, wanted)
    shapes = [node.meta["val"][index] for index in wanted]

    def of_inputs(*values: Any) -> list[Tensor]:
        held = dict(zip(inputs, values, strict=True))
        results = attend(lambda argument: held.get(argument, argument))
        return [_laid_out(result, like) for result, like in zip(results, shapes, strict=True)]

    examples = [each.meta["val"] for each in inputs]
    mode: Any = next(getattr(value, "fake_mode", None) for value in examples if isinstance(value, torch.Tensor))
    try:
        with mode:
            traced = make_fx(of_inputs, tracing_mode="symbolic")(*examples)
    except Exception as error:
        raise UnfinishedError(
            f"a score_mod or mask_mod of flex_attention cannot be rewritten: {type(error).__name__}: {error}",
            expected="arithmetic on the score and its indices, and tensors indexed by them",
            fix="change the score_mod or mask_mod, or use --formats aoti",
        ) from error
    placeholders = [each for each in traced.graph.nodes if each.op == "placeholder"]
    with module.graph.inserting_before(node):
        results = module.graph.graph_copy(traced.graph, dict(zip(placeholders, inputs, strict=True)))
    assert isinstance(results, tuple | list)
    for user in list(node.users):
        user.replace_all_uses_with(results[wanted.index(user.args[1])])
        module.graph.erase_node(user)
    module.graph.erase_node(node)


def _attention(
    module: GraphModule, arguments: Sequence[Any], wanted: Sequence[Any]
) -> Callable[[Callable[[Any], Any]], list[Tensor]]:
    """A function of what each argument of the operator stands for, giving the operator's outputs that are `wanted`."""
    query, key, value, score_mod, block_mask, scale, _, score_buffers, mask_buffers = arguments
    score_graph = getattr(module, score_mod.target)
    mask_graph = getattr(module, block_mask[-1].target)

    def attend(stands_for: Callable[[Any], Any]) -> list[Tensor]:
        scores, values = _scores(*map(stands_for, (query, key, value, scale)))
        indices = _indices(scores)
        scores = _over_scores(score_graph, 1, score_buffers)(scores, *indices, *map(stands_for, score_buffers))
        if not _keeps_all(mask_graph):
            kept = _over_scores(mask_graph, 0, mask_buffers)(*indices, *map(stands_for, mask_buffers))
            scores = scores.masked_fill(~kept, -math.inf)
        return _outputs(scores, values, wanted)

    return attend


def _scores(query: Tensor, key: Tensor, value: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    """The scaled scores, in at least float32, and the values, with one key head per query head."""
    import torch

    precision = torch.float64 if query.dtype == torch.float64 else torch.float32
    groups = query.shape[1] // key.shape[1]
    if groups > 1:
        key, value = (each.repeat_interleave(groups, dim=1) for each in (key, value))
    scores = query.to(precision) @ key.to(precision).transpose(-2, -1)
    return scores * scale, value.to(query.dtype)


def _indices(scores: Tensor) -> list[Tensor]:
    import torch

    return [torch.arange(size, device=scores.device) for size in scores.shape]


def _over_scores(graph: GraphModule, scores: int, buffers: Sequence[Any]) -> Callable[..., Tensor]:
    """The graph over all batches, heads, queries and keys; it takes `scores` scores (0 or 1), indices, buffers."""
    import torch

    mapped: Callable[..., Tensor] = graph
    for indices in _INDEX_MAPS:
        mapped = torch.vmap(mapped, in_dims=((0,) * scores + indices + (None,) * len(buffers)))
    return mapped


def _keeps_all(mask: GraphModule) -> bool:
    """Whether it is the mask of a call without one."""
    import torch

    results = mask.graph.output_node().all_input_nodes
    return bool(results) and results[0].target is torch.ops.aten.new_ones.default


def _outputs(scores: Tensor, values: Tensor, wanted: Sequence[Any]) -> list[Tensor]:
    """Of the attention (0) and the sums' logarithms to base 2 (1) those that are wanted.

    The third output, the largest score to base 2, can be asked for on a GPU only.

    A query that may look at no key attends to nothing: its row is 0, where a plain softmax has none.
    """
    import torch

    nothing = (scores == -math.inf).all(dim=-1, keepdim=True)
    given = {
        0: lambda: torch.softmax(scores, dim=-1).masked_fill(nothing, 0.0).to(values.dtype) @ values,
        1: lambda: scores.logsumexp(dim=-1).masked_fill(nothing.squeeze(-1), -math.inf) / math.log(2),
        2: lambda: scores.amax(dim=-1) / math.log(2),
    }
    return [given[index]() for index in wanted]


def _laid_out(tensor: Tensor, like: Tensor) -> Tensor:
    """The tensor with its dimensions in memory in the order of `like`: what follows may take views that need it."""
    order = _order(like)
    return tensor.permute(order).contiguous().permute(_inverse(order))


def _order(tensor: Tensor) -> list[int]:
    """The dimensions from the widest stride to the narrowest."""
    return sorted(range(tensor.dim()), key=tensor.stride, reverse=True)


def _inverse(order: list[int]) -> list[int]:
    return [order.index(dim) for dim in range(len(order))]


def _functional(exported: ExportedProgram) -> ExportedProgram:
    """The same program without operators that write into their inputs, the operator and its graphs included."""
    for node in _uses(exported):
        arguments: Any = node.args
        for graph in (arguments[3], arguments[4][-1]):
            _inline_constants(getattr(exported.graph_module, graph.target))
    functional: ExportedProgram = exported.run_decompositions({})
    return functional


def _inline_constants(mod: GraphModule) -> None:
    """Write the numbers that a score_mod or mask_mod makes for itself (`torch.tensor(2.0)`) into its graph."""
    import torch

    for node in mod.graph.find_nodes(op="get_attr"):
        constant = getattr(mod, node.target)
        if not isinstance(constant, torch.Tensor):
            continue
        if constant.dim():
            raise UnfinishedError(
                f"a score_mod or mask_mod of flex_attention makes a tensor of its own, of shape {list(constant.shape)}",
                expected="tensors made before attention is called, or single numbers",
                fix="make it in the module's __init__, as a buffer",
            )
        with mod.graph.inserting_before(node):
            keywords: Any = {"dtype": constant.dtype, "device": constant.device}
            number = mod.graph.call_function(torch.ops.aten.scalar_tensor.default, (constant.item(),), keywords)
        number.meta = dict(node.meta)
        node.replace_all_uses_with(number)
        mod.graph.erase_node(node)
        delattr(mod, node.target)
    mod.recompile()


def _drop_unused(module: GraphModule) -> None:
    """Remove the block mask's own arithmetic, with the assertions that hold it, and the graphs that were inlined."""
    import torch

    for node in module.graph.find_nodes(op="call_function", target=torch.ops.aten._assert_tensor_metadata.default):
        module.graph.erase_node(node)
    module.graph.eliminate_dead_code()
    module.delete_all_unused_submodules()
    module.graph.lint()
    module.recompile()
