"""What one writes by hand to convert a checkpoint, stage after stage in one process: the base of conversion.py.

Owns nothing of deployctl, and imports nothing of it. Prints a line as each stage begins. Called as
`python benchmarks/conversion_by_hand.py BUILDER STATE_DICT FOLDER MAX_BATCH`.
"""

import sys
from pathlib import Path


def main(builder: str, state_dict: str, folder: Path, max_batch: int) -> None:
    """Write `folder/model.pt2` and `folder/model.onnx`, and load the latter."""
    stage("import")
    import torch

    # Beside a CPU-only torch, torchvision imports only with these declared.
    library = torch.library.Library("torchvision", "DEF")
    library.define("nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    library.define("qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    from torchvision import models

    stage("export")
    module = models.get_model(builder, weights=None)
    module.load_state_dict(torch.load(state_dict, weights_only=True))  # noqa: TID251 - as one does by hand
    module.eval()
    batch = torch.export.Dim("batch", min=1, max=max_batch)
    example = (torch.randn(2, 3, 224, 224),)
    program = torch.export.export(module, example, dynamic_shapes=({0: batch},))

    stage("aoti")
    torch._inductor.aoti_compile_and_package(program, package_path=str(folder / "model.pt2"))

    stage("onnx")
    torch.onnx.export(program, f=str(folder / "model.onnx"), dynamo=True, opset_version=20, verbose=False)

    stage("ort load")
    import onnxruntime

    onnxruntime.InferenceSession(str(folder / "model.onnx"), providers=["CPUExecutionProvider"])


def stage(name: str) -> None:
    """Tell the reader of this process's output that a stage begins."""
    print(f"stage {name}", flush=True)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], Path(sys.argv[3]), int(sys.argv[4]))
