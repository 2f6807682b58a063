"""A module's inputs and outputs in one stated order: what `INPUT__i` and `OUTPUT__i` count.

Owns the order, the names and how inputs reach the forward; exports nothing. Called by export, and by `validate` to run
eager in the same order.

The order: a tensor is one output; tuples and lists in order; mappings in their own insertion order, dataclasses in the
order of their fields; nested ones depth first. None is no output.
"""

from __future__ import annotations

import copy
import re
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import fields, is_dataclass
from inspect import Parameter, signature
from typing import TYPE_CHECKING, Any

from deploy.errors import UsageError
from deploy.spec import unique_names

if TYPE_CHECKING:
    from torch import Tensor, nn

    from deploy.checkpoint.model import Checkpoint

    Arrange = Callable[[Sequence[Tensor]], tuple[tuple[Any, ...], dict[str, Any]]]


def flat_module(
    checkpoint: Checkpoint, dtype: str | None = None, *, as_in_training: bool = False, lazily: bool = False
) -> nn.Module:
    """The checkpoint's module as `positional` makes it; `dtype`, `as_in_training` and `lazily` are `build_module`'s."""
    from deploy.checkpoint.load import build_module

    module = build_module(checkpoint, dtype, as_in_training=as_in_training, lazily=lazily)
    return positional(module, [tensor.name for tensor in checkpoint.inputs], checkpoint.absent)


def positional(module: nn.Module, names: Sequence[str] = (), absent: Sequence[str] = ()) -> nn.Module:
    """The same module, taking its inputs positionally and returning a flat list of tensors, a row per sample in each.

    It shares all parameters, buffers and submodules with `module`, under the same names: a wrapper round it would
    prefix every weight's name, in the program and in the artifacts too. `names` and `absent` are `arguments_of`'s.
    """
    from torch.fx import GraphModule
    from torch.nn import Module

    original: type[nn.Module]
    original, half = type(module), _half(module)
    arrange = arguments_of(module, names, absent)
    twin = copy.copy(module)
    own_forward = vars(twin).pop("forward", None)
    if isinstance(module, GraphModule):
        # As one of these it would be exported by its graph, and the forward below never called.
        twin, original, own_forward = Module(), Module, module.forward
        vars(twin).update({name: value for name, value in vars(module).items() if name != "forward"})
    before, after = _hooks_taken_off(twin)

    def forward(self: nn.Module, *inputs: Tensor) -> list[Tensor]:
        given, named = before(arrange(inputs))
        outputs = own_forward(*given, **named) if own_forward else original.forward(self, *given, **named)
        outputs = after((given, named), outputs)
        return [_with_rows(_exchanged(tensor, inputs, half), inputs) for _, tensor in leaves(outputs)]

    twin.__class__ = type(f"Positional{original.__name__}", (original,), {"forward": forward})
    return twin


