"""Both conversions by hand in one process, which share its imports and its export.

Run as `python -m benchmarks.by_hand.convert NETWORK WEIGHTS FOLDER MAX_BATCH`; prints a line as each stage begins.
"""

import sys
from pathlib import Path


def main(name: str, weights: Path, folder: Path, max_batch: int) -> None:
    """Write `folder/model.pt2` and `folder/model.onnx`."""
    print("stage import", flush=True)
    import torch

    from benchmarks.by_hand import aoti, onnx_runtime
    from benchmarks.by_hand.network import build, dynamic, example, stage

    stage("build")
    module = build(name, weights)
    stage("export")
    program = torch.export.export(module, example(name), dynamic_shapes=dynamic(name, max_batch))
    stage("aoti")
    aoti.convert(program, folder)
    stage("onnx")
    onnx_runtime.convert(program, folder)


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3]), int(sys.argv[4]))
