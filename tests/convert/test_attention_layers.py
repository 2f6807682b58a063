"""Attention of a sequence with itself exports to one product and reads of it, and to what a call computes."""

from collections import Counter
from collections.abc import Callable
from contextlib import nullcontext

import pytest
import torch
from torch import Tensor, nn
from torch.export import Dim

from deploy.convert.attention_layers import attention_in_place

ROWS, POSITIONS, WIDTH, HEADS = 3, 5, 8, 2
Given = dict[str, Tensor | bool]


def layer(**options: object) -> nn.MultiheadAttention:
    torch.manual_seed(0)
    made = nn.MultiheadAttention(WIDTH, HEADS, **options)
    for name, parameter in made.named_parameters():
        if "bias" in name:
            nn.init.normal_(parameter)
    return made.eval().requires_grad_(False)


def sequence(*, batch_first: bool) -> Tensor:
    shape = (ROWS, POSITIONS, WIDTH) if batch_first else (POSITIONS, ROWS, WIDTH)
    return torch.randn(shape, generator=torch.Generator().manual_seed(1))


def causal() -> Tensor:
    return torch.ones(POSITIONS, POSITIONS, dtype=torch.bool).triu(1)


def padding() -> Tensor:
    return torch.arange(POSITIONS) >= torch.tensor([[POSITIONS], [3], [1]])


def per_head() -> Tensor:
    return torch.randn(ROWS * HEADS, POSITIONS, POSITIONS, generator=torch.Generator().manual_seed(2))


MASKS: dict[str, Callable[[], Given]] = {
    "none": dict,
    "causal": lambda: {"attn_mask": causal()},
    "causal by the hint": lambda: {"attn_mask": causal(), "is_causal": True},
    "numbers": lambda: {"attn_mask": torch.zeros(POSITIONS, POSITIONS).masked_fill(causal(), -2.0)},
    "per head": lambda: {"attn_mask": per_head()},
    "padding": lambda: {"key_padding_mask": padding()},
    "padding and causal": lambda: {"attn_mask": causal(), "key_padding_mask": padding(), "is_causal": True},
    "padding and per head": lambda: {"attn_mask": per_head(), "key_padding_mask": padding() * -3.0},
}


@pytest.mark.parametrize("batch_first", [True, False])
@pytest.mark.parametrize("masks", MASKS)
@pytest.mark.filterwarnings("ignore:Support for mismatched key_padding_mask and attn_mask:UserWarning")
def test_it_computes_what_torch_does(masks: str, batch_first: bool) -> None:
    attention, x = layer(batch_first=batch_first), sequence(batch_first=batch_first)
    called, _ = attention(x, x, x, need_weights=False, **MASKS[masks]())
    with attention_in_place():
        traced, weights = attention(x, x, x, need_weights=False, **MASKS[masks]())
    assert weights is None
    torch.testing.assert_close(traced, called, rtol=1e-5, atol=1e-6)


ADDED: tuple[dict[str, object], ...] = (
    {"add_bias_kv": True},
    {"add_zero_attn": True},
    {"add_bias_kv": True, "add_zero_attn": True, "bias": False},
)


@pytest.mark.parametrize("batch_first", [True, False])
@pytest.mark.parametrize("to_other", [True, False])
@pytest.mark.parametrize("options", ADDED)
@pytest.mark.parametrize("masks", MASKS)
@pytest.mark.filterwarnings("ignore:Support for mismatched key_padding_mask and attn_mask:UserWarning")
def test_keys_that_the_layer_adds_are_attended_to_as_in_torch(
    masks: str, options: dict[str, object], to_other: bool, batch_first: bool
) -> None:
    attention, x = layer(batch_first=batch_first, **options), sequence(batch_first=batch_first)
    other = 2 * x if to_other else x
    for wanted in (False, True):
        called = attention(x, other, x, need_weights=wanted, **MASKS[masks]())
        with attention_in_place():
            traced = attention(x, other, x, need_weights=wanted, **MASKS[masks]())
        torch.testing.assert_close(traced, called, rtol=1e-5, atol=1e-6)


