"""`torch.onnx.export(dynamo=True)` and ONNX Runtime by hand, with defaults."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.export import ExportedProgram

from benchmarks.by_hand.network import Bind

FILE = "model.onnx"


def convert(program: ExportedProgram, folder: Path) -> None:
    """Write `folder/model.onnx`."""
    torch.onnx.export(program, f=str(folder / FILE), dynamo=True, verbose=False)


def load(folder: Path, *, threads: int | None = None) -> Bind:
    """A session; without `threads` it takes one per physical core, which is its default."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    if threads is not None:
        options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(str(folder / FILE), options, providers=["CPUExecutionProvider"])
    names = [one.name for one in session.get_inputs()]

    def bind(arrays: Sequence[np.ndarray]) -> Callable[[], Any]:
        feed = dict(zip(names, arrays, strict=True))
        return lambda: session.run(None, feed)

    return bind
