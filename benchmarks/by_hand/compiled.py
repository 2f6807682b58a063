"""`torch.compile` by hand, with defaults: it compiles in the serving process, at the first call of a shape.

Run as `python -m benchmarks.by_hand.compiled NETWORK WEIGHTS`: what a new process takes until it has answered a batch
of 1. The next batch size compiles once more, with the batch dynamic.
"""

import sys
from pathlib import Path

import torch

from benchmarks.by_hand.network import Bind, bind_torch, build, example, stage


def load(name: str, weights: Path) -> Bind:
    """The compiled module; nothing is compiled yet."""
    return bind_torch(torch.compile(build(name, weights)))


def main(name: str, weights: Path) -> None:
    """Answer once."""
    stage("build")
    bind = load(name, weights)
    stage("first answer")
    bind([tensor[:1].numpy() for tensor in example(name)])()


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
