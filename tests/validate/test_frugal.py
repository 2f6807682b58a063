"""Eager runs that hold their weights once give what runs with weights of their own give."""

from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from deploy.checkpoint.lazy import Lazy
from deploy.validate.executables import EagerModel
from deploy.validate.frugal import ExactModule, Nudges
from tests.validate.rig import load_factory


class Stubborn(nn.Module):
    """A layer of more than a megabyte that asks for its weights' memory, which a lazy one has not."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(600, 600)

    def forward(self, rows: Tensor) -> Tensor:
        assert self.layer.weight.data_ptr() != 0
        return self.layer(rows)  # type: ignore[no-any-return]


def stubborn() -> nn.Module:
    return Stubborn()


def wide() -> nn.Module:
    return nn.Sequential(nn.Linear(600, 600), nn.ReLU(), nn.Linear(600, 600))


ROWS = np.random.default_rng(0).standard_normal((3, 600)).astype(np.float32)


def test_the_reference_is_the_same(tmp_path: Path) -> None:
    checkpoint = load_factory(wide(), "wide", tmp_path, shapes=((600,),), source=__name__)
    rows = torch.from_numpy(ROWS).double()

    frugal = ExactModule(checkpoint, "float64", frugal_from=0)

    with torch.inference_mode():
        (found,), (wanted,) = frugal(rows), ExactModule(checkpoint, "float64")(rows)
    assert any(isinstance(one, Lazy) for one in frugal._module.parameters())
    assert torch.equal(found, wanted)


def test_a_module_that_needs_its_weights_memory_is_converted_as_a_whole(tmp_path: Path) -> None:
    checkpoint = load_factory(stubborn(), "stubborn", tmp_path, shapes=((600,),), source=__name__)

    frugal = ExactModule(checkpoint, "float64", frugal_from=0)

    with torch.inference_mode():
        (found,) = frugal(torch.from_numpy(ROWS).double())
    assert found.dtype == torch.float64
    assert not any(isinstance(one, Lazy) for one in frugal._module.parameters())


def test_weights_off_by_a_rounding_are_drawn_once_and_held_once(tmp_path: Path) -> None:
    checkpoint = load_factory(wide(), "wide", tmp_path, shapes=((600,),), source=__name__)
    eager = EagerModel(checkpoint, threads=1)

    (first,), (again,), (other,) = (eager.run_nudged([ROWS], draw=draw) for draw in (0, 0, 1))

    (plain,) = eager.run([ROWS])
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other) and not np.array_equal(first, plain)
    np.testing.assert_allclose(first, plain, atol=1e-5)
    weights = Nudges(wide()).weights(0)
    assert isinstance(weights["0.weight"], Lazy) and not isinstance(weights["0.bias"], Lazy)
