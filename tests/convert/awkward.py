"""A module that holds what converters like to put into the code, so that the code fits one fine-tune only."""

import torch
from torch import Tensor, nn


class Awkward(nn.Module):
    """A scalar, weights of few elements, of one value, shared, unused, and buffers kept and not kept."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(nn.Conv2d(3, 8, 3, stride=2), nn.BatchNorm2d(8), nn.ReLU())
        self.temperature = nn.Parameter(torch.tensor(1.5))
        self.gamma = nn.Parameter(torch.ones(8))
        self.first, self.second = nn.Linear(8, 8), nn.Linear(8, 8)
        self.second.weight = self.first.weight
        self.head = nn.Linear(8, 2)
        self.register_buffer("offset", torch.zeros(2))
        self.register_buffer("step", torch.tensor(0))
        self.register_buffer("grid", torch.arange(8.0), persistent=False)

    def forward(self, image: Tensor) -> Tensor:
        rows = self.features(image).mean((2, 3)) * self.gamma + self.grid
        rows = self.second(self.first(rows).relu())
        return self.head(rows) / self.temperature + self.offset  # type: ignore[no-any-return]


def awkward(seed: int) -> Awkward:
    """Seed 0 is as built, with ones and zeros that could be folded; others have values of their own everywhere."""
    torch.manual_seed(seed)
    module = Awkward()
    if seed:
        with torch.no_grad():
            for tensor in module.state_dict().values():
                if tensor.is_floating_point():
                    tensor.uniform_(0.5, 1.5)
    return module.eval()
