"""How tests package the tiny convolutional net: its checkpoint, its real samples, and a request that is quick.

Run as a module it packages once and kills itself at a step: `python -m tests.packaging FOLDER STEP OCCURRENCE`.
"""

import os
import signal
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from deploy.package import package
from deploy.request import PackageRequest, PackageResult, Resources
from deploy.targets import find_target
from tests import models

CLASSES = ("ant", "bee", "cat", "dog", "eel")
ROWS = 12


def make_request(folder: Path, *, seed: int = 0) -> PackageRequest:
    """The tiny net, ONNX only: a checkpoint with a lively head, samples with what training computed, labels."""
    folder.mkdir(parents=True, exist_ok=True)
    checkpoint = models.save(models.ConvNet, folder, models.IMAGE)
    module = lively(seed)
    torch.save(module.state_dict(), checkpoint.path)
    save_samples(folder / "samples.npz", module)
    (folder / "labels.txt").write_text("".join(f"{name}\n" for name in CLASSES))
    return PackageRequest(
        checkpoint=checkpoint,
        repository=folder / "repository",
        target=find_target("local-cpu"),
        name="tiny",
        samples=folder / "samples.npz",
        labels=folder / "labels.txt",
        formats=("onnx",),
        by_name=True,
        max_batch=4,
        resources=Resources(seconds_per_cell=0.05, threads=1),
    )


def lively(seed: int) -> models.ConvNet:
    """The net with statistics and a head that tell inputs apart."""
    torch.manual_seed(seed)
    module = models.ConvNet()
    with torch.no_grad():
        module.head.weight.normal_(std=2.0)
        module.train()(torch.randn(64, *models.IMAGE))
    return module.eval()


def save_samples(path: Path, module: torch.nn.Module) -> None:
    """Rows of noise of several brightnesses, with the outputs that the training side would have saved."""
    images = torch.randn(ROWS, *models.IMAGE) * torch.linspace(0.3, 2.0, ROWS)[:, None, None, None]
    with torch.no_grad():
        outputs = module(images)
    np.savez(
        path,
        allow_pickle=False,
        **{"input": images.numpy(), "expected/output": outputs.numpy(), "labels": outputs.argmax(1).numpy()},
    )


def run(request: PackageRequest, **changes: object) -> PackageResult:
    """What came of the request with these fields changed."""
    return package(replace(request, **changes))  # type: ignore[arg-type]


def killer(step: str, occurrence: int) -> Callable[[str], None]:
    """A hook that ends this process as `kill -9` would, the n-th time a step is passed."""
    seen = 0

    def on_step(name: str) -> None:
        nonlocal seen
        seen += name == step
        if name == step and seen == occurrence:
            os.kill(os.getpid(), signal.SIGKILL)

    return on_step


if __name__ == "__main__":
    request = make_request(Path(sys.argv[1]))
    package(replace(request, serve_check=False), on_step=killer(sys.argv[2], int(sys.argv[3])))
