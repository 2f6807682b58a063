"""Models that a check can say something about: seeded, with calibrated statistics and no silent layers.

torchvision's own initial weights would let mutants live: a vision transformer's head is zero, ConvNeXt scales its
layers by 1e-6, and batch statistics of mean 0 and variance 1 let signals fade from layer to layer.
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from torch import Tensor, nn

CALIBRATION_BATCHES = 3
CALIBRATION_ROWS = 8


def seeded_module(builder: str, *, num_classes: int = 10, size: int = 224, seed: int = 0) -> "nn.Module":
    """A torchvision classifier in eval mode, ready to be compared: see `enliven` and `calibrate`."""
    import torch

    from deploy.checkpoint.vision import import_torchvision

    torch.manual_seed(seed)
    module: nn.Module = import_torchvision().models.get_model(builder, weights=None, num_classes=num_classes)
    enliven(module)
    return calibrate(module, lambda rows: image_like(rows, size=size, seed=seed))


def seeded_vision_model(
    builder: str, inputs: "Callable[[int], tuple[Tensor, ...]]", options: "Mapping[str, object]", *, seed: int = 0
) -> "nn.Module":
    """Any torchvision model in the form in which it is served, ready to be compared; `inputs` makes rows for it."""
    import inspect

    import torch

    from deploy.checkpoint.servable import servable
    from deploy.checkpoint.vision import import_torchvision

    torch.manual_seed(seed)
    build = import_torchvision().models.get_model_builder(builder)
    backbone = {"weights_backbone": None} if "weights_backbone" in inspect.signature(build).parameters else {}
    module: nn.Module = servable(build(weights=None, **backbone, **options))
    enliven(module)
    return calibrate(module, inputs)


def save_state_dict(module: "nn.Module", path: Path) -> Path:
    """The bare `state_dict` on disk, as people save it."""
    import torch

    torch.save(module.state_dict(), path)
    return path


def moving(rows: int, shape: "Sequence[int]", *, seed: int = 0) -> "Tensor":
    """Smooth fields of this shape with fine texture, over as many last axes as there are after the channels."""
    import torch

    generator = torch.Generator().manual_seed(seed + rows)
    coarse = torch.randn(rows, shape[0], *[min(6, side) for side in shape[1:]], generator=generator)
    mode = "trilinear" if len(shape) == 4 else "bilinear"
    smooth = torch.nn.functional.interpolate(coarse, size=tuple(shape[1:]), mode=mode, align_corners=True)
    return smooth + 0.5 * torch.randn(smooth.shape, generator=generator)


def image_like(rows: int, *, size: int, channels: int = 3, seed: int = 0) -> "Tensor":
    """Smooth fields with fine texture, normalised as images are."""
    import torch

    generator = torch.Generator().manual_seed(seed + rows)
    coarse = torch.randn(rows, channels, 6, 6, generator=generator)
    smooth = torch.nn.functional.interpolate(coarse, size=(size, size), mode="bilinear", align_corners=True)
    # Without fine texture, filters for it would be calibrated to nothing, and blow up on any input that has some.
    return smooth + 0.5 * torch.randn(smooth.shape, generator=generator)


def enliven(module: "nn.Module") -> None:
    """A normal head, layer scales in 0.1..1, and normal tokens where the initial ones are zero."""
    import torch
    from torch import nn

    with torch.no_grad():
        for name, parameter in module.named_parameters():
            if "layer_scale" in name or name.endswith("gamma"):
                parameter.uniform_(0.1, 1.0)
            elif not parameter.any() and name.endswith(("token", "embedding")):
                parameter.normal_(std=0.1)
        heads = [child for child in module.modules() if isinstance(child, nn.Linear)]
        convolutions = nn.Conv2d | nn.Conv3d
        heads = heads or [child for child in module.modules() if isinstance(child, convolutions)]  # type: ignore[misc]
        head = heads[-1]
        head.weight.normal_(std=float(np.prod(head.weight.shape[1:])) ** -0.5)
        if head.bias is not None:
            head.bias.normal_(std=0.5)


def calibrate(module: "nn.Module", inputs: "Callable[[int], Tensor | tuple[Tensor, ...]]") -> "nn.Module":
    """The module in eval mode, its batch statistics those of a few forward passes, its affine parts seeded."""
    import torch
    from torch import nn

    module.eval()
    norms = [child for child in module.modules() if isinstance(child, nn.modules.batchnorm._BatchNorm)]
    momenta = [norm.momentum for norm in norms]
    with torch.no_grad():
        for norm in norms:
            norm.weight.uniform_(0.5, 1.5)
            norm.bias.normal_(std=0.2)
            norm.reset_running_stats()
            norm.momentum = None  # a plain mean over the calibration batches
            norm.train()
        for batch in range(CALIBRATION_BATCHES if norms else 0):
            given = inputs(CALIBRATION_ROWS + batch)
            module(*(given if isinstance(given, tuple) else (given,)))
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
    return module.eval()
