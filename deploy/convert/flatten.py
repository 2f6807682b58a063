"""A module's inputs and outputs in one stated order: what `INPUT__i` and `OUTPUT__i` count.

Owns the order and the names; exports nothing. Called by export, and by `validate` to run eager in the same order.

The order: a tensor is one output; tuples and lists in order; mappings in their own insertion order; nested ones depth
first.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from deploy.errors import UsageError
from deploy.spec import unique_names

if TYPE_CHECKING:
    from torch import Tensor, nn


def positional(module: nn.Module) -> nn.Module:
    """The same module, taking its inputs positionally and returning a flat list of tensors.

    It shares all parameters, buffers and submodules with `module`, under the same names: a wrapper round it would
    prefix every weight's name, in the program and in the artifacts too.
    """
    original = type(module)
    twin = copy.copy(module)
    own_forward = vars(twin).pop("forward", None)

    def forward(self: nn.Module, *inputs: Tensor) -> list[Tensor]:
        outputs = own_forward(*inputs) if own_forward else original.forward(self, *inputs)
        return [tensor for _, tensor in _leaves(outputs, ())]

    twin.__class__ = type(f"Positional{original.__name__}", (original,), {"forward": forward})
    return twin


def output_names(example_outputs: object) -> tuple[str, ...]:
    """A unique name per output, in flattened order, from what the module itself returned.

    `output` for a lone tensor, `output_0`, `output_1`, ... for a sequence, a mapping's own keys and a named tuple's own
    fields; nested ones are joined by `_`. Raises UsageError if there is no output, or one that is not a tensor with a
    dimension.
    """
    names = unique_names([_name(path) for path, _ in _leaves(example_outputs, ())])
    if not names:
        raise UsageError("the model returns no tensors", expected="at least one tensor")
    return names


def _leaves(value: Any, path: tuple[str | int, ...]) -> Iterator[tuple[tuple[str | int, ...], Tensor]]:
    import torch

    if isinstance(value, torch.Tensor):
        _check_dimensions(value, path)
        yield path, value
        return
    for key, item in _children(value, path):
        yield from _leaves(item, (*path, key))


def _children(value: Any, path: tuple[str | int, ...]) -> Iterator[tuple[str | int, Any]]:
    if isinstance(value, Mapping):
        return ((str(key), item) for key, item in value.items())
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return zip(value._fields, value, strict=True)
    if isinstance(value, tuple | list):
        return enumerate(value)
    raise UsageError(
        f"the model's {_name(path)} is a {type(value).__name__}",
        expected="a tensor, or tuples, lists and dicts of tensors",
        fix="return tensors only from the model's forward",
    )


def _check_dimensions(tensor: Tensor, path: tuple[str | int, ...]) -> None:
    if tensor.dim() == 0:
        raise UsageError(
            f"the model's {_name(path)} is a single number, a tensor without dimensions",
            expected="one row per sample",
            fix="leave it out of what the model's forward returns, or give it a batch dimension",
        )


def _name(path: tuple[str | int, ...]) -> str:
    parts = path if path and isinstance(path[0], str) else ("output", *path)
    return "_".join(str(part) for part in parts)
