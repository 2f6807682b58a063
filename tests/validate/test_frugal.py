"""Eager runs that hold their weights once give what runs with weights of their own give."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from deploy.checkpoint.lazy import Lazy
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


def test_weights_off_by_a_rounding_are_the_same_drawn_either_way() -> None:
    module, rows = wide().requires_grad_(False), (torch.from_numpy(ROWS),)
    frugal, plain = Nudges(module, frugal_from=0), Nudges(module)
    with torch.inference_mode():
        for draw in (0, 1, 0):
            found, wanted, unchanged = frugal(rows, draw=draw), plain(rows, draw=draw), module(*rows)
            assert torch.equal(found, wanted) and not torch.equal(found, unchanged)
            torch.testing.assert_close(found, unchanged, rtol=1e-4, atol=1e-5)
    assert isinstance(frugal._weights["0.weight"], Lazy) and not isinstance(frugal._weights["0.bias"], Lazy)
    assert not any(isinstance(one, Lazy) for one in plain._weights.values())


def test_weights_that_a_module_needs_in_memory_are_drawn_whole() -> None:
    module, rows = stubborn().requires_grad_(False), (torch.from_numpy(ROWS),)
    with torch.inference_mode():
        assert torch.equal(Nudges(module, frugal_from=0)(rows, draw=1), Nudges(module)(rows, draw=1))


class Tied(nn.Module):
    """Tokens in and out by one matrix, as of a masked language model: its state_dict has two names for it."""

    def __init__(self) -> None:
        super().__init__()
        self.tokens = nn.Embedding(6, 4)
        self.head = nn.Linear(4, 6, bias=False)
        self.head.weight = self.tokens.weight

    def forward(self, ids: Tensor) -> Tensor:
        return self.head(self.tokens(ids))  # type: ignore[no-any-return]


def test_tied_weights_are_nudged_as_one() -> None:
    module, ids = Tied().requires_grad_(False), torch.arange(6).reshape(1, 6)
    plain, nudged = module(ids), Nudges(module)((ids,), draw=1)
    assert not torch.equal(nudged, plain)
    torch.testing.assert_close(nudged, plain, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_weights_rounded_once_more_are_off_by_a_rounding_in_the_mean_square(dtype: torch.dtype) -> None:
    module = nn.Linear(600, 600).requires_grad_(False).to(dtype)
    own = module.weight.clone()
    own[0, :3] = torch.tensor([0.0, -0.0, torch.finfo(dtype).max])
    module.weight.copy_(own)
    nudges = Nudges(module, rounded=True)
    drawn = nudges._drawn(0)["weight"]
    moved = drawn != own
    assert drawn.dtype == dtype and drawn.isfinite().all()
    assert drawn[own == 0].eq(0).all()
    assert moved.float().mean() == pytest.approx(1 / 12, rel=0.05)
    up, down = (torch.nextafter(own, torch.full_like(own, end)) for end in (torch.inf, -torch.inf))
    assert (~moved | (drawn == up) | (drawn == down)).all()
    assert ((drawn == up) & moved).sum() == pytest.approx(int(moved.sum()) / 2, rel=0.05)
    assert torch.equal(drawn, nudges._drawn(0)["weight"]) and not torch.equal(drawn, nudges._drawn(1)["weight"])


def test_weights_rounded_once_more_are_the_same_drawn_either_way() -> None:
    module = nn.Linear(600, 900).requires_grad_(False).half()
    rows = (torch.from_numpy(ROWS).half(),)
    frugal, plain = Nudges(module, frugal_from=0, rounded=True), Nudges(module, rounded=True)
    with torch.inference_mode():
        found, wanted = frugal(rows, draw=0), plain(rows, draw=0)
        assert torch.equal(found, wanted) and not torch.equal(found, module(*rows))
    assert isinstance(frugal._weights["weight"], Lazy)
    single = nn.Linear(4, 4).requires_grad_(False)
    assert torch.equal(Nudges(single, rounded=True)._drawn(0)["weight"], single.weight)
