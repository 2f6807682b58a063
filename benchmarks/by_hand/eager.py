"""Eager PyTorch by hand: `eval()` and `inference_mode()`."""

from pathlib import Path

from benchmarks.by_hand.network import Bind, bind_torch, build


def load(name: str, weights: Path) -> Bind:
    """The module itself."""
    return bind_torch(build(name, weights))
