"""A number less a tensor in ONNX, `1.0 - mask` above all, and the line of what ONNX lacks."""

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
        _translate(torch.export.export(Applied(lambda mask: mask // 2.0), (MASK,)), opset=18)
    except UnfinishedError as error:
        return str(error)
    return ""


@pytest.fixture(scope="module")
def graphs() -> dict[str, bytes]:
    """All of them, translated in one child."""
    return run_alone("translate", translated).value


@pytest.mark.parametrize("written", WRITTEN)
def test_a_number_less_a_mask_is_what_torch_makes_of_it(graphs: dict[str, bytes], written: str) -> None:
    session = onnxruntime.InferenceSession(graphs[written], providers=["CPUExecutionProvider"])
    wanted = WRITTEN[written](MASK).numpy()
    (found,) = session.run(None, {session.get_inputs()[0].name: MASK.numpy()})
    assert found.dtype == wanted.dtype
    np.testing.assert_array_equal(found, wanted)


def test_an_operator_that_onnx_lacks_is_named_with_its_line() -> None:
    said = run_alone("translate", refused).value
    assert "floor_divide" in said
    assert f"{__file__}:" in said and "forward: return self.function(mask)" in said
