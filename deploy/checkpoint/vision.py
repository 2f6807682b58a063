"""The one place that imports torchvision, beside a CPU-only torch too.

Owns the import and what must happen before it. Knows nothing of architectures.
Called by the zoo when its index is built, and by `build` when a module is.
"""

from importlib.machinery import EXTENSION_SUFFIXES
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from deploy.errors import MissingError

if TYPE_CHECKING:
    from torch import Tensor

_NMS = "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"
_NMS_BLOCK = 512  # boxes whose overlaps with all others are held at once
_registered: list[Any] = []  # a torch.library.Library takes its schemas with it when it is collected


def torchvision_version() -> str:
    """The installed release of torchvision, read without importing it. Raises MissingError if there is none."""
    try:
        return version("torchvision")
    except PackageNotFoundError as error:
        raise MissingError("torchvision is not installed", fix="pip install torchvision") from error


def minor_release() -> str:
    """`0.28` of torchvision 0.28.1: within a minor release the builders stay as they are."""
    return ".".join(torchvision_version().split(".")[:2])


def import_torchvision() -> ModuleType:
    """The module `torchvision`, with everything but its C++ ops where those cannot load, and those with its `nms`.

    PyPI's torchvision is a CUDA build. Beside a CPU-only torch its C++ library cannot load, and the import then fails
    on `operator torchvision::nms does not exist`; with the two schemas declared first, it succeeds. The first of them
    gets an implementation in torch, so that detectors run eagerly.
    Raises MissingError if torchvision is absent or does not fit this torch.
    """
    import torch

    release = torchvision_version()
    native = native_ops_load()
    if not native:
        _declare_schemas()
    try:
        import torchvision
    except (ImportError, RuntimeError) as error:
        raise MissingError(
            f"torchvision {release} cannot be imported beside torch {torch.__version__}: {error}",
            expected="releases of the two that belong together",
            fix="install the torchvision that matches this torch (see pytorch.org/get-started)",
        ) from error
    if not native:
        # It guards `nms` by whether the C++ library loaded; other users of that guard keep it.
        torchvision.ops.boxes._assert_has_ops = lambda: None
    return torchvision  # type: ignore[no-any-return]


def native_ops_load() -> bool:
    """Whether torchvision's C++ library loads; if so it is loaded, which its import would do anyway."""
    import torch

    spec = find_spec("torchvision")
    assert spec is not None and spec.origin is not None
    folder = Path(spec.origin).parent
    library = next((path for suffix in EXTENSION_SUFFIXES if (path := folder / f"_C{suffix}").exists()), None)
    if library is None:
        return False
    try:
        torch.ops.load_library(library)
    except OSError:
        return False
    return True


def _declare_schemas() -> None:
    import torch

    if hasattr(torch.ops.torchvision, "nms"):
        return
    library = torch.library.Library("torchvision", "DEF")
    for name in ("nms", "qnms"):
        library.define(f"{name}{_NMS}")
    library.impl("nms", non_maximum_suppression, "CompositeExplicitAutograd")
    _registered.append(library)


def non_maximum_suppression(dets: "Tensor", scores: "Tensor", iou_threshold: float) -> "Tensor":
    """The indices of the boxes that stay, best score first: one goes if it overlaps a better one that stays by more.

    `dets` are corners (x1, y1, x2, y2); overlap is intersection over union.
    """
    import torch

    order = scores.argsort(descending=True, stable=True)
    boxes = dets[order]
    areas = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
    gone = torch.zeros(len(boxes), dtype=torch.bool)
    for start in range(0, len(boxes), _NMS_BLOCK):
        block = slice(start, start + _NMS_BLOCK)
        corner = torch.maximum(boxes[block, None, :2], boxes[None, start:, :2])
        far = torch.minimum(boxes[block, None, 2:], boxes[None, start:, 2:])
        shared = (far - corner).clamp(min=0).prod(-1)
        over = shared / (areas[block, None] + areas[None, start:] - shared) > iou_threshold
        for offset, row in enumerate(over):
            if not gone[start + offset]:
                gone[start + offset + 1 :] |= row[offset + 1 :]
    return order[~gone]
