"""The network with its weights, and what it is called on, as one builds them by hand.

Owns torchvision's classifiers and one sentence encoder, nothing of deployctl. Called by every route here.
"""

import os
from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks.by_hand import SENTENCES

LONGEST_TEXT = 256
# Arrays in, a call to be timed out.
Bind = Callable[[Sequence[np.ndarray]], Callable[[], Any]]

_registered: list[Any] = []


class SentenceEncoder(nn.Module):
    """Token ids in, one embedding of length 1 per text out, as the model's own page has it."""

    def __init__(self, encoder: nn.Module) -> None:
        super().__init__()
        self.encoder = encoder

    def forward(self, input_ids: Tensor, attention_mask: Tensor, token_type_ids: Tensor) -> Tensor:
        """The mean of the tokens that are no padding, normalised."""
        tokens = self.encoder(
            input_ids=input_ids, attention_mask=attention_mask, token_type_ids=token_type_ids
        ).last_hidden_state
        mask = attention_mask.unsqueeze(-1).to(tokens.dtype)
        pooled = (tokens * mask).sum(dim=1) / mask.sum(dim=1).clamp(min=1e-9)
        return nn.functional.normalize(pooled, p=2.0, dim=1)


def build(name: str, weights: Path) -> nn.Module:
    """The network in eval mode; `weights` is a state_dict, or the folder of the sentence encoder."""
    _declare_torchvision_ops()
    if name == SENTENCES:
        os.environ["HF_HUB_OFFLINE"] = "1"
        from transformers import AutoModel

        return SentenceEncoder(AutoModel.from_pretrained(weights, local_files_only=True)).eval()
    from torchvision import models

    module: nn.Module = models.get_model(name, weights=None)
    module.load_state_dict(torch.load(weights, weights_only=True))  # noqa: TID251 - as one does by hand
    return module.eval()


def example(name: str) -> tuple[Tensor, ...]:
    """What the network is traced with: a batch of 2."""
    if name == SENTENCES:
        ids = torch.randint(0, 30_000, (2, 40))
        return ids, torch.ones_like(ids), torch.zeros_like(ids)
    return (torch.randn(2, 3, 224, 224),)


def dynamic(name: str, max_batch: int) -> tuple[dict[int, Any], ...]:
    """The axes whose size requests choose."""
    batch = torch.export.Dim("batch", min=1, max=max_batch)
    if name == SENTENCES:
        sequence = torch.export.Dim("sequence", min=1, max=LONGEST_TEXT)
        return ({0: batch, 1: sequence},) * 3
    return ({0: batch},)


def bind_torch(function: Callable[..., Any]) -> Bind:
    """Calls of something that takes tensors."""

    def bind(arrays: Sequence[np.ndarray]) -> Callable[[], Any]:
        tensors = [torch.from_numpy(array) for array in arrays]

        def call() -> Any:
            with torch.inference_mode():
                return function(*tensors)

        return call

    return bind


def stage(name: str) -> None:
    """Tell the reader of this process's output that a stage begins."""
    print(f"stage {name}", flush=True)


def _declare_torchvision_ops() -> None:
    """Beside a CPU-only torch, PyPI's torchvision imports only with these declared."""
    if torch.version.cuda or version("torchvision").endswith("+cpu") or hasattr(torch.ops.torchvision, "nms"):
        return
    library = torch.library.Library("torchvision", "DEF")
    library.define("nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    library.define("qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    _registered.append(library)
