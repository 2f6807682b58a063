"""A module behind its preprocessing: as part of the graph, and as training computes it with torchvision.

Owns the two, which must agree: the first is exported, the second is what it is proven against. Called by load.
Weights keep their names: a wrapper round the module would prefix every one, in the program and in the artifacts.
"""

import inspect
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional

from deploy.checkpoint.model import Preprocessing
from deploy.checkpoint.preprocess import resized_size

_MEAN, _STD = "preprocess_mean", "preprocess_std"
_LEVELS = 255.0

Prepare = Callable[[nn.Module, Tensor, torch.dtype], Tensor]


def fuse(module: nn.Module, preprocessing: Preprocessing) -> nn.Module:
    """`module` itself, taking uint8 images: what `preprocessing.fused` names happens first, in plain tensor operations.

    Its mean and standard deviation are buffers that no state_dict holds.
    """
    assert preprocessing.mean is not None and preprocessing.std is not None
    for name, values in ((_MEAN, preprocessing.mean), (_STD, preprocessing.std)):
        module.register_buffer(name, torch.tensor(values).reshape(-1, 1, 1), persistent=False)
    scale, shift = _value_range(preprocessing)

    def prepare(owner: nn.Module, image: Tensor, dtype: torch.dtype) -> Tensor:
        pixels = image.to(dtype)
        if "resize" in preprocessing.fused:
            pixels = _resized(pixels, preprocessing)
        values = pixels / _LEVELS
        if (scale, shift) != (1.0, 0.0):
            values = values * scale + shift
        normalised: Tensor = (values - getattr(owner, _MEAN).to(dtype)) / getattr(owner, _STD).to(dtype)
        return normalised

    return _behind(module, prepare)


def as_trained(module: nn.Module, preprocessing: Preprocessing) -> nn.Module:
    """`module` itself, taking uint8 images through torchvision's own transforms, as training does."""
    from deploy.checkpoint.vision import import_torchvision

    import_torchvision()
    from torchvision.transforms import v2

    scale, shift = _value_range(preprocessing)

    def prepare(owner: nn.Module, image: Tensor, dtype: torch.dtype) -> Tensor:
        steps: list[Callable[[Tensor], Tensor]] = [v2.ToDtype(dtype, scale=True)]
        if "resize" in preprocessing.fused:
            size = [preprocessing.resize] if isinstance(preprocessing.resize, int) else list(preprocessing.resize or ())
            mode = v2.InterpolationMode(preprocessing.interpolation)
            steps.append(v2.Resize(size, interpolation=mode, antialias=True))
            # Training on 8-bit images, of Pillow or tensors, cuts off what a bicubic curve overshoots.
            steps.append(v2.Lambda(lambda values: values.clamp(0.0, 1.0)))
            steps += [v2.CenterCrop(preprocessing.crop)] if preprocessing.crop else []
        if (scale, shift) != (1.0, 0.0):
            steps.append(lambda values: values * scale + shift)
        steps.append(v2.Normalize(list(preprocessing.mean or ()), list(preprocessing.std or ())))
        for step in steps:
            image = step(image)
        return image

    return _behind(module, prepare)


def _behind(module: nn.Module, prepare: Prepare) -> nn.Module:
    """The module, of a class of its own whose forward prepares the one input first, given by position or by name.

    The preparing is done in float32, or float64 where the module's weights are; then in their dtype, as in training.
    """
    original = type(module)
    own_forward = vars(module).pop("forward", None)

    def forward(self: nn.Module, *inputs: Tensor, **named: Tensor) -> object:
        dtype = next((p.dtype for p in self.parameters() if p.is_floating_point()), torch.float32)
        wide = dtype if dtype == torch.float64 else torch.float32
        images = [prepare(self, image, wide).to(dtype) for image in inputs]
        more = {name: prepare(self, image, wide).to(dtype) for name, image in named.items()}
        return own_forward(*images, **more) if own_forward else original.forward(self, *images, **more)

    # Whoever calls it by its parameters' names looks for them here.
    forward.__signature__ = _signature(own_forward or original.forward, bound=own_forward is not None)  # type: ignore[attr-defined]
    module.__class__ = type(f"Fused{original.__name__}", (original,), {"forward": forward})
    return module


def _signature(forward: Callable[..., object], *, bound: bool) -> inspect.Signature:
    """The signature of a method, with the `self` that a bound one no longer has."""
    found = inspect.signature(forward)
    own = [inspect.Parameter("self", inspect.Parameter.POSITIONAL_ONLY)] if bound else []
    return found.replace(parameters=[*own, *found.parameters.values()])


def _value_range(preprocessing: Preprocessing) -> tuple[float, float]:
    """Factor and offset from 0..1 to the range that training scaled its pixels to."""
    low, high = preprocessing.value_range or (0.0, 1.0)
    return high - low, low


def _resized(pixels: Tensor, preprocessing: Preprocessing) -> Tensor:
    """The middle of the resized images; in floating point, where training on 8-bit images rounds to whole levels."""
    size = resized_size(preprocessing, (pixels.shape[-2], pixels.shape[-1]))
    mode = preprocessing.interpolation or "bilinear"
    pixels = functional.interpolate(pixels, size=size, mode=mode, antialias=True, align_corners=False)
    if mode == "bicubic":
        pixels = pixels.clamp(0.0, _LEVELS)  # as 8-bit images do: the curve overshoots at edges
    crop = preprocessing.crop
    if crop is None:
        return pixels
    # As torchvision rounds: to the even neighbour of a half.
    top, left = (round((edge - crop) / 2.0) for edge in size)
    return pixels[..., top : top + crop, left : left + crop]
