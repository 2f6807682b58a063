"""Models that a check can say something about: seeded, with calibrated statistics and no silent layers.

torchvision's own initial weights would let mutants live: a vision transformer's head is zero, ConvNeXt scales its
layers by 1e-6, and batch statistics of mean 0 and variance 1 let signals fade from layer to layer.
"""

from collections.abc import Callable
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


def save_state_dict(module: "nn.Module", path: Path) -> Path:
    """The bare `state_dict` on disk, as people save it."""
    import torch

    torch.save(module.state_dict(), path)
    return path


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
        heads = heads or [child for child in module.modules() if isinstance(child, nn.Conv2d)]  # type: ignore[misc]
        head = heads[-1]
        head.weight.normal_(std=float(np.prod(head.weight.shape[1:])) ** -0.5)
        if head.bias is not None:
            head.bias.normal_(std=0.5)


def calibrate(module: "nn.Module", inputs: "Callable[[int], Tensor]") -> "nn.Module":
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
            module(inputs(CALIBRATION_ROWS + batch))
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
    return module.eval()
