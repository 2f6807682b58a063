"""Networks that make answers of rounding errors on some inputs are told from artifacts that are wrong."""

import numpy as np
import torch
from torch import Tensor, nn

from deploy.validate.conditioning import Rounding, explains, rounding_of

NOISE = np.random.default_rng(0).standard_normal((1, 400)).astype(np.float32)
SILENCE = np.zeros((1, 400), dtype=np.float32)


class Standardised(nn.Module):
    """Logarithms of loudness over their own deviation, which silence has none of."""

    def forward(self, wave: Tensor) -> tuple[Tensor, Tensor]:
        loud = torch.log(wave.square() + 1e-6)
        even = loud - loud.mean(1, keepdim=True)
        return (even / (even.std(1, keepdim=True) + 1e-5)).relu().sum(1), loud


def test_rounding_moves_the_answer_where_nothing_else_is_left() -> None:
    rounding = rounding_of(Standardised(), [SILENCE])
    assert rounding is not None
    assert rounding.moves[0] > 1 and rounding.moves[1] < 1e-4
    assert rounding.place.startswith("aten.sub")
    assert __file__ in rounding.place and "even = loud - loud.mean" in rounding.place


def test_rounding_moves_no_other_answer() -> None:
    rounding = rounding_of(Standardised(), [NOISE])
    assert rounding is not None
    assert max(rounding.moves) < 1e-2
    assert not rounding.place


def test_eager_is_as_it_was() -> None:
    module = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.ReLU(inplace=True)).eval()
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    assert rounding_of(module, [NOISE[:, :4]]) is not None
    assert all(torch.equal(tensor, before[name]) for name, tensor in module.state_dict().items())


def test_a_module_whose_rounded_values_are_places_is_passed_over() -> None:
    class Placed(nn.Module):
        def forward(self, wave: Tensor) -> Tensor:
            return wave[:, (wave.mean(1) * 399).ceil().long()]

    assert rounding_of(Placed(), [SILENCE + 1]) is None


def test_it_explains_only_errors_of_its_own_size() -> None:
    rounding = Rounding(moves=(0.05, 1e-6), place="")
    assert explains(rounding, errors=(0.1, 1e-6), allowed=(1e-5, 1e-5))
    assert not explains(rounding, errors=(0.5, 1e-6), allowed=(1e-5, 1e-5))
    assert not explains(rounding, errors=(0.1, 1e-3), allowed=(1e-5, 1e-5))
    assert not explains(rounding, errors=(1e-6, 1e-6), allowed=(1e-5, 1e-5))
