"""Sums by index in AOTInductor's code, as `F.fold` and `index_add` make them behind a convolution, at their places.

Owns one mend of torch's compiler for the CPU. Called by aoti, in a child process.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


@contextmanager
def sums_at_their_places() -> Iterator[None]:
    """While this lasts, a sum by index that is computed in tiles counts the place within a tile once.

    Torch 2.13 counts it twice where several threads may work: it writes to other places, and beyond its memory. A
    release that writes tiles otherwise is left as it is. Not for use in several threads at once.
    """
    from torch._inductor import config
    from torch._inductor.codegen import cpp

    tiles = getattr(cpp, "CppTile2DKernel", None)
    written = getattr(tiles, "store", None)
    if tiles is None or written is None:
        yield
        return

    def store(self: Any, name: str, index: Any, value: Any, mode: Any = None) -> Any:
        threads = config.cpp.dynamic_threads or self.num_threads != 1
        if mode == "atomic_add" and threads and not self.need_vec_transpose(self.rename_indexing(index)):
            # Computing the place as a value counts what is within the tile; torch's own method has it counted before.
            return cpp.CppVecKernel.store(self, name, index, value, mode)
        return written(self, name, index, value, mode)

    tiles.store = store
    try:
        yield
    finally:
        tiles.store = written
