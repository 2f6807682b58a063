"""The user's own architecture: a function named `package.module:function` that gives a module.

Owns importing it, calling it, and saying whose line failed. Compares nothing.
Called by load, in the command's process for `inspect` and in children otherwise.
"""

import importlib
import inspect
import os
import sys
import traceback
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import redirect_stdout
from typing import Any

from torch import nn
from torch.nn.parameter import UninitializedParameter

from deploy.checkpoint.build import left_on_meta, parameters_on_meta
from deploy.checkpoint.vision import import_torchvision
from deploy.errors import UsageError

_TORCHVISION = "operator torchvision::"  # of torch's words for an operator that it does not have
_FORM = "package.module:function, importable from the current directory"


def find_factory(reference: str) -> Callable[..., Any]:
    """The function that `reference` names; the current directory is on the path for it.

    Raises UsageError if the form is wrong, the import fails, or what it names is absent or not callable.
    """
    module_name, separator, path = reference.partition(":")
    if not (separator and module_name and path):
        raise UsageError(f"--factory {reference!r} has no module and function in it", expected=_FORM)
    found: Any = _import(reference, module_name)
    for name in path.split("."):
        if not hasattr(found, name):
            raise UsageError(f"--factory {reference}: {module_name} has no {path!r}", expected=_FORM)
        found = getattr(found, name)
    if not callable(found):
        raise UsageError(
            f"--factory {reference} is of type {type(found).__name__}, not a function",
            expected="a callable giving a module",
        )
    return found  # type: ignore[no-any-return]


def keyword_choices(reference: str, classes: int | None, *, settings: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The keywords to try calling it with, best first: hyper-parameters of the file, `num_classes`, then none.

    Of the `settings` it gets those that it names. Raises UsageError if it needs arguments that nothing here can give.
    """
    function = find_factory(reference)
    try:
        parameters = inspect.signature(function).parameters
    except (TypeError, ValueError):
        return [{}]
    variable = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    named = [p.name for p in parameters.values() if p.kind not in variable]
    needed = {p.name for p in parameters.values() if p.default is p.empty and p.kind not in variable}
    counted = {"num_classes": classes} if "num_classes" in named and classes is not None else {}
    told = {name: settings[name] for name in named if name in settings}
    choices: list[dict[str, Any]] = []
    for keywords in ({**counted, **told}, told, counted, {}):
        if needed <= set(keywords) and keywords not in choices:
            choices.append(keywords)
    if not choices:
        raise UsageError(
            f"--factory {reference} needs the arguments {', '.join(p for p in named if p in needed)}",
            expected="a function that takes nothing, num_classes, or hyper-parameters that the file holds"
            + (f": {', '.join(list(settings)[:12])}" if settings else ""),
            fix="wrap it in a function that fills them in",
        )
    return choices


def call_factory(reference: str, keywords: Mapping[str, Any], *, filled: Collection[str]) -> nn.Module:
    """The module that the factory gives, without memory for the parameters that will be `filled`, where it can be.

    A factory that computes with its own parameters cannot run without their data; it is then called as it is.
    Raises UsageError if it fails, or gives something else than a module.
    """
    function = find_factory(reference)
    module = _call_without_data(function, keywords, filled)
    if module is not None and not any(isinstance(one, UninitializedParameter) for one in module.parameters()):
        return module
    try:
        module = _call(function, keywords)
    except Exception as error:
        raise _explained(reference, "raised", error) from error
    if not isinstance(module, nn.Module):
        raise UsageError(
            f"--factory {reference} gave an object of type {type(module).__name__}",
            expected="a torch.nn.Module",
            fix="return the module from the function",
        )
    lazy = next((name for name, one in module.named_parameters() if isinstance(one, UninitializedParameter)), None)
    if lazy:
        raise UsageError(
            f"--factory {reference} gave a module whose {lazy} gets its size with the first call",
            expected="a module whose sizes are known, to be compared with the weights",
            fix="call it once on zeros before returning it, or use Linear and the like in place of LazyLinear",
        )
    return module


def _call_without_data(
    function: Callable[..., Any], keywords: Mapping[str, Any], filled: Collection[str]
) -> nn.Module | None:
    try:
        with parameters_on_meta():
            module = _call(function, keywords)
    except Exception:  # noqa: BLE001 - whatever it is, the plain call that follows meets it or does without
        return None
    usable = isinstance(module, nn.Module) and not left_on_meta(module, filled=filled)
    return module if usable else None


def _import(reference: str, module_name: str) -> Any:
    here = os.getcwd()  # noqa: PTH109 - sys.path holds strings
    if here not in sys.path:
        sys.path.insert(0, here)
    try:
        with redirect_stdout(sys.stderr):
            return _beside_any_torch(lambda: importlib.import_module(module_name))
    except ModuleNotFoundError as error:
        if error.name is not None and (module_name == error.name or module_name.startswith(f"{error.name}.")):
            raise UsageError(
                f"--factory {reference}: there is no module {error.name!r}",
                expected=_FORM,
                fix="run the command from the folder that the module is in, or set PYTHONPATH",
            ) from error
        raise _explained(reference, "cannot be imported:", error) from error
    except Exception as error:  # importing runs the user's code
        raise _explained(reference, "cannot be imported:", error) from error


def _call(function: Callable[..., Any], keywords: Mapping[str, Any]) -> Any:
    # Standard output belongs to the result of the command.
    with redirect_stdout(sys.stderr):
        return _unwrapped(_beside_any_torch(lambda: function(**keywords)))


def _beside_any_torch(users: Callable[[], Any]) -> Any:
    """What the user's code gives; once more where its import of torchvision failed, as it does beside a CPU torch."""
    try:
        return users()
    except Exception as error:
        # transformers makes an ImportError of it.
        if not any(_TORCHVISION in str(one) for one in _causes(error)):
            raise
    import_torchvision()
    return users()


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def _unwrapped(module: Any) -> Any:
    """The network inside torch.compile and data parallelism, which are of training and prefix every weight's name."""
    while True:
        if type(module).__name__ == "OptimizedModule":
            module = module._orig_mod
        elif isinstance(module, nn.DataParallel | nn.parallel.DistributedDataParallel):
            module = module.module
        else:
            return module


def _explained(reference: str, doing: str, error: Exception) -> UsageError:
    """The user's exception with the innermost line it came from."""
    if isinstance(error, SyntaxError):
        where = f"{error.filename}:{error.lineno}"
    else:
        frames = traceback.extract_tb(error.__traceback__)
        where = f"{frames[-1].filename}:{frames[-1].lineno}"
    return UsageError(
        f"--factory {reference} {doing} {type(error).__name__}: {error} ({where})",
        expected="a function that gives the module for these weights",
        fix=f'make this work: python -c "from {reference.replace(":", " import ")} as f; print(f())"',
    )
