"""Linear layers of a transposed input as one product of two matrices, as eager computes them.

Owns which nodes of an exported graph that is. `aten::matmul` folds a batch of matrices into one matrix where their rows
follow each other in memory, or where a weight wants a gradient; an exported program's weights want none, and without
the fold the weight is read once per row of the batch dimension: in every `nn.MultiheadAttention` with `batch_first`,
1.4 times the whole vit_b_16. Called by aoti, in a child process.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import fx

_MATRIX = 2


def fold_linear_inputs(module: fx.GraphModule) -> None:
    """Put the input of each product of a batch of matrices and one matrix in order, in place.

    An input that is in order already costs nothing: the compiler drops the node.
    """
    import torch

    aten = torch.ops.aten
    for node in list(module.graph.nodes):
        if node.target not in (aten.linear.default, aten.matmul.default):
            continue
        batch, matrix = node.args[:2]
        if _rank(batch) <= _MATRIX or _rank(matrix) != _MATRIX:
            continue
        with module.graph.inserting_before(node):
            in_order = module.graph.call_function(aten.contiguous.default, (batch,))
        in_order.meta["val"] = batch.meta["val"]
        node.replace_input_with(batch, in_order)
    module.recompile()


def _rank(node: fx.Node) -> int:
    """The number of a value's dimensions, 0 where the graph does not say."""
    value = node.meta.get("val")
    return 0 if value is None else value.dim()
