"""Networks of transformers that find things in an image, DETR's and MaskFormer's kin, with what they found as outputs.

Owns which of their outputs those are, and the class that stands for nothing. Called by pretrained.
"""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from deploy.spec import TensorSpec

# The endings of their classes, and the outputs that say what was found: scores of each class for each query first.
_MASKS = ("class_queries_logits", "masks_queries_logits")
_FOUND: Mapping[str, tuple[str, ...]] = {
    "ForObjectDetection": ("logits", "pred_boxes"),
    "ForInstanceSegmentation": _MASKS,
    "ForUniversalSegmentation": _MASKS,
}
FINDERS = tuple(_FOUND)
# The name of the class behind all others, where a network scores one more than it has names for.
_NOTHING = "no object"
_NOTE = (
    "every pixel counts, since no pixel_mask is an input: clients resize images to this size and fill none up; "
    "thresholds and the places in the image are the client's, as its processor's post_process functions have them"
)


class Finder(nn.Module):
    """The network without the states of its layers among its outputs. `transformer` is the network itself."""

    def __init__(self, transformer: nn.Module) -> None:
        super().__init__()
        self.transformer = transformer
        self.outputs = found_by(type(transformer).__name__)

    def forward(self, pixel_values: Tensor) -> dict[str, Tensor]:
        """Scores [batch, queries, classes] of images [batch, channels, height, width], and boxes or masks of these."""
        found: Mapping[str, Tensor] = self.transformer(pixel_values=pixel_values)
        return {name: found[name] for name in self.outputs}


def found_by(name: str) -> tuple[str, ...]:
    """The outputs of a class of transformers that say what it found; empty for one that finds nothing."""
    return next((outputs for ending, outputs in _FOUND.items() if name.endswith(ending)), ())


def classes_found(
    finder: Finder, image: TensorSpec, named: tuple[str, ...] | None, count: int | None
) -> tuple[tuple[str, ...] | None, int, str]:
    """The names and the number of what is scored, the class of nothing among them, and a note for clients."""
    sizes = [size for size in image.shape[1:] if isinstance(size, int)]
    with torch.no_grad():
        scored = finder(torch.zeros(1, *sizes))[finder.outputs[0]].shape[-1]
    nothing = (_NOTHING,) if scored == (count or 0) + 1 else ()
    last = f"; the last score of a query is that of {_NOTHING}" if nothing else ""
    return (*named, *nothing) if named else None, scored, _NOTE + last
