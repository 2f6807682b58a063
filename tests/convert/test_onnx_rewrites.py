"""Each rewrite of an ONNX graph gives an equal one, fires where it is meant to, and nowhere else."""

import math
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
import torch
from torch import Tensor, nn

from deploy.convert.onnx import _translate
from deploy.convert.onnx_rewrites import keep_sums_apart, make_columns, pool_globally
from deploy.processes import run_alone

IMAGE = ["batch", 8, 6, 5]


def graph(text: str) -> ir.Model:
    model = onnx.parser.parse_model(f'<ir_version: 9, opset_import: ["" : 18]> g {text}')
    return ir.from_proto(onnx.shape_inference.infer_shapes(model))


def answers(model: ir.Model, *inputs: np.ndarray) -> list[np.ndarray]:
    message = ir.to_proto(model).SerializeToString()
    session = onnxruntime.InferenceSession(message, providers=["CPUExecutionProvider"])
    names = [one.name for one in session.get_inputs()]
    found: list[np.ndarray] = session.run(None, dict(zip(names, inputs, strict=True)))
    return found


def kinds(model: ir.Model) -> list[str]:
    return [node.op_type for node in model.graph]


def seeded(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).standard_normal(shape).astype(np.float32)


def test_a_product_of_a_transposed_value_and_a_vector_is_what_it_says() -> None:
    model = graph(
        "(float[batch, 6, 4] x, float[6] v, float[4, 2] m) => (float[batch, 4] y, float[batch, 6, 2] z) "
        "{ turned = Transpose <perm = [0, 2, 1]> (x) y = MatMul(turned, v) z = MatMul(x, m) }"
    )
    x, v, m = seeded(3, 6, 4), seeded(6), seeded(4, 2)

    assert make_columns(model) == 1

    assert kinds(model).count("MatMul") == 2
    for found, wanted in zip(answers(model, x, v, m), (x.transpose(0, 2, 1) @ v, x @ m), strict=True):
        np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-6)


def test_the_exporter_writes_a_product_with_a_vector_so() -> None:
    model = run_alone("translate", translated_vector).value
    x = seeded(3, 6, 4)
    (found,) = answers(ir.from_proto(onnx.load_from_string(model)), x)
    np.testing.assert_allclose(found, x.transpose(0, 2, 1) @ np.arange(6, dtype=np.float32), rtol=1e-5, atol=1e-6)


class Weighed(nn.Module):
    """The sum of the words, each with its own weight."""

    def __init__(self) -> None:
        super().__init__()
        self.weights = nn.Parameter(torch.arange(6.0))

    def forward(self, x: Tensor) -> Tensor:
        return x.transpose(1, 2) @ self.weights


def translated_vector() -> bytes:
    batch = torch.export.Dim("batch", min=1, max=4)
    exported = torch.export.export(Weighed(), (torch.zeros(2, 6, 4),), dynamic_shapes=({0: batch},), strict=False)
    model = _translate(exported, opset=20)
    model.ir_version = 10
    message: bytes = ir.to_proto(model).SerializeToString()
    return message


@pytest.mark.parametrize(("axes", "keep", "fires"), [
    ("2, 3", 1, True), ("-1, -2", 1, True), ("3, 2", 1, True), ("2, 3", 0, False), ("1, 2", 1, False), ("3", 1, False),
])  # fmt: skip
def test_a_mean_over_an_image_becomes_a_global_pooling(axes: str, keep: int, fires: bool) -> None:
    model = graph(
        f"(float[batch, 8, 6, 5] x) => (float[batch, c, h, w] y) <int64[{len(axes.split(','))}] axes = {{{axes}}}> "
        f"{{ z = Relu(x) m = ReduceMean <keepdims: int = {keep}> (z, axes) y = Neg(m) }}"
        if keep
        else f"(float[batch, 8, 6, 5] x) => (float[batch, c] y) <int64[2] axes = {{{axes}}}> "
        f"{{ z = Relu(x) m = ReduceMean <keepdims: int = 0> (z, axes) y = Neg(m) }}"
    )
    before = answers(model, seeded(3, 8, 6, 5))

    assert pool_globally(model) == int(fires)

    assert ("GlobalAveragePool" in kinds(model)) == fires
    np.testing.assert_allclose(answers(model, seeded(3, 8, 6, 5))[0], before[0], rtol=1e-5, atol=1e-6)


def test_a_mean_of_what_is_no_image_stays() -> None:
    model = graph("(float[batch, 4, 6] x) => (float[batch, 1, 1] y) <int64[2] a = {1, 2}> { y = ReduceMean(x, a) }")
    assert pool_globally(model) == 0


def test_a_sum_before_a_normalization_is_kept_apart_from_it() -> None:
    model = graph(
        "(float[batch, 5, 16] x, float[batch, 5, 16] y) => (float[batch, 5, 16] z) "
        "<float[16] scale = {1,2,1,2,1,2,1,2,1,2,1,2,1,2,1,2}> "
        "{ s = Add(x, y) n = LayerNormalization (s, scale) z = Add(n, s) }"
    )
    before = answers(model, seeded(2, 5, 16), seeded(2, 5, 16))

    assert keep_sums_apart(model) == 1

    assert kinds(model) == ["Sum", "LayerNormalization", "Add"]
    np.testing.assert_allclose(answers(model, seeded(2, 5, 16), seeded(2, 5, 16))[0], before[0], rtol=1e-5, atol=1e-6)
    bias = graph(
        "(float[batch, 5, 16] x, float[16] b) => (float[batch, 5, 16] z) <float[16] scale = "
        "{1,2,1,2,1,2,1,2,1,2,1,2,1,2,1,2}> { s = Add(x, b) z = LayerNormalization (s, scale) }"
    )
    assert keep_sums_apart(bias) == 0


