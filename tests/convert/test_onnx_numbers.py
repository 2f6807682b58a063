"""Arithmetic of tensors and numbers in ONNX, `1.0 - mask` above all, and the line of what ONNX lacks."""

from collections.abc import Callable

import numpy as np
import onnx_ir as ir
import onnxruntime
import pytest
import torch
from torch import Tensor, nn

from deploy.convert.onnx import _translate
from deploy.errors import UnfinishedError
from deploy.processes import run_alone

MASK = torch.tensor([[0, 1, 1], [2, 5, 0]])
# Beyond what float32 holds exactly, and of either sign.
IDS = torch.tensor([2**40 + 3, 16777217, 7, -(2**31) - 5, -16777219, -3]).view(6, 1, 1)
# Whose quotients by 0.1 and remainders of 6.2831 are near whole numbers, or large.
FLOATS = torch.tensor([1.0, 0.3, 1000.7, -0.3, 0.0, -1e5]).view(6, 1, 1)
WRITTEN: dict[str, Callable[[Tensor], Tensor]] = {
    "1.0 - int64": lambda mask: (1.0 - mask) * -1e4,
    "1 - int64": lambda mask: 1 - mask,
    "2**40 - int64": lambda mask: 2**40 - mask,
    "1.0 - int32": lambda mask: 1.0 - mask.int(),
    "1.0 - uint8": lambda mask: 1.0 - mask.to(torch.uint8),
    "1 - float32": lambda mask: 1 - mask.float(),
    "1.0 - float16": lambda mask: 1.0 - mask.half(),
    "twice int64": lambda mask: torch.rsub(mask, 3, alpha=2),
    "half of float32": lambda mask: torch.rsub(mask.float(), 3, alpha=0.5),
    "int64 // 2.0": lambda mask: mask // 2.0,
    "int64 % 2.0": lambda mask: mask % 2.0,
    "7 // int64": lambda mask: 7 // (mask + 1),
    "sign of a number": lambda mask: torch.copysign(mask, -1.0),
    "sign of zeros": lambda mask: torch.copysign(mask.float() + 1, mask * -0.0),
    "sign of int64": lambda mask: torch.copysign(mask, 1 - mask),
    "round, floor, ceil and trunc of int64": lambda mask: mask.round() + mask.floor() + mask.ceil() + mask.trunc(),
    "int64 among": lambda mask: torch.isin(mask, torch.tensor([5, 1])),
    "int64 not among": lambda mask: torch.isin(mask, torch.tensor([[5], [1]]), invert=True),
    "int64 among none": lambda mask: torch.isin(mask, torch.tensor([], dtype=torch.int64)),
    "large // 3": lambda mask: (IDS + mask) // 3,
    "large / 3, floor": lambda mask: torch.div(IDS + mask, 3, rounding_mode="floor"),
    "large / 3, trunc": lambda mask: torch.div(IDS + mask, 3, rounding_mode="trunc"),
    "large % -3": lambda mask: (IDS + mask) % -3,
    "large % 2.5": lambda mask: (IDS + mask) % 2.5,
    "int32 // int64": lambda mask: (mask.int() - 3) // (mask + 1),
    "fractions // 0.1": lambda mask: (FLOATS + mask) // 0.1,
    "fractions % 0.1": lambda mask: (FLOATS + mask) % 0.1,
    "fractions % 6.2831": lambda mask: torch.remainder(FLOATS + mask, torch.tensor(6.2831)),
    "fractions // 0": lambda mask: (FLOATS + mask) // (mask * 0.0),
    "fractions / -2.5, floor": lambda mask: torch.div(FLOATS + mask, -2.5, rounding_mode="floor"),
    "fractions / 2.5, trunc": lambda mask: torch.div(FLOATS + mask, 2.5, rounding_mode="trunc"),
    "fmod of fractions": lambda mask: torch.fmod(FLOATS + mask, -6.2831),
    "float16 // 3": lambda mask: (mask.half() - 2) // 3,
    "large ** 3": lambda mask: ((IDS + mask) % 2000003) ** 3,
    "int64 ** int64": lambda mask: (IDS % 1000 + 1) ** (mask + 1),
    "3 ** int64": lambda mask: 3 ** (mask + 33),
    "7 ** int32": lambda mask: 7 ** mask.int(),
    "int64 ** 7": lambda mask: (IDS % 307 + mask) ** 7,
    "int32 ** 2": lambda mask: (mask.int() - 3) ** 2,
    "ones to any power": lambda mask: (mask.clamp(max=2) - 1) ** (mask * 99),
    "float16 by a float32 number": lambda mask: torch.remainder(mask.half(), torch.tensor(2.5)),
}


class Applied(nn.Module):
    """A function of one tensor."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, mask: Tensor) -> Tensor:
        return self.function(mask)


def translated() -> dict[str, bytes]:
    """Each as an ONNX graph for any number of rows."""
    rows = ({0: torch.export.Dim("batch", min=1, max=8)},)
    exported = {
        name: torch.export.export(Applied(function), (MASK,), dynamic_shapes=rows) for name, function in WRITTEN.items()
    }
    return {name: ir.to_proto(_translate(one, opset=18)).SerializeToString() for name, one in exported.items()}


def refused() -> str:
    """What is said of an operator that the exporter has no words for; empty where it has some."""
    try:
        _translate(torch.export.export(Applied(torch.special.bessel_j0), (MASK,)), opset=18)
    except UnfinishedError as error:
        return str(error)
    return ""


@pytest.fixture(scope="module")
def graphs() -> dict[str, bytes]:
    """All of them, translated in one child."""
    return run_alone("translate", translated).value


@pytest.mark.parametrize("written", WRITTEN)
def test_it_is_what_torch_makes_of_it(graphs: dict[str, bytes], written: str) -> None:
    session = onnxruntime.InferenceSession(graphs[written], providers=["CPUExecutionProvider"])
    wanted = WRITTEN[written](MASK).numpy()
    (found,) = session.run(None, {session.get_inputs()[0].name: MASK.numpy()})
    assert found.dtype == wanted.dtype
    np.testing.assert_array_equal(found, wanted)


def test_an_operator_that_onnx_lacks_is_named_with_its_line() -> None:
    said = run_alone("translate", refused).value
    assert said.startswith("the program cannot be written as ONNX: it has no prims.bessel_j0 (in ")
    assert f"{__file__}:" in said and "forward: return self.function(mask)" in said
