"""The layers of a head that training built: as the user writes them, and as their tensors tell them.

Owns the words of `--head` and what stands for them in a Checkpoint's options. Knows no architecture, needs no torch.
Called by heads; build makes the modules.
"""

import ast
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from deploy.checkpoint.architecture import Shape
from deploy.errors import UsageError

EXAMPLE = "Dropout, Linear, ReLU, Linear"
# Modules of torch.nn that take rows of numbers; those of the second kind hold no weights.
_WEIGHTED = ("Linear", "BatchNorm1d", "LayerNorm", "PReLU")
_BARE = (
    "Dropout", "AlphaDropout", "FeatureAlphaDropout", "Identity", "Flatten", "ReLU", "ReLU6", "LeakyReLU", "ELU",
    "CELU", "SELU", "GELU", "SiLU", "Mish", "Hardswish", "Hardsigmoid", "Hardtanh", "Hardshrink", "Softshrink",
    "Tanhshrink", "Tanh", "Sigmoid", "LogSigmoid", "Softplus", "Softsign", "Softmax", "LogSoftmax", "Threshold",
)  # fmt: skip
_STATISTICS = {"running_mean", "running_var"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Layer:
    """One module of torch.nn with its arguments as they are written, such as `Linear` `512, 5, bias=False`."""

    name: str
    arguments: tuple[str, ...] = ()

    def __str__(self) -> str:
        return f"{self.name}({', '.join(self.arguments)})" if self.arguments else self.name

    @property
    def holds_weights(self) -> bool:
        """Whether it has tensors in a state_dict."""
        return self.name in _WEIGHTED


@dataclass(frozen=True, slots=True, kw_only=True)
class Told:
    """A layer with weights, as its tensors tell it: how many numbers of a row go in, and how many come out.

    A layer of any width, which has one weight for all, takes and gives None.
    """

    layer: Layer
    takes: int | None
    gives: int | None


def parse_layers(text: str) -> tuple[Layer, ...]:
    """What `--head` says: names of torch.nn's layers, in their order, each with its arguments where it needs any.

    Raises UsageError for anything else.
    """
    try:
        listed = ast.parse(f"[{text}\n]", mode="eval").body
        parts = listed.elts if isinstance(listed, ast.List) else []
        layers = tuple(_layer(part) for part in parts)
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise _no_layers(text, str(error).partition(" (")[0]) from None
    if not layers or not any(layer.holds_weights for layer in layers):
        raise _no_layers(text, "there is no layer with weights in it")
    return layers


def parse_layer(text: str) -> tuple[str, tuple[Any, ...], dict[str, Any]]:
    """The name and the arguments of one layer of `parse_layers`, as values."""
    part = ast.parse(text, mode="eval").body
    if not isinstance(part, ast.Call):
        return text, (), {}
    values = tuple(ast.literal_eval(one) for one in part.args)
    return ast.unparse(part.func), values, {one.arg or "": ast.literal_eval(one.value) for one in part.keywords}


def as_told(tensors: Mapping[str, Shape]) -> Told | None:
    """The layer that has these tensors, named as inside it; None where it is none of those known here."""
    names, weight = set(tensors), tensors.get("weight", ())
    if names <= {"weight", "bias"} and len(weight) == 2:
        arguments = (str(weight[1]), str(weight[0]), *(() if "bias" in names else ("bias=False",)))
        return Told(layer=Layer(name="Linear", arguments=arguments), takes=weight[1], gives=weight[0])
    if names == {"weight"} and weight == (1,):
        return Told(layer=Layer(name="PReLU"), takes=None, gives=None)
    if len(weight) != 1 or {*tensors.values()} != {weight}:
        return None
    kind = {frozenset(("weight", "bias")): "LayerNorm", frozenset(("weight", "bias", *_STATISTICS)): "BatchNorm1d"}
    if (name := kind.get(frozenset(names))) is None:
        return None
    return Told(layer=Layer(name=name, arguments=(str(weight[0]),)), takes=weight[0], gives=weight[0])


def merged(said: Layer, told: Told) -> Layer | None:
    """The layer with the sizes that its tensors tell and the arguments that were said; None where they contradict."""
    known = told.layer.arguments
    sizes = tuple(one for one in said.arguments if "=" not in one)
    named = tuple(one for one in said.arguments if "=" in one and one not in known)
    of_other_weights = {"bias=False", "affine=False", "elementwise_affine=False"}.intersection(named)
    if said.name != told.layer.name or sizes != known[: len(sizes)] or of_other_weights:
        return None
    return Layer(name=said.name, arguments=(*known, *named))


def _layer(part: ast.expr) -> Layer:
    """The layer that one part of the list names. Raises ValueError where it names none."""
    named = part.func if isinstance(part, ast.Call) else part
    name = ast.unparse(named).removeprefix("nn.").removeprefix("torch.nn.")
    if name not in (*_WEIGHTED, *_BARE):
        raise ValueError(f"{name} is no layer that is known here")
    if not isinstance(part, ast.Call):
        return Layer(name=name)
    given = [*part.args, *(one.value for one in part.keywords)]
    for value in given:
        ast.literal_eval(value)
    words = (
        *(ast.unparse(one) for one in part.args),
        *(f"{one.arg}={ast.unparse(one.value)}" for one in part.keywords),
    )
    return Layer(name=name, arguments=words)


def _no_layers(text: str, why: str) -> UsageError:
    return UsageError(
        f"--head {text!r} is no list of layers: {why}",
        expected=f"layers of torch.nn in their order, such as {EXAMPLE!r}; sizes are read from the weights",
        fix="use these: " + ", ".join((*_WEIGHTED, *_BARE)) + "; or --factory for another head",
    )
