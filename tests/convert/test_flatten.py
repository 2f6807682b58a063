from collections import OrderedDict
from dataclasses import dataclass
from functools import partial

import pytest
import torch
from torch import Tensor, nn

from deploy.convert.flatten import output_names, positional
from deploy.errors import UsageError
from tests.models import ConvNet, Detector, Nested, TwoTowers

ROW = torch.zeros(2, 3)


def test_lone_tensor_is_called_output() -> None:
    assert output_names(ROW) == ("output",)


def test_sequence_is_numbered() -> None:
    assert output_names((ROW, ROW)) == ("output_0", "output_1")
    assert output_names([ROW]) == ("output_0",)


def test_mapping_keeps_its_own_order() -> None:
    assert output_names(OrderedDict(z=ROW, a=ROW)) == ("z", "a")


def test_nested_names_are_joined_depth_first() -> None:
    outputs = ([ROW, ROW], {"mean": ROW}, Detector(boxes=ROW, scores=ROW))

    assert output_names(outputs) == ("output_0_0", "output_0_1", "output_1_mean", "output_2_boxes", "output_2_scores")


def test_names_that_meet_are_made_unique() -> None:
    assert output_names({"a": [ROW], "a_0": ROW, 1: ROW}) == ("a_0", "a_0_1", "1")


@pytest.mark.parametrize(
    ("outputs", "words"),
    [
        ({"logits": ROW, "size": 3}, "size is a int"),
        ((ROW, None, "text"), "output_2 is a str"),
        ([None], "returns no tensors"),
        ({}, "returns no tensors"),
    ],
)
def test_what_cannot_be_served_is_named(outputs: object, words: str) -> None:
    with pytest.raises(UsageError, match=words):
        output_names(outputs)


def test_positional_gives_the_same_tensors_in_flattened_order() -> None:
    module = Nested().eval()
    x = torch.randn(2, 6)
    (body, argmax), means, detector = module(x)

    flat = positional(module)(x)

    expected = [body, argmax, means["mean"], detector.boxes, detector.scores]
    assert all(torch.equal(found, wanted) for found, wanted in zip(flat, expected, strict=True))


def test_positional_takes_several_inputs_in_order() -> None:
    module = TwoTowers().eval()
    left, right = torch.randn(2, 6), torch.randn(2, 3)

    flat = positional(module)(left, right)

    assert torch.equal(flat[2], module(left=left, right=right)["difference"])


def test_positional_shares_weights_under_their_own_names() -> None:
    module = ConvNet().eval()
    twin = positional(module)

    assert list(twin.state_dict()) == list(module.state_dict())
    assert all(found is wanted for found, wanted in zip(twin.parameters(), module.parameters(), strict=True))
    assert not twin.training


def test_positional_leaves_the_module_as_it_was() -> None:
    module = ConvNet().eval()
    positional(module)

    assert type(module) is ConvNet
    assert isinstance(module(torch.randn(1, 3, 16, 16)), Tensor)


def test_positional_keeps_a_forward_set_on_the_instance() -> None:
    module = nn.Linear(3, 2)
    module.forward = partial(lambda linear, x: (linear.weight.sum() + x,), module)  # type: ignore[method-assign, assignment]

    (found,) = positional(module)(ROW)

    assert torch.equal(found, module.weight.sum() + ROW)


def test_a_single_number_gets_a_row_per_sample() -> None:
    class Loss(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.sum() + 3

    (found,) = positional(Loss())(ROW)

    assert torch.equal(found, torch.full((2, 1), 3.0))


@dataclass
class Answer:
    """What some libraries return in place of a dict."""

    scores: Tensor
    hidden: Tensor | None = None
    states: tuple[Tensor, ...] = ()


def test_a_dataclass_gives_its_fields_and_none_is_no_output() -> None:
    assert output_names(Answer(scores=ROW, states=(ROW,))) == ("scores", "states_0")
    assert output_names({"loss": None, "logits": ROW, "cache": {}}) == ("logits",)


class Keywords(nn.Module):
    """Inputs by keyword only, in an order of their own, one of them optional and one that has to be given."""

    def forward(self, *, bias: Tensor | None, scale: Tensor, x: Tensor, shift: Tensor | None = None) -> Tensor:
        y = x * scale
        return y if bias is None else y + bias


def test_inputs_are_given_by_the_names_of_the_forwards_parameters() -> None:
    twos = torch.full((2, 3), 2.0)
    (found,) = positional(Keywords(), ["x", "scale"], ["bias"])(ROW + 1, twos)
    assert torch.equal(found, twos)
    (found,) = positional(Keywords(), ["x", "scale", "bias"])(ROW + 1, twos, twos)
    assert torch.equal(found, twos + 2)


def test_names_that_the_forward_does_not_know_are_given_in_order() -> None:
    module = TwoTowers().eval()
    left, right = torch.randn(2, 6), torch.randn(2, 3)
    flat = positional(module, ["image", "text"])(left, right)
    assert torch.equal(flat[2], module(left, right)["difference"])


def test_a_forward_that_hands_on_takes_the_names_it_is_given() -> None:
    class HandsOn(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = Keywords()

        def forward(self, *args: Tensor, **kwargs: Tensor) -> Tensor:
            return self.inner(*args, **kwargs)  # type: ignore[no-any-return]

    (found,) = positional(HandsOn(), ["scale", "x"], ["bias"])(ROW + 2, ROW + 1)
    assert torch.equal(found, ROW + 2)
