"""Checkpoints and factories that the tests of this room save to disk, named for what they are like."""

from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from deploy.checkpoint.architecture import Architecture
from deploy.checkpoint.model import CheckpointRequest
from deploy.checkpoint.vision import import_torchvision
from deploy.checkpoint.zoo import load_zoo

State = dict[str, Tensor]


def seeded(builder: str, **options: Any) -> nn.Module:
    """A torchvision module built the ordinary way, with seeded weights and a head that is not zero."""
    torch.manual_seed(0)
    if load_zoo()[builder].kind in ("segmentation", "detection", "two-stage detection"):
        options["weights_backbone"] = None  # by default such a builder downloads them
    module: nn.Module = import_torchvision().models.get_model(builder, weights=None, **options)
    for name, tensor in module.state_dict().items():
        if name in load_zoo()[builder].head:
            tensor.normal_(std=0.02)
    return module.eval()


def small_state(**options: Any) -> State:
    """The state of the smallest builder: squeezenet1_1 with 3 classes."""
    return seeded("squeezenet1_1", **{"num_classes": 3, **options}).state_dict()


def saved(path: Path, content: object) -> CheckpointRequest:
    """A request for `content` saved with torch.save at `path`."""
    torch.save(content, path)
    return CheckpointRequest(path=path)


def prefixed(state: Mapping[str, Tensor], prefix: str) -> State:
    return OrderedDict((prefix + name, tensor) for name, tensor in state.items())


def bound_shapes(entry: Architecture, *, classes: int, channels: int) -> dict[str, tuple[int, ...]]:
    """The shapes of an architecture's tensors after a fine-tune with other classes and input channels."""
    shapes = dict(entry.shapes)
    for name, multiple in entry.head.items():
        shapes[name] = (classes * multiple, *shapes[name][1:])
    if entry.stem:
        rows, _, *kernel = shapes[entry.stem]
        shapes[entry.stem] = (rows, channels, *kernel)
    return shapes
