"""The one place that imports torchvision, beside a CPU-only torch too.

Owns the import and what must happen before it. Knows nothing of architectures.
Called by the zoo when its index is built, and by `build` when a module is.
"""

from importlib.machinery import EXTENSION_SUFFIXES
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import Any

from deploy.errors import MissingError

_NMS = "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"
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
    """The module `torchvision`, with everything but its C++ ops where those cannot load.

    PyPI's torchvision is a CUDA build. Beside a CPU-only torch its C++ library cannot load, and the import then fails
    on `operator torchvision::nms does not exist`; with the two schemas declared first, it succeeds.
    Raises MissingError if torchvision is absent or does not fit this torch.
    """
    import torch

    release = torchvision_version()
    if not native_ops_load():
        _declare_schemas()
    try:
        import torchvision
    except (ImportError, RuntimeError) as error:
        raise MissingError(
            f"torchvision {release} cannot be imported beside torch {torch.__version__}: {error}",
            expected="releases of the two that belong together",
            fix="install the torchvision that matches this torch (see pytorch.org/get-started)",
        ) from error
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
    _registered.append(library)
