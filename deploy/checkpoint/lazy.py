"""Weights in another form than the file has them, made for one operator at a time and dropped after it.

Owns the tensor that does so, and its use for a module in a wider dtype. A model in float64 beside its memory-mapped
float32 weights takes three times their size; so it takes them once, and its largest weight on top. Called by load, and
by `validate`, whose eager runs have their weights off by a rounding.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only

LARGE = 1 << 20
"""Bytes from which a weight is worth making again whenever it is read."""


class Lazy(Tensor):
    """A tensor of the same shape as `source`, which is `make(source)` whenever an operator reads it.

    Raises RuntimeError where one writes to it.
    """

    source: Tensor
    make: Callable[[Tensor], Tensor]

    # Python's own functions see a plain tensor; only what computes gets its values.
    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]

    @staticmethod
    def __new__(cls: type["Lazy"], source: Tensor, dtype: torch.dtype, make: Callable[[Tensor], Tensor]) -> "Lazy":
        """The tensor; `dtype` is that of what `make` gives."""
        with torch.inference_mode():  # what is computed there may then be a view of it
            made: Lazy = torch.Tensor._make_wrapper_subclass(
                cls, source.shape, strides=source.stride(), dtype=dtype, device=source.device
            )
        made.source, made.make = source, make
        return made

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:  # type: ignore[override]
        """What the operator gives for the values."""
        for argument, given in zip(func._schema.arguments, args, strict=False):
            if argument.alias_info is not None and argument.alias_info.is_write and isinstance(given, Lazy):
                raise RuntimeError(f"{func} writes to a weight")
        args, kwargs = tree_map_only(Lazy, lambda lazy: lazy.make(lazy.source), (args, kwargs or {}))
        return func(*args, **kwargs)


def is_worth_it(tensor: Tensor, *, large: int = LARGE) -> bool:
    """Whether a tensor has `large` bytes, and lies in memory as a converted one would."""
    return tensor.is_floating_point() and tensor.nbytes >= large and tensor.is_contiguous()


def widen(module: nn.Module, dtype: torch.dtype, *, large: int = LARGE) -> nn.Module:
    """`module.to(dtype)`, with parameters of `large` bytes lazy: the same values for every operator, bit for bit."""
    chosen: list[tuple[nn.Module, str, Tensor]] = []
    for part in module.modules():
        # Recurrent modules keep a second list of their parameters.
        held = {} if isinstance(part, nn.RNNBase) else part._parameters
        chosen += [(part, name, one) for name, one in held.items() if one is not None and is_worth_it(one, large=large)]
    made: dict[int, Tensor] = {}
    for part, name, _ in chosen:
        part._parameters[name] = None
    module.to(dtype)
    for part, name, one in chosen:
        lazy = made.setdefault(id(one), Lazy(one.detach(), dtype, lambda tensor: tensor.to(dtype)))
        part._parameters[name] = lazy  # type: ignore[assignment]
    return module


def convert_parameters(module: nn.Module, dtype: torch.dtype, *, like: nn.Module | None = None) -> nn.Module:
    """`module.to(dtype)`; a parameter of `like` of the same name, dtype and values takes the place of another copy.

    Buffers are always its own: a forward may write to them.
    """
    theirs: dict[str, Tensor] = dict(like.named_parameters()) if like is not None else {}
    names = {id(tensor): name for name, tensor in module.named_parameters()}

    def convert(tensor: Tensor) -> Tensor:
        if not tensor.is_floating_point() or tensor.dtype == dtype:
            return tensor
        made: Tensor = tensor.detach().to(dtype)
        given = theirs.get(names.get(id(tensor), ""))
        if given is not None and given.dtype == dtype and torch.equal(given, made):
            return given.detach()
        return made

    module._apply(convert)
    return module
