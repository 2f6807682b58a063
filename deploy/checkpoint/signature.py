"""The inputs of a module that the user's factory gives: which parameters of its forward, of what dtype and range.

Owns matching what was asked with the forward's signature. Called by understand, and by whoever has a module and the
user's words for its inputs.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from inspect import Parameter, signature
from typing import TYPE_CHECKING

from pydantic import ValidationError

from deploy.checkpoint.inputs import with_dynamic
from deploy.checkpoint.model import CheckpointRequest, InputRequest, ValuesRequest
from deploy.errors import UsageError
from deploy.spec import BATCH, DTYPES, Dim, TensorSpec

if TYPE_CHECKING:
    from torch import nn

# What is exported takes these; the others are of language models.
_TAKEN = tuple(dtype for dtype in DTYPES if dtype not in ("string", "uint32"))
_POSITIONAL = (Parameter.POSITIONAL_ONLY, Parameter.POSITIONAL_OR_KEYWORD)
_NAMED = (*_POSITIONAL, Parameter.KEYWORD_ONLY)


@dataclass(frozen=True, slots=True, kw_only=True)
class Signature:
    """The answer: the inputs, the bounds of their dynamic dims, and the parameters that are given None."""

    inputs: tuple[TensorSpec, ...]
    dims: tuple[Dim, ...]
    absent: tuple[str, ...]


def read_signature(request: CheckpointRequest, module: "nn.Module", *, dtype: str) -> Signature:
    """The inputs as asked for, of `dtype` where none was said. Raises UsageError if the forward cannot take them."""
    named = list(zip(_names(request, module), request.inputs, strict=True))
    tensors = tuple(_tensor(name, one, dtype=dtype) for name, one in named if one.shape is not None)
    tensors, dims = with_dynamic(tensors, request.dynamic)
    return Signature(
        inputs=with_values(tensors, request.values),
        dims=dims,
        absent=tuple(name for name, one in named if one.shape is None),
    )


def _tensor(name: str, asked: InputRequest, *, dtype: str) -> TensorSpec:
    assert asked.shape is not None
    if asked.dtype is not None and asked.dtype not in _TAKEN:
        raise UsageError(
            f"--input-shape {name}: a network takes no tensor of dtype {asked.dtype!r}",
            expected=f"one of {', '.join(_TAKEN)}",
            fix="let the forward take numbers: token ids for texts, real and imaginary parts for complex numbers",
        )
    return TensorSpec(name=name, dtype=asked.dtype or dtype, shape=(BATCH, *asked.shape))


def with_values(tensors: tuple[TensorSpec, ...], requests: Sequence[ValuesRequest]) -> tuple[TensorSpec, ...]:
    """The inputs with the ranges that were asked for. Raises UsageError for a name or a dtype that none fits."""
    named = {tensor.name: tensor for tensor in tensors}
    for request in requests:
        if request.input not in named:
            raise UsageError(
                f"--values {request.input}: there is no input {request.input!r}", expected=f"one of {', '.join(named)}"
            )
        tensor = named[request.input]
        try:
            named[request.input] = TensorSpec.model_validate(
                {**tensor.model_dump(), "values": request.range, "mask": request.range is None}
            )
        except ValidationError as error:
            said = error.errors()[0]["msg"].removeprefix("Value error, ")
            raise UsageError(
                f"--values {request.input}: {said}",
                expected="LOW..HIGH for an integer input, or mask",
                fix=f"say its dtype with --input-shape {request.input}=int64:SIZES",
            ) from error
    return tuple(named.values())


def range_notes(tensors: Sequence[TensorSpec]) -> tuple[str, ...]:
    """What to say of integer inputs whose range nobody gave: token ids, say, of which seeded checks try two."""
    return tuple(
        f"input {one.name!r}: seeded checks try 0 and 1 only; --values {one.name}=0..LAST gives its range"
        for one in tensors
        if "int" in one.dtype and one.values is None and not one.mask
    )


def _names(request: CheckpointRequest, module: "nn.Module") -> list[str]:
    """The forward's parameter for each input asked for: by its name, else the next one that is not named elsewhere."""
    takes = list(signature(module.forward).parameters.values())
    named = [one.name for one in request.inputs if one.name is not None]
    _check_names(request, takes, named)
    free = [p.name for p in takes if p.kind in _POSITIONAL and p.name not in named and _may_be_tensor(p)]
    names: list[str] = []
    for one in request.inputs:
        names.append(one.name or (free.pop(0) if free else f"input_{len(names)}"))
    missing = [p.name for p in takes if p.kind in _NAMED and p.default is Parameter.empty and p.name not in names]
    unknown = [name for name in names if name not in {p.name for p in takes}]
    hands_on = any(p.kind is Parameter.VAR_POSITIONAL for p in takes)
    if not names or missing or (unknown and not named and not hands_on):
        raise _wrong_number(request, takes, missing)
    return names


def _may_be_tensor(parameter: Parameter) -> bool:
    """Not of one that says to be a Python value: a switch given a tensor would pass, and mean something else."""
    plain = (bool, int, float, str)
    says = parameter.annotation in (*plain, *(kind.__name__ for kind in plain))
    return not says and (parameter.default is Parameter.empty or not isinstance(parameter.default, plain))


def _check_names(request: CheckpointRequest, takes: Sequence[Parameter], named: Sequence[str]) -> None:
    known = {p.name for p in takes if p.kind in _NAMED}
    hands_on = any(p.kind is Parameter.VAR_KEYWORD for p in takes)
    unknown = [name for name in named if name not in known and not hands_on]
    if unknown or len(set(named)) != len(named):
        wrong = f"no parameter {unknown[0]!r}" if unknown else f"one {max(named, key=named.count)!r}, named twice"
        raise UsageError(
            f"--factory {request.factory}: its forward takes {wrong}", expected=f"one of {', '.join(sorted(known))}"
        )


def _wrong_number(request: CheckpointRequest, takes: Sequence[Parameter], missing: Sequence[str]) -> UsageError:
    names = ", ".join(p.name for p in takes if p.kind in _NAMED)
    given = len(request.inputs)
    needed = missing or [p.name for p in takes if p.kind in _NAMED][:1] or ["SHAPE"]
    forms = " ".join(f"--input-shape {name}=SHAPE" for name in needed)
    return UsageError(
        f"--factory {request.factory}: {given} input shapes were given, and its forward takes ({names})",
        expected="one --input-shape per input, without the batch dim, such as --input-shape 3,224,224",
        fix=f"add {forms}; NAME=none gives None" if missing or not given else "leave out what it does not take",
    )
