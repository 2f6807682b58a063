"""A small network that really learnt scikit-learn's digits, and what packaging it in few bits takes."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn

from deploy.checkpoint.model import CheckpointRequest

SIZE = 8
TRAINED_ON = 700
_EPOCHS = 5


class DigitNet(nn.Module):
    """Two convolutions and a head; enough for 97 % of digits that it never saw."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(1, 16, 3, padding=1)
        self.norm = nn.BatchNorm2d(16)
        self.second = nn.Conv2d(16, 32, 3, padding=1, stride=2)
        self.head = nn.Linear(32 * 16, 10)

    def forward(self, image: Tensor) -> Tensor:
        x = torch.relu(self.norm(self.first(image)))
        out: Tensor = self.head(torch.relu(self.second(x)).flatten(1))
        return out


class DigitMixer(nn.Module):
    """Rows of the image as tokens: linear layers and attention, as a transformer has them."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Linear(SIZE, 64)
        self.place = nn.Parameter(torch.zeros(SIZE, 64))
        self.block = nn.TransformerEncoderLayer(64, 4, 128, dropout=0.0, batch_first=True, norm_first=True)
        self.head = nn.Linear(64, 10)

    def forward(self, image: Tensor) -> Tensor:
        x = self.block(self.embed(image[:, 0]) + self.place)
        out: Tensor = self.head(x.mean(1))
        return out


def digit_net() -> nn.Module:
    return DigitNet()


def digit_mixer() -> nn.Module:
    return DigitMixer()


@dataclass(frozen=True, slots=True, kw_only=True)
class Trained:
    """A checkpoint; `calibration` are images that it was trained on, `samples` labelled ones that it was not."""

    request: CheckpointRequest
    calibration: Path
    samples: Path
    accuracy: float


def train(folder: Path, make: Callable[[], nn.Module], factory: str) -> Trained:
    """Train what `make` gives for some seconds, and leave what people leave."""
    data = load_digits()
    order = np.random.default_rng(0).permutation(len(data.target))
    pixels = ((data.images[order] / 16 - 0.3) / 0.38)[:, None].astype(np.float32)
    images, labels = _shifted(pixels[:TRAINED_ON], data.target[order][:TRAINED_ON])
    shown, truth = _shifted(pixels[TRAINED_ON:], data.target[order][TRAINED_ON:])
    with _seeded():
        module = make()
        _fit(module, torch.from_numpy(images), torch.from_numpy(labels))
    module.eval()
    with torch.inference_mode():
        outputs = module(torch.from_numpy(shown)).numpy()
    folder.mkdir(parents=True, exist_ok=True)
    torch.save(module.state_dict(), folder / "digits.pt")
    np.savez(folder / "calibration.npz", image=images[:128])
    held_out = {"image": shown, "labels": truth, "expected/output": outputs}
    np.savez(folder / "samples.npz", allow_pickle=False, **held_out)
    return Trained(
        request=CheckpointRequest(
            path=folder / "digits.pt", factory=f"tests.quantized:{factory}", input_shapes=((1, SIZE, SIZE),)
        ),
        calibration=folder / "calibration.npz",
        samples=folder / "samples.npz",
        accuracy=float((outputs.argmax(1) == truth).mean()),
    )


def _shifted(images: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Each image as it is, and one pixel to either side: half a point of accuracy takes some thousand rows to tell."""
    rows = np.concatenate([np.roll(images, by, axis=3) for by in (0, -1, 1)])
    return np.ascontiguousarray(rows), np.tile(labels, 3).astype(np.int64)


def _fit(module: nn.Module, images: Tensor, labels: Tensor) -> None:
    optimizer = torch.optim.AdamW(module.parameters(), lr=3e-3, weight_decay=0.01)
    module.train()
    for _ in range(_EPOCHS):
        for rows in torch.randperm(len(images)).split(32):
            optimizer.zero_grad()
            nn.functional.cross_entropy(module(images[rows]), labels[rows]).backward()
            optimizer.step()


@contextmanager
def _seeded() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    yield
    torch.set_num_threads(threads)


class Loud(nn.Module):
    """Its hidden values are some hundred thousand, its outputs small again."""

    def __init__(self) -> None:
        super().__init__()
        self.up = nn.Linear(4, 16)
        self.down = nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.down(torch.relu(self.up(x)))
        return out


def loud() -> nn.Module:
    torch.manual_seed(0)
    module = Loud()
    with torch.no_grad():
        module.up.weight.mul_(3e5)
        module.down.weight.mul_(1e-5)
    return module.eval()
