"""Whether a module answers the same inputs alike in every call, as each proof and each client takes for granted.

Owns the comparison and what is said of a module that does not. Called by export, with two answers of eager.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from deploy.convert.explain import traced_line
from deploy.convert.flatten import leaves
from deploy.errors import UsageError

if TYPE_CHECKING:
    from torch import Tensor, nn
    from torch.export import ExportedProgram
    from torch.fx import Node

# Of the largest value: far above what sums in another order come to, and far below what dropout or a state does.
_ALIKE = 1e-3
# Operators whose answer is drawn anew, by the beginnings of their names. Others that torch marks as random draw only
# for an argument: an LSTM for its dropout, attention for its own.
_DRAWS = ("rand", "bernoulli", "multinomial", "normal", "exponential", "geometric", "uniform", "log_normal", "cauchy",
          "poisson", "binomial")  # fmt: skip
_DROPOUT = "dropout"


def buffer_versions(module: nn.Module) -> dict[str, int]:
    """How many times each buffer was changed in place so far."""
    return {name: 0 if one.is_inference() else one._version for name, one in module.named_buffers()}


def require_inputs_kept(inputs: Mapping[str, Tensor], versions: Sequence[int]) -> None:
    """Raises UsageError if a call changed an input in place, whose versions were these before it."""
    written = [name for (name, one), version in zip(inputs.items(), versions, strict=True) if one._version != version]
    if written:
        raise UsageError(
            f"the forward changes its input {', '.join(written)} in place",
            expected="inputs left as they are: a server and every check use them again",
            fix="compute a new tensor (x = x - mean, not x.sub_(mean) or x -= mean), or begin with x = x.clone()",
        )


def require_repeatable(first: Any, second: Any, exported: ExportedProgram, *, changed: Sequence[str]) -> None:
    """Raises UsageError if two answers to the same inputs differ, naming the buffers `changed`, or what is random.

    Two answers may be alike by luck: what draws at random and reaches an output is refused too.
    """
    one, other = ([tensor for _, tensor in leaves(answer)] for answer in (first, second))
    if len(one) == len(other) and all(map(alike, one, other)) and not _random(exported):
        return
    found = "the model answers the same inputs differently in each call"
    if changed:
        raise UsageError(
            f"{found}: it changes its own {', '.join(changed[:5])}",
            expected="a forward that keeps nothing: requests come from anybody and in any order",
            fix="leave that state alone outside of training (if self.training), or make it an input and an output",
        )
    raise UsageError(
        f"{found}{_random(exported)}",
        expected="answers that follow from the inputs alone",
        fix="leave what is random to training (training=self.training), or make the noise an input",
    )


def changed_buffers(before: Mapping[str, int], module: nn.Module) -> list[str]:
    """The buffers that were changed since their versions were those of `before`."""
    return [name for name, version in buffer_versions(module).items() if version != before.get(name)]


def alike(first: Tensor, second: Tensor) -> bool:
    """Whether two answers are one but for the order of summation; integers and truth values exactly."""
    import torch

    if first.shape != second.shape:
        return False
    if not first.is_floating_point():
        return torch.equal(first, second)
    first, second = (torch.nan_to_num(one.double()) for one in (first, second))
    return first.numel() == 0 or bool((first - second).abs().max() <= _ALIKE * first.abs().max())


def _random(exported: ExportedProgram) -> str:
    """`: torch's OPERATOR is random (in FILE:LINE, ...)` for the first that reaches an output, empty without one."""
    reaching: set[Any] = set()
    for node in reversed(exported.graph.nodes):
        if node.op == "output" or reaching.intersection(node.users):
            reaching.add(node)
    for node in exported.graph.nodes:
        if node in reaching and node.op == "call_function" and _draws(node):
            return f": torch's {node.target} is random{traced_line(node.meta.get('stack_trace') or '')}"
    return ""


def _draws(node: Node) -> bool:
    name = str(getattr(getattr(node.target, "overloadpacket", None), "__name__", "")).lstrip("_")
    if _DROPOUT in name:
        named: dict[str, Any] = dict(zip(("input", "p", "train"), node.args, strict=False)) | node.kwargs
        return named.get("train", True) is not False and bool(named.get("p") != 0)
    return name.startswith(_DRAWS)
