"""A timm network made of its name and arguments, without memory for the weights that are to come.

Owns the calls of timm's `create_model`, and the head of training's own that is put on what it gives. Called by
timm_models and load.
"""

import warnings
from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING, Any

from deploy.checkpoint.architecture import HEAD, Shapes
from deploy.checkpoint.timm_entries import TIMM, import_timm, shapes_of, timm_version
from deploy.checkpoint.timm_refusals import FACTORY
from deploy.errors import UsageError

if TYPE_CHECKING:
    from torch import nn


def build_timm(architecture: str, options: Mapping[str, Any], *, filled: Collection[str]) -> "nn.Module":
    """The module, without memory for the parameters that will be `filled`, where it can be built so.

    `options` are timm's own, and a `head` of training's own in place of timm's.
    """
    from deploy.checkpoint.build import put_head

    plain = {name: value for name, value in options.items() if name != HEAD}
    return put_head(_build_plain(architecture.removeprefix(TIMM), plain, filled), options.get(HEAD, {}))


def _build_plain(name: str, options: Mapping[str, Any], filled: Collection[str]) -> "nn.Module":
    from deploy.checkpoint.build import left_on_meta, parameters_on_meta

    timm = import_timm()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            with parameters_on_meta():
                module: nn.Module = timm.create_model(name, pretrained=False, **options)
        except RuntimeError:
            return timm.create_model(name, pretrained=False, **options)  # type: ignore[no-any-return]
        if left_on_meta(module, filled=filled):
            return timm.create_model(name, pretrained=False, **options)  # type: ignore[no-any-return]
    return module


def without_classes(name: str) -> Shapes | None:
    """The tensors of the network without a head; None where timm does not make it so."""
    module = usual(name, num_classes=0)
    return None if module is None else shapes_of(module.state_dict())


def usual(name: str, **options: Any) -> "nn.Module | None":
    """The network as timm makes it, without data; None where timm does not make it so."""
    try:
        return build_timm(TIMM + name, options, filled=())
    except Exception:  # noqa: BLE001 - timm's builders raise what an argument leads them to
        return None


def built_timm(name: str, options: Mapping[str, Any], shapes: Shapes) -> "nn.Module":
    """The module. Raises UsageError where timm does not take the arguments that the file says."""
    try:
        return build_timm(TIMM + name, options, filled=shapes)
    except Exception as error:  # timm's builders raise what an argument leads them to
        first = str(error).strip().partition("\n")[0]
        raise UsageError(
            f"timm {timm_version()} cannot build {name} with {dict(options)}: {type(error).__name__}: {first}",
            expected="arguments that timm's builder takes, and an image size that the network can have",
            fix=f"say another size with --input-shape; or {FACTORY}",
        ) from error
