"""A causal transformer whose attention is FlexAttention, fine-tuned to tell digits from their rows of pixels.

Owns the network, its training and what it leaves on disk. First the body learns to guess each next row; then a new
head, and the body with it, learn the ten classes. FlexAttention has no backward pass on CPU: there the same attention
is written out for training, and what is saved was computed by FlexAttention.
Run it by hand: `python examples/finetune_flex.py --out .demo/flex`, then package it as the last line it prints says.
"""

import argparse
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from digits import CLASSES, Digits, load_split
from torch import Tensor, nn
from torch.nn.attention.flex_attention import flex_attention

ROWS, PIXELS = 8, 8
_WIDTH, _HEADS, _LAYERS = 64, 4, 2
_SAMPLES = 32
_BATCH, _RATE = 32, 3e-3


class Attention(nn.Module):
    """Attention to this row and those above it, with a learned bias for each head and distance."""

    def __init__(self) -> None:
        super().__init__()
        self.query_key_value = nn.Linear(_WIDTH, 3 * _WIDTH)
        self.out = nn.Linear(_WIDTH, _WIDTH)
        self.bias = nn.Parameter(torch.zeros(_HEADS, ROWS))

    def forward(self, hidden: Tensor) -> Tensor:
        """What each row takes from itself and those above it: [batch, rows, width] in and out."""
        query, key, value = (
            part.unflatten(-1, (_HEADS, -1)).transpose(1, 2) for part in self.query_key_value(hidden).chunk(3, dim=-1)
        )
        # A network that is being trained on CPU needs the other way, and no other does.
        attend = self._written_out if self.training and hidden.device.type == "cpu" else self._flex
        joined: Tensor = self.out(attend(query, key, value).transpose(1, 2).flatten(2))
        return joined

    def _flex(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        bias = self.bias

        def causal_with_bias(score: Tensor, batch: Tensor, head: Tensor, row: Tensor, above: Tensor) -> Tensor:
            distance = torch.where(row >= above, row - above, 0)
            return torch.where(row >= above, score + bias[head, distance], -float("inf"))

        return flex_attention(query, key, value, score_mod=causal_with_bias)

    def _written_out(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        row = torch.arange(ROWS)
        distance = row[:, None] - row
        score = query @ key.transpose(-1, -2) / query.shape[-1] ** 0.5 + self.bias[:, distance.clamp(min=0)]
        attended: Tensor = score.masked_fill(distance < 0, -float("inf")).softmax(-1) @ value
        return attended


class Reader(nn.Module):
    """Rows [batch, 8, 8] in 0..1 to what the head makes of them: of every row, or of the last one, which saw all."""

    def __init__(self, outputs: int, *, every_row: bool = False) -> None:
        super().__init__()
        self.embed = nn.Linear(PIXELS, _WIDTH)
        self.place = nn.Parameter(torch.randn(ROWS, _WIDTH) * 0.1)
        self.norms = nn.ModuleList(nn.LayerNorm(_WIDTH) for _ in range(2 * _LAYERS))
        self.attentions = nn.ModuleList(Attention() for _ in range(_LAYERS))
        self.feeds = nn.ModuleList(
            nn.Sequential(nn.Linear(_WIDTH, 2 * _WIDTH), nn.GELU(), nn.Linear(2 * _WIDTH, _WIDTH))
            for _ in range(_LAYERS)
        )
        self.head = nn.Linear(_WIDTH, outputs)
        self.every_row = every_row

    def forward(self, rows: Tensor) -> Tensor:
        """The head's outputs."""
        hidden = self.embed(rows) + self.place
        for layer in range(_LAYERS):
            hidden = hidden + self.attentions[layer](self.norms[2 * layer](hidden))
            hidden = hidden + self.feeds[layer](self.norms[2 * layer + 1](hidden))
        found: Tensor = self.head(hidden if self.every_row else hidden[:, -1])
        return found


def build() -> Reader:
    """The network that was fine-tuned, for `deployctl package --factory finetune_flex:build`."""
    return Reader(len(CLASSES))


def main() -> int:
    """Train, save, and report; 1 where the held-out accuracy misses `--min-accuracy`."""
    arguments = _arguments()
    torch.manual_seed(arguments.seed)
    training, held_out = load_split(arguments.seed)
    rows, labels = _rows(training), torch.from_numpy(training.labels)

    body = Reader(PIXELS, every_row=True)
    _train(body, rows, rows, epochs=arguments.epochs, loss=_next_row)
    model = build()
    learnt = {name: tensor for name, tensor in body.state_dict().items() if not name.startswith("head.")}
    model.load_state_dict(learnt, strict=False)
    _train(model, rows, labels, epochs=arguments.epochs, loss=nn.functional.cross_entropy)

    with torch.inference_mode():
        answers = model.eval()(_rows(held_out))
    accuracy = float((answers.argmax(1).numpy() == held_out.labels).mean())
    _save(arguments.out, model, held_out.head(_SAMPLES), answers[:_SAMPLES])
    print(f"held-out accuracy: {accuracy:.1%} on {len(held_out.labels)} images (at least {arguments.min_accuracy:.0%})")
    return 0 if accuracy >= arguments.min_accuracy else 1


def _train(
    model: Reader, rows: Tensor, wanted: Tensor, *, epochs: int, loss: Callable[[Tensor, Tensor], Tensor]
) -> None:
    optimizer = torch.optim.AdamW(model.parameters(), lr=_RATE)
    for epoch in range(1, epochs + 1):
        total = 0.0
        for chosen in torch.randperm(len(rows)).split(_BATCH):
            optimizer.zero_grad()
            error = loss(model(rows[chosen]), wanted[chosen])
            error.backward()
            optimizer.step()
            total += float(error.detach()) * len(chosen)
        print(f"epoch {epoch}/{epochs}: loss {total / len(rows):.4f}", flush=True)


def _next_row(guessed: Tensor, rows: Tensor) -> Tensor:
    """How far each row's guess of the next one is off."""
    return nn.functional.mse_loss(guessed[:, :-1], rows[:, 1:])


def _rows(digits: Digits) -> Tensor:
    return torch.from_numpy(digits.images.astype(np.float32))


def _save(out: Path, model: Reader, samples: Digits, answers: Tensor) -> None:
    """The weights, samples with what FlexAttention computed of them, and the names of the classes."""
    out.mkdir(parents=True, exist_ok=True)
    torch.save(model.state_dict(), out / "digits_flex.pt")
    arrays = {"rows": _rows(samples).numpy(), "expected/output": answers.numpy(), "labels": samples.labels}
    np.savez(out / "samples.npz", allow_pickle=False, **arrays)
    (out / "labels.txt").write_text("".join(f"{name}\n" for name in CLASSES))
    print(
        f"PYTHONPATH=examples deployctl package {out / 'digits_flex.pt'} --factory finetune_flex:build "
        f"--input-shape rows={ROWS},{PIXELS} --samples {out / 'samples.npz'} --labels {out / 'labels.txt'}"
    )


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Fine-tune a small causal transformer with FlexAttention on digits.")
    parser.add_argument("--out", type=Path, default=Path(".demo/flex"), help="the folder to write into")
    parser.add_argument("--epochs", type=int, default=8, help="passes over the images, for the body and then for all")
    parser.add_argument("--min-accuracy", type=float, default=0.9, help="end with 1 below this share")
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
