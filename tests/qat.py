"""A small network that is really fine-tuned under torchao's quantization-aware training, on scikit-learn's digits."""

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from digits import load_split
from torch import Tensor, nn

PIXELS = 64
_DTYPES: Any = torch


class Perceptron(nn.Module):
    """64 pixels to ten logits."""

    def __init__(self) -> None:
        super().__init__()
        self.hidden = nn.Linear(PIXELS, 96)
        self.head = nn.Linear(96, 10)

    def forward(self, pixels: Tensor) -> Tensor:
        return self.head(self.hidden(pixels).relu())  # type: ignore[no-any-return]


def finetune(folder: Path, *, activations: bool = False) -> float:
    """Train with fake int4 weights, convert, save `quantized.pt` and `samples.npz`; the converted one's accuracy."""
    with _quiet():
        from torchao.quantization import Int8DynamicActivationIntxWeightConfig, IntxWeightOnlyConfig, quantize_
        from torchao.quantization.granularity import PerGroup
        from torchao.quantization.qat import QATConfig

        groups = PerGroup(32)
        base: Any = (
            Int8DynamicActivationIntxWeightConfig(weight_dtype=_DTYPES.int4, weight_granularity=groups)
            if activations
            else IntxWeightOnlyConfig(_DTYPES.int4, groups)
        )
        torch.manual_seed(0)
        module, (training, held_out) = Perceptron(), load_split(0)
        quantize_(module, QATConfig(base, step="prepare"))
        pixels, labels = _pixels(training.images), torch.from_numpy(training.labels)
        optimizer = torch.optim.AdamW(module.parameters(), lr=3e-3)
        for _ in range(8):
            for rows in torch.randperm(len(pixels)).split(32):
                optimizer.zero_grad()
                nn.functional.cross_entropy(module(pixels[rows]), labels[rows]).backward()
                optimizer.step()
        quantize_(module.eval(), QATConfig(base, step="convert"))
        torch.save({"state_dict": module.state_dict(), "epoch": 8}, folder / "quantized.pt")
        with torch.no_grad():
            logits = module(_pixels(held_out.images)).numpy()
    arrays = {"pixels": _pixels(held_out.images).numpy()[:32], "expected/output": logits[:32]}
    np.savez(folder / "samples.npz", allow_pickle=False, **arrays, labels=held_out.labels[:32])
    return float((logits.argmax(1) == held_out.labels).mean())


def _pixels(images: np.ndarray) -> Tensor:
    return torch.from_numpy(images.reshape(len(images), PIXELS).astype(np.float32))


@contextmanager
def _quiet() -> Iterator[None]:
    """torchao says which of its kernels are for other machines."""
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(logging.NOTSET)
