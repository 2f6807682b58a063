"""The local engine's ONNX Runtime session computes what a default one computes, and is set up as asked."""

import numpy as np
import onnxruntime
import pytest
from onnx import helper, numpy_helper

from deploy.serve.backends.sessions import SHARED_CORES, session_options
from tests.serve.tiny import FLOAT, onnx_bytes

CHANNELS, SIDE = 64, 28


def convolutions() -> bytes:
    """Wide enough that ONNX Runtime shares the work of each operator out to its threads."""
    rng = np.random.default_rng(0)
    nodes, weights, last = [], [], "INPUT__0"
    for layer in range(3):
        weight = rng.normal(size=(CHANNELS, CHANNELS, 3, 3)).astype(np.float32) / 24
        weights.append(numpy_helper.from_array(weight, f"weight{layer}"))
        nodes.append(helper.make_node("Conv", [last, f"weight{layer}"], [f"c{layer}"], pads=[1, 1, 1, 1]))
        nodes.append(helper.make_node("Sigmoid", [f"c{layer}"], [last := f"s{layer}"]))
    nodes.append(helper.make_node("ReduceMean", [last], ["OUTPUT__0"], axes=[2, 3], keepdims=0))
    image = helper.make_tensor_value_info("INPUT__0", FLOAT, ["batch", CHANNELS, SIDE, SIDE])
    scores = helper.make_tensor_value_info("OUTPUT__0", FLOAT, ["batch", CHANNELS])
    return onnx_bytes(helper.make_graph(nodes, "convolutions", [image], [scores], weights))


@pytest.mark.parametrize("rows", [1, 8])
def test_sharing_the_cores_changes_no_bit(rows: int) -> None:
    plain = onnxruntime.SessionOptions()
    plain.intra_op_num_threads, plain.inter_op_num_threads = 2, 1
    images = np.random.default_rng(1).normal(size=(rows, CHANNELS, SIDE, SIDE)).astype(np.float32)
    outputs = [
        onnxruntime.InferenceSession(convolutions(), options, providers=["CPUExecutionProvider"]).run(
            None, {"INPUT__0": images}
        )[0]
        for options in (plain, session_options(threads=2, graph_level=0))
    ]
    np.testing.assert_array_equal(*outputs)
    assert outputs[0].std() > 0


def test_threads_level_and_waiting_are_as_asked() -> None:
    options = session_options(threads=3, graph_level=2)
    assert options.intra_op_num_threads == 3
    assert options.inter_op_num_threads == 1
    assert options.graph_optimization_level == onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    for name, value in SHARED_CORES.items():
        assert options.get_session_config_entry(name) == value
    assert session_options(threads=None, graph_level=0).intra_op_num_threads == 0


def test_the_parameters_that_the_backend_in_c_heeds_are_heeded() -> None:
    given = {"enable_mem_arena": "0", "enable_mem_pattern": "0", "execution_mode": "1", "intra_op_thread_count": "1"}
    options = session_options(threads=2, graph_level=1, parameters=given)
    assert not options.enable_cpu_mem_arena and not options.enable_mem_pattern
    assert options.execution_mode == onnxruntime.ExecutionMode.ORT_PARALLEL
    assert options.intra_op_num_threads == 1
    assert options.graph_optimization_level == onnxruntime.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
    plain = session_options(threads=2, graph_level=0, parameters={"sha256:model.onnx": "0"})
    assert plain.enable_cpu_mem_arena and plain.enable_mem_pattern
    assert plain.execution_mode == onnxruntime.ExecutionMode.ORT_SEQUENTIAL


def test_the_runtime_reads_the_entries(capfd: pytest.CaptureFixture[str]) -> None:
    """It ignores a name it does not know, so each has to complain of a bad value."""
    spin, block = SHARED_CORES
    options = session_options(threads=2, graph_level=0)
    options.log_severity_level = 2
    options.add_session_config_entry(spin, "long")
    onnxruntime.InferenceSession(convolutions(), options, providers=["CPUExecutionProvider"])
    assert f"Invalid value for {spin}" in capfd.readouterr().err
    options.add_session_config_entry(block, "small")
    with pytest.raises(ValueError, match="stoi"):
        onnxruntime.InferenceSession(convolutions(), options, providers=["CPUExecutionProvider"])
