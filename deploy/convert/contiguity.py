"""Whether a tensor lies in order in memory, asked by a tracer without binding the sizes of requests.

Owns one mend of torch's tracer. A causal mask that is kept as a table of the longest sequence and cut to the one at
hand, `mask[:n, :n]`, lies in order at the longest alone. Torch asks that for facts it can do without, takes the answer
of the traced sample, and then refuses to trace for the longest too. Called by traced, round each export.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

# Those that ask for an order: rows first, channels last in images, channels last in volumes.
_QUESTIONS = ("is_contiguous", "is_channels_last_contiguous_2d", "is_channels_last_contiguous_3d")


@contextmanager
def unbound_sizes() -> Iterator[None]:
    """While this lasts, a tensor out of order in the traced sample is taken for one at any size: the general case.

    One that is in order binds the sizes as ever, as all do in a release of torch that asks otherwise. Not for use in
    several threads at once.
    """
    from torch import _prims_common as own

    before = {name: getattr(own, name) for name in _QUESTIONS if hasattr(own, name)}
    for name, question in before.items():
        setattr(own, name, _unbound(question))
    try:
        yield
    finally:
        for name, question in before.items():
            setattr(own, name, question)


def _unbound(question: Callable[..., bool]) -> Callable[..., bool]:
    def asked(tensor: Any, false_if_dde: bool = False) -> bool:
        environment = _sizes_of(tensor) if false_if_dde else None
        if environment is not None:
            with environment.suppress_guards():
                if not question(tensor, false_if_dde):
                    return False
        return question(tensor, false_if_dde)

    return asked


def _sizes_of(tensor: Any) -> Any:
    """Where the tracer keeps what it knows of the tensor's sizes; None where all of them are numbers."""
    import torch

    sizes = (size for size in (*tensor.shape, *tensor.stride()) if isinstance(size, torch.SymInt))
    return next((size.node.shape_env for size in sizes), None)
