"""What ONNX Runtime cannot open is told before any proof, and what it opens only without a step is opened so."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import helper

from deploy.convert.onnx_limits import require_kernels
from deploy.convert.onnx_linked import linked
from deploy.convert.ort_session import LEVEL

# The peak of the largest child of a process that asks whether a graph can be opened, in bytes.
PEAK = """
import resource, sys
from pathlib import Path
from deploy.convert.onnx_limits import require_kernels
require_kernels(Path(sys.argv[1]), "fp16", fix="")
print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024)
"""


def save_product(path: Path, dtype: type, *, transposed: bool, size: tuple[int, int] = (8, 4)) -> Path:
    """A product of matrices, behind a transposition of batch and sequence as nn.MultiheadAttention has it."""
    kind = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    values: np.ndarray = np.random.default_rng(0).normal(size=size).astype(dtype)
    weight = onnx.numpy_helper.from_array(values, "weight")
    turned = [helper.make_node("Transpose", ["x"], ["turned"], perm=[1, 0, 2])] if transposed else []
    nodes = [*turned, helper.make_node("MatMul", ["turned" if transposed else "x", "weight"], ["y"])]
    given = helper.make_tensor_value_info("x", kind, ["batch", 3, size[0]])
    found = helper.make_tensor_value_info("y", kind, None)
    graph = helper.make_graph(nodes, "product", [given], [found], [weight])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10), path)
    return path


def save_chain(path: Path, width: int, *, depth: int = 24) -> Path:
    """Products of half matrices, one after the other."""
    names = [f"weight{index}" for index in range(depth)]
    weights = [onnx.numpy_helper.from_array(np.ones((width, width), np.float16), name) for name in names]
    nodes = [helper.make_node("MatMul", [f"x{index}", name], [f"x{index + 1}"]) for index, name in enumerate(names)]
    given = helper.make_tensor_value_info("x0", onnx.TensorProto.FLOAT16, ["batch", width])
    found = helper.make_tensor_value_info(f"x{depth}", onnx.TensorProto.FLOAT16, None)
    graph = helper.make_graph(nodes, "chain", [given], [found], weights)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10), path)
    return path


@pytest.mark.parametrize("size", [(8, 4), (256, 512)])
@pytest.mark.parametrize(("transposed", "needed"), [(False, {}), (True, {LEVEL: "1"})])
def test_a_graph_that_kills_onnx_runtime_is_opened_without_the_step_that_does(
    transposed: bool, needed: dict[str, str], size: tuple[int, int], tmp_path: Path
) -> None:
    # ONNX Runtime 1.32; with a release that opens it as it is, nothing is needed.
    path = save_product(tmp_path / "model.onnx", np.float16, transposed=transposed, size=size)
    assert require_kernels(path, "fp16", fix="use --formats aoti") == needed
    assert list(tmp_path.iterdir()) == [path]


def test_looking_for_kernels_takes_half_weights_once_in_float32_and_no_more(tmp_path: Path) -> None:
    paths = [save_chain(tmp_path / f"{width}.onnx", width) for width in (64, 1536)]
    # Where glibc lays its heap is chance, and by it one run in six keeps 60 MB more: what is freed goes back at once.
    env = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536"}
    peaks = []
    for path in paths:
        asked = [sys.executable, "-c", PEAK, str(path)]
        peaks.append(int(subprocess.run(asked, capture_output=True, text=True, check=True, env=env).stdout))

    assert peaks[1] - peaks[0] < 2.5 * paths[1].stat().st_size


@pytest.mark.parametrize("size", [(8, 4), (256, 512)])
def test_a_linked_graph_is_small_and_gives_the_same_answers(size: tuple[int, int], tmp_path: Path) -> None:
    path = save_product(tmp_path / "model.onnx", np.float32, transposed=True, size=size)
    rows = np.random.default_rng(1).normal(size=(2, 3, size[0])).astype(np.float32)

    with linked(path) as small:
        assert small.stat().st_size < 2_000
        answers = [onnxruntime.InferenceSession(str(one)).run(None, {"x": rows})[0] for one in (path, small)]

    assert np.array_equal(*answers)
    assert not small.exists()
