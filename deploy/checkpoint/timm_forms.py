"""Forms of a timm network beside the usual one: without its head, pooled otherwise, fused for inference.

Owns what is assumed of them and said, the search for a network without its head, and the refusal of fused ones. Called
by timm_models.
"""

from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any

from deploy.checkpoint.architecture import Shapes
from deploy.checkpoint.timm_entries import TimmEntry, import_timm, likeness, sketch
from deploy.checkpoint.timm_training import TimmSaid
from deploy.errors import UsageError

if TYPE_CHECKING:
    from torch import nn

_COUNTER = "num_batches_tracked"
# A network without its head has most names of the whole one.
_ALIKE = 0.7
# What timm's own fusing calls the convolution that several became; levit's has other names for the same.
_FUSED = ".reparam_conv."


def headless_note(options: Mapping[str, Any]) -> tuple[str, ...]:
    """A note where the weights have no head: another way of making the network leaves the same tensors."""
    if options["num_classes"]:
        return ()
    return (
        "no head: it gives pooled features, as with num_classes=0; the maps of features_only=True would have the same "
        "tensors, and are a network of your own: --factory",
    )


def pooling_note(module: "nn.Module", options: Mapping[str, Any], said: TimmSaid) -> tuple[str, ...]:
    """A note on a pooling that no tensor tells, where nothing beside the weights says it either."""
    if said.by_timm or "global_pool" in options:
        return ()
    for part in (module, getattr(module, "head", None)):
        pooling = getattr(part, "global_pool", None)
        name = pooling if isinstance(pooling, str) else getattr(pooling, "pool_type", None)
        if name and name != "token":
            return (
                f"pooling: {name}, timm's usual one of this network; nothing in the checkpoint says that training used "
                "it, and no tensor would tell another, such as global_pool='max': that takes --factory",
            )
    return ()


def nearly_headless(
    entries: Iterable[TimmEntry], shapes: Shapes, built: Callable[[str], Shapes | None]
) -> list[TimmEntry]:
    """The architectures which, `built` without classes, have exactly these tensors.

    Of some, such as LeViT, more goes with the head than the tensors that count classes, so that no digest fits.
    """
    found = sketch(shapes)
    near = [one for one in entries if not {*one.head} & shapes.keys() and likeness(found, one.sketch) >= _ALIKE]
    return [entry for entry in near if built(entry.name) == shapes]


def check_fused(shapes: Shapes, name: str | None, module: "nn.Module | None", *, classes: int | None) -> None:
    """Raises UsageError where the weights are those of a network that timm has fused for inference.

    `module` is the one that did not fit, where there is one; its name and number of classes are in the way out.
    """
    if module is not None:
        if _names(module) == shapes.keys() or _names(_fuse(module)) != shapes.keys():
            return
    elif not any(_FUSED in key for key in shapes):
        return
    raise _fused(name, classes)


def check_fused_like(shapes: Shapes, names: Iterable[str], built: Callable[[str], "nn.Module | None"]) -> None:
    """Raises UsageError where the weights are those of one of these architectures after timm has fused it.

    For those whose fusing leaves no name of its own, such as LeViT. Sizes tell which, but for those of the head.
    """
    alike: dict[str, int] = {}
    for name in names:
        module = built(name)
        if module is None or _names(module) == shapes.keys():
            continue
        fused = _fuse(module).state_dict()
        if {key for key in fused if not key.endswith(_COUNTER)} == shapes.keys():
            alike[name] = sum(tuple(fused[key].shape) == shape for key, shape in shapes.items())
    if alike:
        raise _fused(max(alike, key=lambda name: alike[name]), None)


def _fused(name: str | None, classes: int | None) -> UsageError:
    maker = f"timm.create_model({name or 'NAME'!r}, num_classes={'N' if classes is None else classes})"
    return UsageError(
        f"the weights are those of {name or 'a network'} after timm has fused it for inference (reparameterize_model), "
        "which leaves other tensors",
        expected="the weights of before, as training had them",
        fix="give the state_dict of before; or, as --factory package.module:function, a function that returns "
        f"timm.utils.reparameterize_model({maker})",
    )


def _fuse(module: "nn.Module") -> "nn.Module":
    """The module after timm's fusing, without data."""
    import torch

    with torch.device("meta"):
        fused: nn.Module = import_timm().utils.reparameterize_model(module.to("meta"))
    return fused


def _names(module: "nn.Module") -> set[str]:
    return {key for key in module.state_dict() if not key.endswith(_COUNTER)}
