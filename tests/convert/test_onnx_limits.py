"""What ONNX Runtime cannot open is told before any proof, and what it opens only without a step is opened so."""

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper

from deploy.convert.onnx_limits import require_kernels
from deploy.convert.ort_session import LEVEL


def save_product(path: Path, dtype: type, *, transposed: bool) -> Path:
    """A product of matrices, behind a transposition of batch and sequence as nn.MultiheadAttention has it."""
    kind = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    weight = onnx.numpy_helper.from_array(np.ones((8, 4), dtype), "weight")
    turned = [helper.make_node("Transpose", ["x"], ["turned"], perm=[1, 0, 2])] if transposed else []
    nodes = [*turned, helper.make_node("MatMul", ["turned" if transposed else "x", "weight"], ["y"])]
    given = helper.make_tensor_value_info("x", kind, ["batch", 3, 8])
    found = helper.make_tensor_value_info("y", kind, None)
    graph = helper.make_graph(nodes, "product", [given], [found], [weight])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10), path)
    return path


@pytest.mark.parametrize(("transposed", "needed"), [(False, {}), (True, {LEVEL: "1"})])
def test_a_graph_that_kills_onnx_runtime_is_opened_without_the_step_that_does(
    transposed: bool, needed: dict[str, str], tmp_path: Path
) -> None:
    # ONNX Runtime 1.32; with a release that opens it as it is, nothing is needed.
    path = save_product(tmp_path / "model.onnx", np.float16, transposed=transposed)
    assert require_kernels(path, "fp16", fix="use --formats aoti") == needed
