"""Weights that are converted while they are read give what converted ones give, bit for bit."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from deploy.checkpoint.build import build_architecture
from deploy.checkpoint.lazy import Lazy, convert_parameters, widen
from deploy.checkpoint.zoo import find_architecture


class Tied(nn.Module):
    """One table that is looked up, multiplied by, sliced and looked at."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(50, 16)
        self.head = nn.Linear(16, 50, bias=False)
        self.head.weight = self.table.weight
        self.memory = nn.LSTM(16, 16, batch_first=True)
        self.attention = nn.MultiheadAttention(16, 4, batch_first=True)

    def forward(self, tokens: Tensor) -> Tensor:
        rows, _ = self.memory(self.table(tokens))
        rows, _ = self.attention(rows, rows, rows)
        scale = torch.finfo(self.table.weight.dtype).eps * float(self.head.weight.abs().max())
        return self.head(rows + self.table.weight[: rows.shape[1]]) * scale  # type: ignore[no-any-return]


def outputs(module: nn.Module, inputs: Tensor) -> Tensor:
    with torch.inference_mode():
        return module.eval()(inputs)  # type: ignore[no-any-return]


def test_a_widened_module_computes_what_a_converted_one_does() -> None:
    torch.manual_seed(0)
    module, copy, tokens = Tied(), Tied(), torch.randint(0, 50, (2, 5))
    copy.load_state_dict(module.state_dict())
    wanted = outputs(copy.requires_grad_(False).double(), tokens)

    widened: Any = widen(module.requires_grad_(False), torch.float64, large=0)

    assert isinstance(widened.table.weight, Lazy)
    assert widened.table.weight is widened.head.weight
    assert torch.equal(outputs(widened, tokens), wanted)


@pytest.mark.parametrize("name", ["squeezenet1_1", "mobilenet_v3_small"])
def test_a_builders_network_computes_the_same(name: str) -> None:
    modules = []
    for _ in range(2):
        torch.manual_seed(0)
        module = build_architecture(find_architecture(f"torchvision/{name}"), {"num_classes": 7})
        modules.append(module.to_empty(device="cpu").requires_grad_(False))
        for tensor in modules[-1].state_dict().values():
            tensor.copy_(torch.randn(tensor.shape).abs() * 0.1)
    image = torch.randn(2, 3, 64, 64, dtype=torch.float64)

    assert torch.equal(outputs(widen(modules[0], torch.float64), image), outputs(modules[1].double(), image))


def test_nobody_writes_to_a_lazy_weight() -> None:
    lazy: Any = widen(nn.Linear(4, 4).requires_grad_(False), torch.float64, large=0).weight
    with pytest.raises(RuntimeError, match="writes to a weight"):
        lazy.add_(1.0)


def test_a_second_module_takes_the_tensors_of_the_first_where_they_are_the_same() -> None:
    modules: list[Any] = []
    for _ in range(2):
        torch.manual_seed(0)
        modules.append(nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4), nn.BatchNorm1d(4)).bfloat16())
    first: Any = convert_parameters(modules[0], torch.float32)
    with torch.no_grad():
        modules[1][1].weight[0, 0] += 1.0
    wanted = {name: tensor.float() for name, tensor in modules[1].state_dict().items()}

    second: Any = convert_parameters(modules[1], torch.float32, like=first)

    assert second[0].weight.data_ptr() == first[0].weight.data_ptr()
    assert second[2].running_var.data_ptr() != first[2].running_var.data_ptr()
    assert second[1].weight.data_ptr() != first[1].weight.data_ptr()
    assert all(torch.equal(tensor.float(), wanted[name]) for name, tensor in second.state_dict().items())
