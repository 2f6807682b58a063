"""What products and attention read, in the order of memory that their fast kernels want.

Owns which inputs of an exported graph those are. Called by aoti, in a child process.

- `aten::matmul` folds a batch of matrices into one matrix where their rows follow each other in memory, or where a
  weight wants a gradient; an exported program's weights want none, and without the fold the weight is read once per
  row of the batch dimension: in an `nn.MultiheadAttention` with `batch_first` 1.4 times the whole vit_b_16.
- Attention on a GPU has a kernel of its own for a mask whose last dimension lies in order (`sdp_utils.cpp`,
  `check_last_dim_stride_equals_1`). One that is the same everywhere, as transformers make it where a call gives none,
  is one number that stands for all: then it is two products and a softmax, in float16 computed in float32.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import fx

_MATRIX = 2
_MASK = 3  # its place among the arguments of attention


def order_inputs(module: fx.GraphModule) -> None:
    """Put the inputs of linear layers, and the masks of attention, in order, in place.

    What is in order already costs nothing: the compiler drops the node.
    """
    import torch

    aten = torch.ops.aten
    in_order: dict[fx.Node, fx.Node] = {}
    for node in list(module.graph.nodes):
        if node.target in (aten.linear.default, aten.matmul.default):
            batch, matrix = node.args[:2]
            if _rank(batch) > _MATRIX and _rank(matrix) == _MATRIX:
                _order(module, batch, node, in_order)
        elif node.target is aten.scaled_dot_product_attention.default:
            mask = node.args[_MASK] if len(node.args) > _MASK else node.kwargs.get("attn_mask")
            if mask is not None and _last_stride(mask) != 1:
                _order(module, mask, node, in_order)
    module.recompile()


def _order(module: fx.GraphModule, value: fx.Node, user: fx.Node, in_order: dict[fx.Node, fx.Node]) -> None:
    """Let the user read the value in order; once it is in `in_order`, every user reads the same."""
    import torch

    if value not in in_order:
        with module.graph.inserting_before(user):
            made = module.graph.call_function(torch.ops.aten.contiguous.default, (value,))
        made.meta["val"] = value.meta["val"].contiguous()
        in_order[value] = made
    user.replace_input_with(value, in_order[value])


def _rank(node: fx.Node) -> int:
    """The number of a value's dimensions, 0 where the graph does not say."""
    value = node.meta.get("val")
    return 0 if value is None else int(value.dim())


def _last_stride(node: fx.Node) -> object:
    """How far in memory a value's neighbours lie in its last dimension, 1 where the graph does not say."""
    value = node.meta.get("val")
    return 1 if value is None else value.stride()[-1]
