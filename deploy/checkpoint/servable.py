"""The forward that is served, where torchvision's own cannot be: one-stage detectors, and RAFT.

Owns those forwards. Each module keeps its parameters under their names; only its class is another.
Called by load once the weights are in.

A detector's own forward takes a list of images and returns as many boxes as it finds, different ones for each image:
no tensor of a server has such a shape. What is served is everything before that choice, for images of one size: each
box, clipped and in pixels of the input, and its score per class. Non-maximum suppression is the client's.
"""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from deploy.checkpoint.detectors import of_two_stages

Forward = Callable[..., Any]

_FLOW_UPDATES = 12  # the default of RAFT's own forward


def servable(module: nn.Module) -> nn.Module:
    """The same module with the forward that is served. Raises UsageError for a detector of two stages."""
    name = type(module).__name__
    if hasattr(module, "rpn") and hasattr(module, "roi_heads"):
        raise of_two_stages(name)
    if name in _SCORES:
        return _with_forward(module, _dense_forward(_SCORES[name]))
    if name == "RAFT":
        return _with_forward(module, _flow_forward)
    return module


def _with_forward(module: nn.Module, forward: Forward) -> nn.Module:
    original = type(module)
    module.__class__ = type(f"Servable{original.__name__}", (original,), {"forward": forward})
    return module


def _dense_forward(scores: Callable[[dict[str, Tensor]], Tensor]) -> Forward:
    def forward(self: Any, image: Tensor) -> dict[str, Tensor]:
        height, width = image.shape[-2:]
        inner = _inner_size(self.transform, height, width)
        features = self.backbone(_prepared(self.transform, image, inner))
        features = [features] if isinstance(features, Tensor) else list(features.values())
        found = self.head(features)
        anchors = _anchors(self, features, inner)
        boxes = _clipped(_decoded(self.box_coder, found["bbox_regression"], anchors), inner)
        scale = boxes.new_tensor([width / inner[1], height / inner[0]] * 2)
        return {"boxes": boxes * scale, "scores": scores(found)}

    return forward


def _inner_size(transform: Any, height: int, width: int) -> tuple[int, int]:
    """Height and width that the network resizes an image to."""
    if transform.fixed_size is not None:
        return transform.fixed_size[1], transform.fixed_size[0]
    scale = min(transform.min_size[-1] / min(height, width), transform.max_size / max(height, width))
    return math.floor(height * scale), math.floor(width * scale)


def _prepared(transform: Any, image: Tensor, size: tuple[int, int]) -> Tensor:
    """The images normalised, resized, and padded below and to the right to the sizes that the backbone divides."""
    image = transform.normalize(image)
    if tuple(image.shape[-2:]) != size:
        image = functional.interpolate(image, size=size, mode="bilinear", align_corners=False)
    below, right = (-side % transform.size_divisible for side in size)
    return functional.pad(image, (0, right, 0, below)) if below or right else image


def _anchors(detector: Any, features: list[Tensor], size: tuple[int, int]) -> Tensor:
    """The boxes that the network's are offsets to: four corners a row, the same for every image of a size."""
    from torchvision.models.detection.image_list import ImageList

    generator = detector.anchor_generator
    below, right = (side + -side % detector.transform.size_divisible for side in size)
    if not hasattr(generator, "grid_anchors"):
        image = features[0].new_empty((1, 1, below, right))
        boxes: Tensor = generator(ImageList(image, [size]), features)[0]
        return boxes
    # Its own forward stores tensors in the module, which an export must not.
    grids = [tuple(level.shape[-2:]) for level in features]
    strides = [(below // rows, right // columns) for rows, columns in grids]
    return torch.cat(generator.grid_anchors(grids, strides))


def _decoded(coder: Any, offsets: Tensor, anchors: Tensor) -> Tensor:
    """Boxes as corners, one row per anchor and image."""
    if not hasattr(coder, "decode_single"):
        boxes: Tensor = coder.decode(offsets, anchors)
        return boxes
    rows = anchors.expand(offsets.shape[0], -1, -1).reshape(-1, 4)
    boxes = coder.decode_single(offsets.reshape(-1, 4), rows)
    return boxes.reshape(offsets.shape)


def _clipped(boxes: Tensor, size: tuple[int, int]) -> Tensor:
    limits = boxes.new_tensor([size[1], size[0]] * 2)
    return torch.minimum(boxes.clamp(min=0), limits)


def _softmax(found: dict[str, Tensor]) -> Tensor:
    return found["cls_logits"].softmax(-1)


def _sigmoid(found: dict[str, Tensor]) -> Tensor:
    return found["cls_logits"].sigmoid()


def _centred(found: dict[str, Tensor]) -> Tensor:
    return torch.sqrt(found["cls_logits"].sigmoid() * found["bbox_ctrness"].sigmoid())


_SCORES: dict[str, Callable[[dict[str, Tensor]], Tensor]] = {"SSD": _softmax, "RetinaNet": _sigmoid, "FCOS": _centred}


def _flow_forward(self: Any, image1: Tensor, image2: Tensor) -> list[Tensor]:
    """RAFT as torchvision computes it: the flow after each refinement, the last one the best.

    Its own forward takes the batch for a constant, and its coordinates are float32 whatever the weights are.
    """
    from torchvision.models.optical_flow import _utils

    rows, pyramid = image1.shape[0], self.corr_block.corr_pyramid
    features = self.feature_encoder(torch.cat([image1, image2]))
    self.corr_block.build_pyramid(features[:rows], features[rows:])
    encoded, width = self.context_encoder(image1), self.update_block.hidden_state_size
    hidden, context = encoded[:, :width].tanh(), encoded[:, width:].relu()
    grid = _utils.make_coords_grid(rows, *encoded.shape[-2:]).to(image1)
    reached, flows = grid, []
    for _ in range(_FLOW_UPDATES):
        correlations = self.corr_block.index_pyramid(centroids_coords=reached)
        hidden, change = self.update_block(hidden, context, correlations, reached - grid)
        reached = reached + change
        mask = None if self.mask_predictor is None else self.mask_predictor(hidden)
        flows.append(_utils.upsample_flow(reached - grid, mask))
    self.corr_block.corr_pyramid = pyramid  # an export must leave the module as it was
    return flows
