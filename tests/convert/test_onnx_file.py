from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from deploy.convert.onnx_file import write_model
from deploy.errors import UnfinishedError

ROWS = np.random.default_rng(0).standard_normal((2, 200)).astype(np.float32)


def weights(*, columns: int = 300) -> dict[str, np.ndarray]:
    """One weight that is written by itself (200 x 300 floats), and one that is not."""
    random = np.random.default_rng(1)
    return {
        "matrix": random.standard_normal((200, columns)).astype(np.float32),
        "bias": random.standard_normal(columns).astype(np.float32),
    }


def model(held: dict[str, np.ndarray], *, multiply: str = "MatMul") -> onnx.ModelProto:
    columns = held["bias"].shape[0]
    graph = helper.make_graph(
        [
            helper.make_node(multiply, ["INPUT__0", "matrix"], ["product"]),
            helper.make_node("Add", ["product", "bias"], ["OUTPUT__0"]),
        ],
        "main",
        [helper.make_tensor_value_info("INPUT__0", TensorProto.FLOAT, ["batch", 200])],
        [helper.make_tensor_value_info("OUTPUT__0", TensorProto.FLOAT, ["batch", columns])],
        [numpy_helper.from_array(array, name) for name, array in held.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


def run(path: Path) -> np.ndarray:
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    result: np.ndarray = session.run(None, {"INPUT__0": ROWS})[0]
    return result


def test_large_and_small_weights_are_all_in_the_file(tmp_path: Path) -> None:
    held = weights()

    names = write_model(ir.from_proto(model(held)), tmp_path / "model.onnx", inline_limit=10**9)

    assert names == ("model.onnx",)
    found = onnx.load(tmp_path / "model.onnx").graph.initializer
    assert {tensor.name for tensor in found} == set(held)
    for tensor in found:
        np.testing.assert_array_equal(numpy_helper.to_array(tensor), held[tensor.name])


def test_the_file_is_a_single_message_that_onnx_accepts_and_writes_again(tmp_path: Path) -> None:
    write_model(ir.from_proto(model(weights())), tmp_path / "model.onnx", inline_limit=10**9)

    loaded = onnx.load(tmp_path / "model.onnx")
    onnx.checker.check_model(loaded, full_check=True)
    again = loaded.SerializeToString()
    assert len(again) == (tmp_path / "model.onnx").stat().st_size


@pytest.mark.parametrize("columns", [300, 40_000])
def test_the_file_computes_what_the_model_does(tmp_path: Path, columns: int) -> None:
    held = weights(columns=columns)
    write_model(ir.from_proto(model(held)), tmp_path / "model.onnx", inline_limit=10**9)

    np.testing.assert_allclose(run(tmp_path / "model.onnx"), ROWS @ held["matrix"] + held["bias"], rtol=1e-3, atol=1e-3)


def test_over_the_limit_weights_lie_beside_the_graph(tmp_path: Path) -> None:
    held = weights()

    names = write_model(ir.from_proto(model(held)), tmp_path / "model.onnx", inline_limit=1_000)

    assert names == ("model.onnx/model.onnx", "model.onnx/model.onnx.data")
    assert (tmp_path / names[1]).stat().st_size >= held["matrix"].nbytes
    np.testing.assert_allclose(run(tmp_path / names[0]), ROWS @ held["matrix"] + held["bias"], rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("inline_limit", [10**9, 1_000])
def test_operator_that_onnx_lacks_is_refused(tmp_path: Path, inline_limit: int) -> None:
    broken = ir.from_proto(model(weights(), multiply="Frobnicate"))

    with pytest.raises(UnfinishedError, match="not valid: No Op registered for Frobnicate"):
        write_model(broken, tmp_path / "model.onnx", inline_limit=inline_limit)


def test_weight_that_nothing_declares_is_refused(tmp_path: Path) -> None:
    held = weights()
    lacking = model(held)
    del lacking.graph.initializer[0]

    with pytest.raises(UnfinishedError, match="matrix"):
        write_model(ir.from_proto(lacking), tmp_path / "model.onnx", inline_limit=10**9)
