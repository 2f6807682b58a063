"""The compiler's rules for the dtype of an operator's result, put together once.

Owns one mend of torch's inductor: what it means to be one object for all is put together anew at each operator of each
kernel, a good part of what a large network takes to compile. Called by aoti, in a child process.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any


@contextmanager
def rules_made_once() -> Iterator[None]:
    """While this lasts, the rules are put together at first and where there are more of them than before.

    A release of torch that has other ones is left as it is. Not for use in several threads at once.
    """
    from torch._inductor import dtype_propagation

    handler: Any = getattr(dtype_propagation, "DtypePropagationOpsHandler", None)
    put_together: Callable[[Any], None] | None = vars(handler).get("__init__") if handler else None
    if put_together is None or _rules() is None:
        yield
        return
    known: tuple[int, int] | None = None

    def made_once(self: Any) -> None:
        nonlocal known
        if (now := _rules()) != known:
            put_together(self)
            known = now

    handler.__init__ = made_once
    try:
        yield
    finally:
        handler.__init__ = put_together


def _rules() -> tuple[int, int] | None:
    """How many there are of both kinds; None where this torch keeps them elsewhere."""
    from torch._inductor import utils
    from torch._inductor.codegen import common

    by_name = getattr(utils, "op_dtype_propagation_rules", None)
    by_element = getattr(common, "pointwise_overrides_data", None)
    return None if by_name is None or by_element is None else (len(by_name), len(by_element))
