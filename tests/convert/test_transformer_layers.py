"""torch's own transformers, as people bring them, export to what a call of them computes, at every length."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from deploy.checkpoint.load import build_module, read_checkpoint
from deploy.convert.export import export_program, load_program
from tests.signatures.models import ask

WIDTH, HEADS, LONGEST = 8, 2, 6
pytestmark = [
    pytest.mark.filterwarnings("ignore:.*LeafSpec.* is deprecated:FutureWarning"),  # torch's own, while it traces
    pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors is in prototype stage:UserWarning"),
]
Made = Callable[[nn.Module, tuple[str, ...]], tuple[nn.Module, nn.Module]]


class Encoder(nn.Module):
    """An encoder that is given a padding mask, with an answer for each word, padding among them."""

    def __init__(self) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(WIDTH, HEADS, 2 * WIDTH, batch_first=True)
        norm = nn.LayerNorm(WIDTH)
        nn.init.normal_(norm.bias)  # what stands at padding: zeros, normalized
        self.body = nn.TransformerEncoder(layer, 2, norm=norm)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        return self.body(x, src_key_padding_mask=mask == 0)  # type: ignore[no-any-return]


class NotNormalized(Encoder):
    """Without a layer behind the last one, and a mask of numbers to add."""

    def __init__(self) -> None:
        super().__init__()
        self.body.norm = None

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        padding = torch.zeros_like(x[..., 0]).masked_fill(mask == 0, -torch.inf)
        return self.body(x, src_key_padding_mask=padding)  # type: ignore[no-any-return]


class Decoder(nn.Module):
    """Each word sees those before it, by a mask of the longest text that is cut; nobody says that it is causal."""

    def __init__(self) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(WIDTH, HEADS, 2 * WIDTH, batch_first=True, norm_first=True)
        self.body = nn.TransformerEncoder(layer, 1, enable_nested_tensor=False)
        self.register_buffer("mask", nn.Transformer.generate_square_subsequent_mask(LONGEST))

    def forward(self, x: Tensor) -> Tensor:
        words = x.shape[1]
        return self.body(x, mask=self.get_buffer("mask")[:words, :words])  # type: ignore[no-any-return]


class ByItself(nn.Module):
    """Attention alone, with a mask of truth values that is cut to the length at hand."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.MultiheadAttention(WIDTH, HEADS, batch_first=True)
        self.register_buffer("hidden", torch.ones(LONGEST, LONGEST).triu(1).bool())

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.get_buffer("hidden")[: x.shape[1], : x.shape[1]]
        return self.body(x, x, x, attn_mask=hidden, need_weights=False)[0]  # type: ignore[no-any-return]


@pytest.fixture
def made(tmp_path: Path) -> Made:
    """The checkpoint's module, and its program as one, with texts of any length up to the longest."""

    def make(module: nn.Module, inputs: tuple[str, ...]) -> tuple[nn.Module, nn.Module]:
        dynamic = tuple(f"{one.partition('=')[0]}:1=1..{LONGEST}" for one in inputs)
        values = ("mask=mask",) if len(inputs) > 1 else ()
        request = ask(module, tmp_path / "m.pt", inputs, dynamic=dynamic, values=values)
        checkpoint = read_checkpoint(request)
        program = export_program(checkpoint, max_batch=4, folder=tmp_path)
        return build_module(checkpoint), load_program(program).module(check_guards=False)

    return make


@pytest.mark.parametrize("network", [Encoder, NotNormalized])
def test_an_encoder_leaves_zeros_at_padding_as_in_a_call(network: type[nn.Module], made: Made) -> None:
    module, program = made(network(), (f"x={LONGEST},{WIDTH}", f"mask=int64:{LONGEST}"))
    for lengths in ((1,), (4, 1), (5, 6, 2), (6, 6, 1, 3)):
        words = max(lengths)
        x = torch.randn(len(lengths), words, WIDTH)
        mask = (torch.arange(words) < torch.tensor(lengths).unsqueeze(1)).long()
        with torch.no_grad():
            (found,), wanted = program(x, mask), module(x, mask)
        torch.testing.assert_close(found, wanted)


def test_a_row_with_words_behind_its_padding_is_computed_as_a_call_of_it_alone(made: Made) -> None:
    module, program = made(Encoder(), (f"x={LONGEST},{WIDTH}", f"mask=int64:{LONGEST}"))
    x, mask = torch.randn(2, 4, WIDTH), torch.tensor([[1, 0, 1, 0], [1, 1, 0, 0]])
    with torch.no_grad():
        (found,), alone = program(x, mask), [module(x[row : row + 1], mask[row : row + 1]) for row in range(2)]
    torch.testing.assert_close(found, torch.cat(alone))


@pytest.mark.parametrize("network", [Decoder, ByItself])
def test_a_causal_mask_cut_to_each_length_is_taken_up_to_the_whole_of_it(network: type[nn.Module], made: Made) -> None:
    module, program = made(network(), (f"x={LONGEST},{WIDTH}",))
    for rows, words in ((1, 1), (2, 3), (3, LONGEST - 1), (4, LONGEST)):
        x = torch.randn(rows, words, WIDTH)
        with torch.no_grad():
            (found,), wanted = program(x), module(x)
        torch.testing.assert_close(found, wanted)
