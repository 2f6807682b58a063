"""Eager models that do not hold their weights a second time: the reference in float64, and eager off by a rounding.

Owns when that is worth it, and what happens where a model does not allow it. Called by executables, in a child.
"""

import sys
from collections.abc import Iterator
from typing import Any

from deploy.checkpoint.model import Checkpoint
from deploy.convert.flatten import flat_module
from deploy.convert.model import Device

_LARGE = 256_000_000  # bytes of a checkpoint; a smaller one is converted as a whole


class ExactModule:
    """The checkpoint in another dtype, as a function of flat tensors.

    The weights of a large one are converted while they are read. Where its code does with them what such weights do not
    allow, it is converted as a whole after all.
    """

    def __init__(
        self, checkpoint: Checkpoint, dtype: str, *, device: Device = "cpu", frugal_from: int = _LARGE
    ) -> None:
        self._checkpoint = checkpoint
        self._dtype = dtype
        self._device = device
        self._frugal = device == "cpu" and checkpoint.size >= frugal_from
        self._module = self._build()

    def __call__(self, *tensors: Any) -> Any:
        """The outputs."""
        try:
            return self._module(*tensors)
        except Exception as error:
            if not self._frugal:
                raise
            print(f"converted as a whole: {type(error).__name__}: {error}", file=sys.stderr)
        self._frugal = False
        self._module = self._build()
        return self._module(*tensors)

    def _build(self) -> Any:
        module = flat_module(self._checkpoint, self._dtype, as_in_training=True, lazily=self._frugal)
        return module if self._device == "cpu" else module.to(self._device)


class Nudges:
    """A module with its weights each off by two epsilons, up or down, drawn by a seed.

    `rounded`: its half-precision weights are instead as one more rounding leaves them, by which a converter that folds
    a scale into them, as ONNX's does with a batch norm, cannot but be off. Otherwise even draws nudge channel by
    channel, as other roundings do; odd ones tensor by tensor, as do activation functions that another library
    approximates with a bias. The weights of the last draw are kept: those of a large module as what makes them, unless
    its code does with them what such weights do not allow.
    """

    def __init__(self, module: Any, *, frugal_from: int = _LARGE, rounded: bool = False) -> None:
        self._module = module
        self._rounded = rounded
        self._frugal = sum(tensor.nbytes for tensor in module.state_dict().values()) >= frugal_from
        self._draw: int | None = None
        self._weights: dict[str, Any] = {}

    def __call__(self, tensors: tuple[Any, ...], *, draw: int) -> Any:
        """The outputs for flat tensors."""
        import torch

        try:
            return torch.func.functional_call(self._module, self._drawn(draw), tensors)
        except Exception as error:
            if not self._frugal:
                raise
            print(f"nudged as a whole: {type(error).__name__}: {error}", file=sys.stderr)
        self._frugal, self._draw = False, None
        return torch.func.functional_call(self._module, self._drawn(draw), tensors)

    def _drawn(self, draw: int) -> dict[str, Any]:
        if draw != self._draw:
            self._weights.clear()
            self._weights = dict(self._made(draw))
            self._draw = draw
        return self._weights

    def _made(self, draw: int) -> Iterator[tuple[str, Any]]:
        import torch

        generator = torch.Generator().manual_seed(draw)
        seen: set[int] = set()
        for name, tensor in self._module.state_dict(keep_vars=True).items():
            if id(tensor) not in seen:  # tied: the other names follow
                seen.add(id(tensor))
                if self._rounded:
                    yield name, _rounded_again(tensor.detach(), generator, lazily=self._frugal)
                else:
                    yield name, _nudged(tensor.detach(), generator, whole=draw % 2 == 1, lazily=self._frugal)


def _nudged(tensor: Any, generator: Any, *, whole: bool, lazily: bool) -> Any:
    """The tensor scaled by 1 ± 2 epsilons: as a whole, or each slice along its first axis, an output channel."""
    import torch

    from deploy.checkpoint.lazy import Lazy, is_worth_it

    if not tensor.is_floating_point() or tensor.dim() == 0:
        return tensor
    channels = 1 if whole else len(tensor)
    signs = 2 * torch.randint(0, 2, (channels, *[1] * (tensor.dim() - 1)), generator=generator) - 1
    signs = signs.to(tensor.device)
    factors = (1 + 2 * torch.finfo(tensor.dtype).eps * signs).to(tensor.dtype)
    if lazily and is_worth_it(tensor):
        return Lazy(tensor, tensor.dtype, lambda own: own * factors)
    return tensor * factors


def _rounded_again(tensor: Any, generator: Any, *, lazily: bool) -> Any:
    """A tensor of half precision as if rounded once more; any other as it is.

    Rounding to nearest is off by ulp²/12 in the mean square. One element in twelve moved by an ulp is too.
    """
    import torch

    from deploy.checkpoint.lazy import Lazy, is_worth_it

    if not tensor.is_floating_point() or tensor.dtype.itemsize != 2:
        return tensor
    seed = int(torch.randint(0, 2**31, (), generator=generator))

    def moved(own: Any) -> Any:
        faces = torch.randint(0, 24, own.shape, dtype=torch.int8, generator=torch.Generator().manual_seed(seed))
        faces = faces.to(own.device)
        # The neighbours of a float are those of its bits as an integer; next to zero and at the end there is none.
        steps = (faces == 0).to(torch.int16) - (faces == 1).to(torch.int16)
        there = (own.contiguous().view(torch.int16) + steps).view(own.dtype)
        return torch.where((own != 0) & there.isfinite(), there, own)

    return Lazy(tensor, tensor.dtype, moved) if lazily and is_worth_it(tensor) else moved(tensor)
