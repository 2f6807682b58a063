"""The key of a program before it is exported: everything that decides the graph, but the values of the weights.

Owns which modules have such a key. An exporter sees the code that runs, the Python values that it reads, and fake
tensors in place of the weights: so a graph follows from the classes' code, the modules' attributes, and names, shapes
and strides of the weights. All of that is seen for modules whose every class belongs to a library of `LIBRARIES`. The
user's own code may read a file, a global, anything: it has no key and is exported every time. Called by export.
"""

from __future__ import annotations

import enum
import functools
import json
import platform
import sys
import types
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from deploy import __version__
from deploy.checkpoint.model import Checkpoint
from deploy.convert.hollow import is_as_built
from deploy.convert.reuse import layout, tensor_digest
from deploy.files import sha256_bytes, sha256_file

if TYPE_CHECKING:
    from torch import nn

LIBRARIES = ("torchvision", "timm", "transformers")

_TRUSTED = {"torch", "deploy", *LIBRARIES}
# What a checkpoint says of its file, its names and its history: nothing that a graph could follow from.
_OF_THE_FILE = {
    "path", "base", "digest", "format", "name", "how", "size", "classes", "found_under", "weights", "removed_prefixes",
    "trust_pickle", "kept", "notes",
}  # fmt: skip
# What every module keeps for itself, told in another way or not at all; and where transformers notes a folder.
_SKIPPED = {"_parameters", "_buffers", "_modules", "_name_or_path", "name_or_path", "_commit_hash"}
_CONFIGS = ("config.json", "modules.json", "sentence_bert_config.json")
_HOOKS = ("_forward_hooks", "_forward_pre_hooks")
_DEEPEST = 12


def program_key(checkpoint: Checkpoint, module: nn.Module, *, max_batch: int) -> str | None:
    """The hex SHA-256 of all that decides the program; None where something could decide it that is not seen here."""
    import torch

    if checkpoint.how not in ("inferred", "asked", "config") or not checkpoint.architecture.startswith(
        tuple(f"{library}/" for library in LIBRARIES)
    ):
        return None
    if not is_as_built(module, checkpoint):
        return None  # converted, quantized, or of tensors that have code of their own
    try:
        described = describe(module)
    except UnknownPart:
        return None
    tensors = {name: tensor.detach() for name, tensor in module.state_dict(keep_vars=True).items()}
    facts = {
        "kind": "program",
        "checkpoint": checkpoint.model_dump(mode="json", exclude=_OF_THE_FILE),
        "configs": list(_configs(checkpoint.path)),
        "max_batch": max_batch,
        "module": described,
        "layout": list(layout(tensors)),
        "libraries": list(_library_sources()),
        "torch": [torch.__version__, torch.version.git_version, str(torch.get_default_dtype())],
        "machine": [platform.machine(), platform.python_version()],
        "deployctl": [__version__, *_own_sources()],
    }
    return sha256_bytes(json.dumps(facts, sort_keys=True).encode())


class UnknownPart(Exception):  # noqa: N818 - no error: the module is exported as it always was
    """A module holds something that a graph could follow from in a way that cannot be told."""


def describe(module: nn.Module) -> list[object]:
    """Every module's class, attributes and buffers that no state_dict holds, as JSON. Raises UnknownPart."""
    seen: dict[int, int] = {}
    return [
        [name, seen.setdefault(id(part), len(seen)), *_part(part, seen)]
        for name, part in module.named_modules(remove_duplicate=False)
    ]


def _part(part: nn.Module, seen: dict[int, int]) -> Iterator[object]:
    yield _class(type(part))
    held = vars(part)
    _check_trusted(type(part).forward.__module__, type(part).__qualname__)
    if "forward" in held or any(held.get(hooks) for hooks in _HOOKS):
        raise UnknownPart(f"{type(part).__name__} runs something else than its class's forward")
    kept = sorted(key for key in held if key not in _SKIPPED and not key.endswith("_hooks"))
    yield {key: _value(held[key], seen, 0) for key in kept}
    unkept = ((name, part._buffers[name]) for name in sorted(part._non_persistent_buffers_set))
    yield {name: None if tensor is None else tensor_digest(tensor) for name, tensor in unkept}


