"""Whether a factory gives the network that the file's weights determine, or another one in each call.

Owns the second build and what is said where its answers differ. Called by export, with what the first build answered.

What a file does not hold, a factory makes anew: a table of random numbers, a part in a Python list. Every child of one
command starts from the same random state, so eager, the reference and the artifacts would agree on a network that
nobody trained.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from deploy.convert.flatten import leaves
from deploy.convert.repeats import alike
from deploy.errors import UsageError

if TYPE_CHECKING:
    from torch import Tensor, nn

_OTHER_SEED = 20_011
_MOST_NAMES = 3


def require_rebuilt(
    module: nn.Module, outputs: Any, *, build: Callable[[], nn.Module], call: Callable[[nn.Module], Any]
) -> None:
    """Raises UsageError if the module that `build` gives under another random state answers `call` otherwise.

    `outputs` are what the first one answered. The random state is afterwards what it was.
    """
    with _other_randomness():
        other = build()
    again = [tensor for _, tensor in leaves(call(other))]
    if all(map(alike, (tensor for _, tensor in leaves(outputs)), again)):
        return
    names = _differing(module, other)
    what = f": {', '.join(names[:_MOST_NAMES])} {'is' if len(names) == 1 else 'are'} not in the file" if names else ""
    raise UsageError(
        f"the factory gives another network in each call{what}",
        expected="a network that the weights in the file determine: what a factory draws at random was not trained",
        fix="train and save it with the rest: a table as a buffer (register_buffer), parts in an nn.ModuleList, not "
        "a Python list; or draw it from a generator with the seed that training had",
    )


@contextmanager
def _other_randomness() -> Iterator[None]:
    import numpy as np
    import torch

    of_python, of_numpy = random.getstate(), np.random.get_state()
    with torch.random.fork_rng(devices=[]):
        random.seed(_OTHER_SEED)
        np.random.seed(_OTHER_SEED)
        torch.manual_seed(_OTHER_SEED)
        try:
            yield
        finally:
            random.setstate(of_python)
            np.random.set_state(of_numpy)


def _differing(first: nn.Module, second: nn.Module) -> list[str]:
    """The names of what lies outside of the state_dict and has other values in the two."""
    ones, others = dict(_outside(first)), dict(_outside(second))
    return [name for name, one in ones.items() if name in others and not alike(one, others[name])]


def _outside(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    import torch
    from torch import nn

    kept = module.state_dict()
    for name, buffer in module.named_buffers():
        if name not in kept:
            yield name, buffer
    for path, part in module.named_modules():
        for attribute, value in vars(part).items():
            name = f"{path}.{attribute}".lstrip(".")
            if isinstance(value, torch.Tensor):
                yield name, value
            for index, item in enumerate(value if isinstance(value, list | tuple) else ()):
                if isinstance(item, torch.Tensor):
                    yield f"{name}[{index}]", item
                elif isinstance(item, nn.Module):
                    yield from ((f"{name}[{index}].{inner}", one) for inner, one in item.named_parameters())
