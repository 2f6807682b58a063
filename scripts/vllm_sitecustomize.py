"""Lets a CUDA build of torchvision be imported beside a CPU torch, in every process of the vLLM environment."""

import importlib.abc
import importlib.machinery
import sys
from collections.abc import Sequence
from types import ModuleType


class _DeclareFirst(importlib.abc.MetaPathFinder):
    """On the first import of torchvision, declares the two operators that its Python code names."""

    def find_spec(
        self, name: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        """Always None: the module itself is found by whoever comes next."""
        if name == "torchvision":
            sys.meta_path.remove(self)
            import torch

            library = torch.library.Library("torchvision", "DEF")
            for operator in ("nms", "qnms"):
                library.define(f"{operator}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
            globals()["_kept"] = library
        return None


sys.meta_path.insert(0, _DeclareFirst())
