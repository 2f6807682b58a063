"""`len(tensor)` while a module is traced: the tensor's first size, which need not be a number.

Owns one mend of Python's own `len`, which must give a number and so makes the batch of the sample a constant. Forwards
ask it for their batch as often as not: `x.view(len(x), -1)`. Called by traced, round each export.
"""

from __future__ import annotations

import builtins
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


@contextmanager
def lengths_unbound() -> Iterator[None]:
    """While this lasts, `len` of a tensor is its first size where that is open. Not for several threads at once."""
    import torch

    plain = builtins.len

    def length(held: Any, /) -> Any:
        sizes: Any = held.shape if isinstance(held, torch.Tensor) else ()
        return sizes[0] if sizes and isinstance(sizes[0], torch.SymInt) else plain(held)

    builtins.len = length
    try:
        yield
    finally:
        builtins.len = plain