def _value(value: object, seen: dict[int, int], depth: int) -> object:  # noqa: PLR0911 - one line per kind of value
    """An attribute as JSON. Raises UnknownPart for what may hide something else."""
    import numpy as np
    import torch

    if depth > _DEEPEST:
        raise UnknownPart("nested too deeply")
    if value is None or isinstance(value, bool | int | float | complex | str | bytes) or _is_named(value):
        return [_class(type(value)), repr(value)]
    if isinstance(value, torch.Tensor):
        return [_class(type(value)), str(value.dtype), list(value.shape), tensor_digest(value)]
    if isinstance(value, np.ndarray | np.generic):
        return [str(value.dtype), list(value.shape), sha256_bytes(value.tobytes())]
    if isinstance(value, type):
        return _class(value)
    if isinstance(value, functools.partial):
        return ["partial", [_value(one, seen, depth + 1) for one in (value.func, value.args, value.keywords)]]
    if isinstance(value, types.FunctionType | types.BuiltinFunctionType | types.MethodType):
        return _function(value, seen, depth)
    # A cycle, or an object that many modules share: transformers gives each its config.
    if not isinstance(value, list | tuple):
        if id(value) in seen:
            return ["seen", seen[id(value)]]
        seen[id(value)] = len(seen)
    return _container(value, seen, depth)


def _container(value: object, seen: dict[int, int], depth: int) -> object:
    def inner(one: object) -> object:
        return _value(one, seen, depth + 1)

    if isinstance(value, Mapping):
        return [_class(type(value)), [[inner(key), inner(one)] for key, one in value.items()]]
    if isinstance(value, list | tuple):
        return [_class(type(value)), [inner(one) for one in value]]
    if isinstance(value, set | frozenset):
        return [_class(type(value)), sorted(json.dumps(inner(one)) for one in value)]
    if not hasattr(value, "__dict__") or isinstance(value, types.ModuleType) or _is_module(value):
        raise UnknownPart(f"a {type(value).__qualname__}")
    held = {key: one for key, one in sorted(vars(value).items()) if key not in _SKIPPED}
    return [_class(type(value)), [[key, inner(one)] for key, one in held.items()]]


def _function(value: Any, seen: dict[int, int], depth: int) -> object:
    """A function by its name, with what it closes over. Raises UnknownPart if it is not of code that is seen here."""
    owner = getattr(value, "__self__", None)
    bound = owner if not isinstance(owner, types.ModuleType | type(None)) else None
    if bound is not None and not isinstance(bound, type):
        raise UnknownPart(f"the bound method {value.__qualname__}")
    module = getattr(value, "__module__", None)
    if module is not None:  # None for functions written in C, torch's among them
        _check_trusted(module, value.__qualname__)
    held = [cell.cell_contents for cell in getattr(value, "__closure__", None) or ()]
    held += [getattr(value, "__defaults__", None), getattr(value, "__kwdefaults__", None)]
    line = value.__code__.co_firstlineno if hasattr(value, "__code__") else 0  # several may be called <lambda>
    return ["function", str(module), value.__qualname__, line, [_value(one, seen, depth + 1) for one in held]]


def _class(cls: type) -> str:
    """The class's whole name. Raises UnknownPart if it or a class before it is of other code."""
    for one in cls.__mro__:
        _check_trusted(one.__module__, one.__qualname__)
    return f"{cls.__module__}.{cls.__qualname__}"


def _check_trusted(module: str, name: str) -> None:
    top = module.partition(".")[0]
    if (top not in _TRUSTED and top not in sys.stdlib_module_names) or top == "__main__":
        raise UnknownPart(f"{module}.{name}")


def _is_named(value: object) -> bool:
    """Whether a value's text says all of it: dtypes, devices, members of an enumeration."""
    import torch

    return isinstance(
        value, torch.dtype | torch.device | torch.layout | torch.memory_format | enum.Enum | range | slice
    )


def _is_module(value: object) -> bool:
    import torch

    return isinstance(value, torch.nn.Module)


def _configs(path: Path) -> Iterator[list[str]]:
    """The digests of a folder's configs: what its class was built from."""
    if path.is_dir():
        for file in sorted(file for file in path.rglob("*.json") if file.name in _CONFIGS):
            yield [file.relative_to(path).as_posix(), sha256_file(file)]


def _library_sources() -> Iterator[str]:
    """The digest of every source file of the libraries that is loaded here."""
    for name, module in sorted(sys.modules.items()):
        file = getattr(module, "__file__", None)
        if name.partition(".")[0] in LIBRARIES and file and file.endswith(".py"):
            yield f"{name} {sha256_file(Path(file))}"


@functools.cache
def _own_sources() -> tuple[str, ...]:
    """The digests of the files of ours that build, change and export a module."""
    here = Path(__file__).parents[1]
    files = sorted(
        [here / "spec.py", *here.joinpath("checkpoint").glob("*.py"), *here.joinpath("convert").glob("*.py")]
    )
    return tuple(f"{path.parent.name}/{path.name} {sha256_file(path)}" for path in files)
