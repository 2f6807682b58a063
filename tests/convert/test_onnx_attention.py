"""Attention as ONNX Runtime's own operator: an equal graph where the pattern holds, the same one where it does not."""

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import torch
from torch import Tensor, nn

from deploy.convert.onnx import _translate
from deploy.convert.onnx_attention import DOMAIN, fuse_attention
from deploy.processes import run_alone
from tests.convert.test_onnx_rewrites import answers, kinds, seeded

HEADS, WIDTH, POSITIONS = 4, 8, 5
FUSED = ("plain", "scaled", "masked")
LEFT = ("keys as they are",)


class Attention(nn.Module):
    """Attention over rows of positions, in ways that networks write it."""

    def __init__(self, how: str) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.how = how
        self.query, self.key, self.value = (nn.Linear(HEADS * WIDTH, HEADS * WIDTH) for _ in range(3))

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        def split(rows: Tensor) -> Tensor:
            return rows.view(rows.shape[0], rows.shape[1], HEADS, WIDTH).transpose(1, 2)

        query, key, value = split(self.query(x)), split(self.key(x)), split(self.value(x))
        bias = mask[:, None, None, :].expand(-1, 1, x.shape[1], -1) if self.how == "masked" else None
        if self.how == "keys as they are":
            key = key.reshape(x.shape[0], HEADS, -1, WIDTH) + 1.0
        done = nn.functional.scaled_dot_product_attention(
            query, key, value, attn_mask=bias, scale=0.3 if self.how == "scaled" else None
        )
        return done.transpose(1, 2).reshape(x.shape)


def translated() -> dict[str, bytes]:
    return {how: _translated(how) for how in (*FUSED, *LEFT)}


def _translated(how: str) -> bytes:
    batch = torch.export.Dim("batch", min=1, max=4)
    example = (torch.zeros(2, POSITIONS, HEADS * WIDTH), torch.zeros(2, POSITIONS))
    sizes = ({0: batch}, {0: batch})
    exported = torch.export.export(Attention(how).eval(), example, dynamic_shapes=sizes, strict=False)
    model = _translate(exported, opset=20)
    model.ir_version = 10
    message: bytes = ir.to_proto(model).SerializeToString()
    return message


@pytest.fixture(scope="module")
def models() -> dict[str, bytes]:
    return run_alone("translate", translated).value


@pytest.mark.parametrize("how", [*FUSED, *LEFT])
def test_attention_is_one_operator_where_the_heads_are_split_off_before_it(models: dict[str, bytes], how: str) -> None:
    model = ir.from_proto(onnx.load_from_string(models[how]))
    count = int(how in FUSED)
    inputs = [seeded(3, POSITIONS, HEADS * WIDTH), np.linspace(-3, 0, 15, dtype=np.float32).reshape(3, POSITIONS)]
    inputs = inputs[: len(model.graph.inputs)]
    before = answers(model, *inputs)

    assert fuse_attention(model) == count

    assert (kinds(model).count("MultiHeadAttention"), kinds(model).count("Softmax")) == (count, 1 - count)
    assert (DOMAIN in model.opset_imports) == bool(count)
    np.testing.assert_allclose(answers(model, *inputs)[0], before[0], rtol=1e-5, atol=1e-5)