def arguments_of(module: nn.Module, names: Sequence[str], absent: Sequence[str] = ()) -> Arrange:
    """How inputs in the spec's order are given to the forward: as keywords if those are the names of its parameters.

    Where they are not (a spec says `image`, the forward `x`), they are given in order. Those `absent` are given None.
    Half-precision weights get floating inputs in their own dtype, where clients send a wider one.
    """
    none, half = dict.fromkeys(absent), _half(module)
    keywords = bool(names) and _are_keywords(module, names, absent)
    # What looks at the arguments before the forward does expects them as people give them.
    keywords = keywords and not (module._forward_pre_hooks and _in_order(module, names))

    def arrange(inputs: Sequence[Tensor]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        given = [one.to(half) if half is not None and one.is_floating_point() else one for one in inputs]
        return ((), {**dict(zip(names, given, strict=True)), **none}) if keywords else (tuple(given), dict(none))

    return arrange


def output_names(example_outputs: object) -> tuple[str, ...]:
    """A unique name per output, in flattened order, from what the module itself returned.

    `output` for a lone tensor, `output_0`, `output_1`, ... for a sequence, a mapping's own keys and a named tuple's own
    fields; nested ones are joined by `_`. Raises UsageError if there is no output, or one that is not a tensor.
    """
    names = unique_names([_name(path) for path, _ in leaves(example_outputs)])
    if not names:
        raise UsageError("the model returns no tensors", expected="at least one tensor")
    return names


def leaves(value: Any, path: tuple[str | int, ...] = ()) -> Iterator[tuple[tuple[str | int, ...], Tensor]]:
    """Each tensor of a module's outputs with its path, in flattened order. Raises UsageError for anything else."""
    import torch

    if value is None:
        return
    if isinstance(value, torch.Tensor):
        yield path, value
        return
    for key, item in _children(value, path):
        yield from leaves(item, (*path, key))


def _are_keywords(module: nn.Module, names: Sequence[str], absent: Sequence[str]) -> bool:
    try:
        takes = list(signature(module.forward).parameters.values())
    except (TypeError, ValueError):
        return False
    by_name = {p.name for p in takes if p.kind in (Parameter.POSITIONAL_OR_KEYWORD, Parameter.KEYWORD_ONLY)}
    if by_name.issuperset(names):
        return True
    # A forward that only hands on what it gets, as wrappers do, names nothing: the user's names are then all there is.
    required = {p.name for p in takes if p.default is Parameter.empty and p.name in by_name}
    hands_on = any(p.kind is Parameter.VAR_KEYWORD for p in takes) and required <= {*names, *absent}
    return hands_on and not any(re.fullmatch(r"input_\d+", name) for name in names)


def _in_order(module: nn.Module, names: Sequence[str]) -> bool:
    """Whether these are the forward's first parameters."""
    positional_ones = (Parameter.POSITIONAL_ONLY, Parameter.POSITIONAL_OR_KEYWORD)
    takes = [p.name for p in signature(module.forward).parameters.values() if p.kind in positional_ones]
    return list(names) == takes[: len(names)]


def _hooks_taken_off(twin: nn.Module) -> tuple[Callable[[Any], Any], Callable[[Any, Any], Any]]:
    """What the module's own hooks do before and after its forward; the twin has them no more.

    They belong to the arguments and outputs of that forward, not to flat lists.
    """
    early, late = dict(twin._forward_pre_hooks), dict(twin._forward_hooks)
    with_keywords = {*twin._forward_pre_hooks_with_kwargs, *twin._forward_hooks_with_kwargs}
    twin._forward_pre_hooks, twin._forward_hooks = OrderedDict(), OrderedDict()

    def before(arguments: Any) -> Any:
        given, named = arguments
        for key, hook in early.items():
            changed: Any = hook(twin, given, named) if key in with_keywords else hook(twin, given)
            if changed is not None and key in with_keywords:
                given, named = changed
            elif changed is not None:
                given = changed if isinstance(changed, tuple) else (changed,)
        return given, named

    def after(arguments: Any, outputs: Any) -> Any:
        given, named = arguments
        for key, hook in late.items():
            changed: Any = hook(twin, given, named, outputs) if key in with_keywords else hook(twin, given, outputs)
            outputs = outputs if changed is None else changed
        return outputs

    return before, after


def _exchanged(output: Tensor, inputs: Sequence[Tensor], half: Any) -> Tensor:
    """The output; one of half precision in the dtype of the inputs, which is the one that clients exchange.

    Clients have no bfloat16: where there is no such input, float32 stands for it.
    """
    import torch

    if output.dtype not in (half, torch.bfloat16):
        return output
    own = torch.float32 if output.dtype == torch.bfloat16 else output.dtype
    return output.to(next((one.dtype for one in inputs if one.is_floating_point()), own))


def _half(module: nn.Module) -> Any:
    """The dtype of half-precision weights, None of others."""
    import torch

    floats = (one.dtype for one in module.parameters() if one.is_floating_point())
    dtype = next(floats, None)
    return dtype if dtype in (torch.float16, torch.bfloat16) else None


def _with_rows(tensor: Tensor, inputs: Sequence[Tensor]) -> Tensor:
    """The tensor; a single number is repeated for each row, since Triton knows no tensor without dimensions."""
    return tensor if tensor.dim() else tensor.reshape(1, 1).repeat(inputs[0].shape[0], 1)


def _children(value: Any, path: tuple[str | int, ...]) -> Iterator[tuple[str | int, Any]]:
    if isinstance(value, Mapping):
        return ((str(key), item) for key, item in value.items())
    if is_dataclass(value) and not isinstance(value, type):
        return ((field.name, getattr(value, field.name)) for field in fields(value))
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return zip(value._fields, value, strict=True)
    if isinstance(value, tuple | list):
        return enumerate(value)
    raise UsageError(
        f"the model's {_name(path)} is a {type(value).__name__}",
        expected="a tensor, or tuples, lists, dicts and dataclasses of tensors",
        fix="return tensors only from the model's forward",
    )


def _name(path: tuple[str | int, ...]) -> str:
    parts = path if path and isinstance(path[0], str) else ("output", *path)
    return "_".join(str(part) for part in parts)