class Attention(nn.Module):
    """Attention of four heads in every way that the operator is called."""

    def __init__(self, mask: str, scale: float | None) -> None:
        super().__init__()
        self.mask, self.scale = mask, scale

    def forward(self, x: Tensor) -> Tensor:
        heads = x.view(x.shape[0], x.shape[1], 4, 8).transpose(1, 2)
        length, filled = x.shape[1], x[:, :, 0] < 1
        masks: dict[str, dict[str, Any]] = {
            "none": {},
            "causal": {"is_causal": True},
            "bool": {"attn_mask": torch.ones(length, length, dtype=torch.bool).tril()},
            "padding": {"attn_mask": (torch.arange(length) >= 0)[:, None] & filled[:, None, None, :]},
            # The first position sees nothing, as padding outside a sliding window does: torch answers 0 to it.
            "hidden rows": {"attn_mask": torch.ones(length, length).tril(-1).bool() & filled[:, None, None, :]},
            "float": {"attn_mask": torch.linspace(-1, 1, length * length).view(length, length)},
        }
        done = nn.functional.scaled_dot_product_attention(
            heads, heads * 2, heads + 1, scale=self.scale, **masks[self.mask]
        )
        return done.transpose(1, 2).reshape(x.shape)


def translated(mask: str, scale: float | None) -> bytes:
    module = Attention(mask, scale).eval()
    batch = torch.export.Dim("batch", min=1, max=4)
    exported = torch.export.export(module, (torch.zeros(2, 5, 32),), dynamic_shapes=({0: batch},), strict=False)
    model = _translate(exported, opset=20)
    model.ir_version = 10
    message: bytes = ir.to_proto(model).SerializeToString()
    return message


MASKS = ("none", "float", "bool", "causal", "padding", "hidden rows")
SCALES = (None, 0.3)


def all_translated() -> dict[tuple[str, float | None], bytes]:
    return {(mask, scale): translated(mask, scale) for mask in MASKS for scale in SCALES}


@pytest.fixture(scope="module")
def models() -> dict[tuple[str, float | None], bytes]:
    """Each way of calling, translated in one child: the translator's start takes longer than the eight of them."""
    return run_alone("translate", all_translated).value


@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("scale", SCALES)
def test_attention_is_written_with_one_transposition_of_the_keys(
    models: dict[tuple[str, float | None], bytes], mask: str, scale: float | None
) -> None:
    model = ir.from_proto(onnx.load_from_string(models[mask, scale]))
    x = seeded(3, 5, 32)

    (found,) = answers(model, x)

    with torch.no_grad():
        wanted = Attention(mask, scale)(torch.from_numpy(x)).numpy()
    np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-5)
    if mask != "causal":
        assert kinds(model).count("Shape") <= 1, "the keys' shape is not read"
        assert kinds(model).count("Softmax") == 1 and "IsNaN" not in kinds(model)
        assert mask not in ("padding", "hidden rows") or ("ReduceMax" in kinds(model)) == (mask == "hidden rows")
        scales = [value.const_value for node in model.graph if node.op_type == "Mul" for value in node.inputs if value]
        factor = 1 / math.sqrt(8) if scale is None else scale
        assert pytest.approx(factor) in [float(one.numpy()) for one in scales if one is not None and one.size == 1]


class Windows(nn.Module):
    """Attention inside windows, as Hiera has it: five dimensions."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind

    def forward(self, x: Tensor) -> Tensor:
        split = x.view(x.shape[0], 3, 5, 4, 8).permute(0, 3, 1, 2, 4)
        if self.kind == "half":
            split = split.half()
        lower = torch.ones(5, 5, dtype=torch.bool).tril(-1 if self.kind == "hidden rows" else 0)
        mask = lower if self.kind in ("bool", "hidden rows", "half") else None
        key = split[0, 0] * 2 if self.kind == "shared keys" else split * 2
        done = nn.functional.scaled_dot_product_attention(
            split, key, split + 1, attn_mask=mask, is_causal=self.kind == "causal"
        )
        return done.permute(0, 2, 3, 1, 4).reshape(x.shape).to(x.dtype)


WINDOWS = ("none", "bool", "causal", "hidden rows", "half", "shared keys")


def windows_translated() -> dict[str, bytes]:
    made = {}
    for kind in WINDOWS:
        batch = torch.export.Dim("batch", min=1, max=4)
        exported = torch.export.export(
            Windows(kind), (torch.zeros(2, 15, 32),), dynamic_shapes=({0: batch},), strict=False
        )
        model = _translate(exported, opset=20)
        model.ir_version = 10
        made[kind] = ir.to_proto(model).SerializeToString()
    return made


def test_attention_inside_windows_is_written_as_it_is_computed() -> None:
    x = seeded(3, 15, 32)
    for kind, model in run_alone("translate", windows_translated).value.items():
        (found,) = answers(ir.from_proto(onnx.load_from_string(model)), x)
        with torch.no_grad():
            wanted = Windows(kind)(torch.from_numpy(x)).numpy()
        close = 4e-3 if kind == "half" else 1e-5
        np.testing.assert_allclose(found, wanted, rtol=close, atol=close, err_msg=kind)
