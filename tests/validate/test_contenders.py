"""Real processes: eager twice and ONNX Runtime, raced on a tiny network, and really still while stopped."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np
import psutil
import pytest

from deploy.checkpoint.load import read_checkpoint
from deploy.checkpoint.model import CheckpointRequest
from deploy.convert.model import Artifact
from deploy.latency_evidence import CONTROL, EAGER
from deploy.processes import ChildFailed, Limits
from deploy.spec import Dim, Spec, TensorSpec
from deploy.validate.contenders import (
    Entrant,
    Surroundings,
    WorkerContender,
    artifact_entrant,
    inputs_by_batch,
    open_contenders,
    open_entrants,
)
from deploy.validate.executables import Arrays, OnnxModel
from deploy.validate.latency import LatencyPlan, measure

ROWS = np.arange(12, dtype=np.float32).reshape(3, 4)
SPEC = Spec(
    inputs=(
        TensorSpec(name="rows", dtype="float32", shape=("batch", 4)),
        TensorSpec(name="scale", dtype="float32", shape=(1,)),
    ),
    outputs=(TensorSpec(name="output", dtype="float32", shape=("batch", 2)),),
    dims=(Dim(name="batch", minimum=1, maximum=8),),
)


@pytest.fixture
def onnx_file(tmp_path: Path) -> Path:
    """`OUTPUT__0 = INPUT__0 @ weight`, for rows of four."""
    from onnx import TensorProto, helper, numpy_helper, save

    weight = numpy_helper.from_array(np.ones((4, 2), dtype=np.float32), "weight")
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["INPUT__0", "weight"], ["OUTPUT__0"])],
        "tiny",
        [helper.make_tensor_value_info("INPUT__0", TensorProto.FLOAT, ["batch", 4])],
        [helper.make_tensor_value_info("OUTPUT__0", TensorProto.FLOAT, ["batch", 2])],
        [weight],
    )
    path = tmp_path / "model.onnx"
    save(helper.make_model(graph, ir_version=10, opset_imports=[helper.make_opsetid("", 20)]), path)
    return path


def contender(path: Path, tmp_path: Path, limits: Limits = Limits(seconds=120)) -> WorkerContender:  # noqa: B008
    factory = partial(OnnxModel, path, threads=1)
    return WorkerContender("onnx", factory, inputs={1: [ROWS[:1]]}, log=tmp_path / "onnx.log", limits=limits)


def stopped(process: psutil.Process) -> bool:
    """Whether the kernel reports the process as stopped; the signal may take a moment to reach every thread."""
    deadline = time.monotonic() + 10
    while process.status() != psutil.STATUS_STOPPED and time.monotonic() < deadline:
        time.sleep(0.01)
    return process.status() == psutil.STATUS_STOPPED


def test_rows_are_repeated_or_cut_to_each_batch_and_other_inputs_left_alone() -> None:
    samples: Arrays = [ROWS, np.ones(1, dtype=np.float32)]
    inputs = inputs_by_batch(samples, SPEC, (1, 2, 8))
    assert [inputs[batch][0].shape for batch in (1, 2, 8)] == [(1, 4), (2, 4), (8, 4)]
    assert np.array_equal(inputs[8][0][3], ROWS[0])
    assert inputs[8][1] is samples[1]


def test_a_static_program_gets_the_first_row() -> None:
    spec = Spec(
        inputs=(TensorSpec(name="rows", dtype="float32", shape=(1, 4)),),
        outputs=(TensorSpec(name="output", dtype="float32", shape=(1, 2)),),
    )
    assert inputs_by_batch([ROWS], spec, (1,))[1][0].tolist() == ROWS[:1].tolist()


def test_a_paused_contender_is_stopped_and_goes_on_when_resumed(onnx_file: Path, tmp_path: Path) -> None:
    onnx = contender(onnx_file, tmp_path)
    try:
        assert onnx.load() > 0
        assert onnx.first() > 0
        process = psutil.Process(onnx.pid)
        onnx.pause()
        assert stopped(process)
        onnx.resume()
        assert len(onnx.time_calls(1, 5)) == 5
        memory = onnx.memory()
        assert 0 < memory.base <= memory.peak
    finally:
        onnx.close()
    assert not process.is_running()


def test_a_contender_that_cannot_be_loaded_says_which_one(tmp_path: Path) -> None:
    onnx = contender(tmp_path / "absent.onnx", tmp_path)
    try:
        with pytest.raises(ChildFailed, match="latency of onnx failed"):
            onnx.load()
    finally:
        onnx.close()


def test_eager_its_control_and_onnx_race_in_processes_of_their_own(onnx_file: Path, tmp_path: Path) -> None:
    import torch

    saved = tmp_path / "tiny.pt"
    torch.save({"weight": torch.ones(2, 4)}, saved)
    request = CheckpointRequest(path=saved, factory="tests.validate.tiny:linear", input_shapes=((4,),))
    artifact = Artifact(
        format="onnx", folder=onnx_file.parent, files=("model.onnx",), seconds=0.0, peak_memory=0, details={}
    )
    plan = LatencyPlan(max_batch=4, threads=1, seconds_per_cell=0.2, block_seconds=0.01)
    given = Surroundings(
        inputs={batch: [np.repeat(ROWS[:1], batch, axis=0)] for batch in plan.batches},
        threads=plan.threads,
        logs=tmp_path / "logs",
        limits=Limits(seconds=300),
    )
    with open_contenders(read_checkpoint(request), [artifact], given) as contenders:
        evidence = measure(contenders, plan)
        pids = {one.pid for one in contenders}
    assert len(pids) == 3
    assert not any(psutil.pid_exists(pid) for pid in pids)
    assert [start.contender for start in evidence.starts] == [EAGER, CONTROL, "onnx"]
    assert {(cell.contender, cell.batch) for cell in evidence.cells} == {
        (name, batch) for name in (EAGER, CONTROL, "onnx") for batch in (1, 4)
    }
    assert evidence.lost == ()
    # Whether the machine was quiet enough to name a winner is not this test's to say.
    assert evidence.winner in ("onnx", None)
    assert sorted(path.name for path in (tmp_path / "logs").iterdir()) == [
        "latency-eager-a-a.log",
        "latency-eager.log",
        "latency-onnx.log",
    ]


class Doomed(OnnxModel):
    """A model that ends its own process, or fails, at the tenth call."""

    def __init__(self, path: Path, *, threads: int, how: str) -> None:
        super().__init__(path, threads=threads)
        self._how, self._made = how, 0

    def time_calls(self, inputs: Sequence[np.ndarray], calls: int) -> list[float]:
        self._made += calls
        if self._made >= 10 and self._how == "kills itself":
            os.kill(os.getpid(), signal.SIGKILL)
        if self._made >= 10 and self._how == "hangs":
            time.sleep(600)
        if self._made >= 10:
            raise ArithmeticError("the tenth call")
        return super().time_calls(inputs, calls)


@pytest.mark.parametrize(
    ("how", "reason"),
    [("kills itself", "was killed by SIGKILL"), ("raises", "the tenth call"), ("hangs", "did not end within 3 s")],
)
def test_a_contender_that_really_dies_is_named_and_the_others_go_on(
    how: str, reason: str, onnx_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("deploy.validate.contenders._PATIENCE", 3.0)
    entrants = [artifact_entrant(name, onnx_file, format="onnx", threads=1) for name in (EAGER, CONTROL, "onnx")]
    entrants.append(Entrant(name="aoti", factory=partial(Doomed, onnx_file, threads=1, how=how)))
    given = Surroundings(inputs={1: [ROWS[:1]]}, threads=1, logs=tmp_path / "logs")
    with open_entrants(entrants, given) as contenders:
        evidence = measure(contenders, LatencyPlan(max_batch=1, threads=1, seconds_per_cell=0.1, block_seconds=0.01))
    (lost,) = evidence.lost
    assert lost.contender == "aoti"
    assert reason in lost.reason
    assert {cell.contender for cell in evidence.cells} == {EAGER, CONTROL, "onnx"}


def test_the_process_that_measures_imports_neither_torch_nor_onnxruntime() -> None:
    code = "import sys, deploy.validate.latency as l; print('torch' in sys.modules, 'onnxruntime' in sys.modules)"
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert shown.split() == ["False", "False"]