class Padded(nn.Module):
    """A layer that is told where the padding is."""

    def __init__(self, attention: nn.MultiheadAttention) -> None:
        super().__init__()
        self.attention = attention

    def forward(self, x: Tensor, other: Tensor, mask: Tensor) -> Tensor:
        return self.attention(x, other, other, key_padding_mask=mask == 0)[0]  # type: ignore[no-any-return]


@pytest.mark.parametrize("options", ADDED)
def test_keys_that_the_layer_adds_follow_any_number_of_others(options: dict[str, object]) -> None:
    module, x, mask = Padded(layer(batch_first=True, **options)), sequence(batch_first=True), (~padding()).long()
    batch, length = Dim("batch", min=1, max=8), Dim("length", min=1, max=24)
    with attention_in_place():
        exported = torch.export.export(module, (x, x * 2, mask), dynamic_shapes=({0: batch, 1: length},) * 3)
    for rows in (slice(None), slice(2, 3)):
        for positions in (1, 3, POSITIONS):
            given = (x[rows, :positions], -x[rows, :positions], mask[rows, :positions])
            torch.testing.assert_close(exported.module()(*given), module(*given), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("average", [True, False])
@pytest.mark.parametrize("masks", MASKS)
@pytest.mark.filterwarnings("ignore:Support for mismatched key_padding_mask and attn_mask:UserWarning")
def test_the_weights_are_torchs_where_a_call_wants_them(masks: str, average: bool) -> None:
    attention, x = layer(batch_first=True), sequence(batch_first=True)
    called = attention(x, x, x, average_attn_weights=average, **MASKS[masks]())
    with attention_in_place():
        traced = attention(x, x, x, average_attn_weights=average, **MASKS[masks]())
    for ours, theirs in zip(traced, called, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)


class Attention(nn.Module):
    """A layer that attends within its input, or to another."""

    def __init__(self, attention: nn.MultiheadAttention, *, other: bool = False, weights: bool = False) -> None:
        super().__init__()
        self.attention = attention
        self.other = other
        self.weights = weights

    def forward(self, x: Tensor) -> Tensor:
        other = x * 2 if self.other else x
        return self.attention(x, other, other, need_weights=self.weights)[0]  # type: ignore[no-any-return]


def operators(module: nn.Module, *, patched: bool = True) -> Counter[str]:
    """How often the exported graph, which computes what the module does, has each operator that something reads."""
    example, batch = sequence(batch_first=True), Dim("batch", min=1, max=8)
    with attention_in_place() if patched else nullcontext():
        exported = torch.export.export(module, (example,), dynamic_shapes=({0: batch},), strict=False)
    torch.testing.assert_close(exported.module()(example[:2]), module(example[:2]), rtol=1e-5, atol=1e-6)
    exported.graph.eliminate_dead_code()  # as both converters do
    return Counter(str(node.target) for node in exported.graph.nodes)


@pytest.mark.parametrize("weights", [False, True])
def test_its_graph_copies_nothing_and_has_no_weights_that_nobody_reads(weights: bool) -> None:
    module = Attention(layer(batch_first=True), weights=weights)
    before, after = operators(module, patched=False), operators(module)
    copies = ("aten.contiguous.default", "aten.clone.default")
    assert any(before[name] for name in copies)
    assert not any(after[name] for name in copies)
    assert after["aten.scaled_dot_product_attention.default"] == 1
    assert after["aten.softmax.int"] == 0
    assert after["aten.linear.default"] == 2


@pytest.mark.parametrize("options", [{}, {"kdim": WIDTH, "vdim": WIDTH}])
def test_attention_to_another_sequence_is_left_to_torch(options: dict[str, object]) -> None:
    module = Attention(layer(batch_first=True, **options), other=True)
    assert operators(module) == operators(module, patched=False)


def test_torch_is_left_as_it_was() -> None:
    before = nn.MultiheadAttention.forward
    with pytest.raises(ZeroDivisionError), attention_in_place():
        assert nn.MultiheadAttention.forward is not before
        raise ZeroDivisionError
    assert nn.MultiheadAttention.forward is before
