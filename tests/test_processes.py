"""What becomes of children when the command is killed."""

import errno
import os
import queue
import subprocess
import sys
from pathlib import Path

import onnx
import psutil
import pytest

from deploy.errors import UnfinishedError
from deploy.processes import OutOfMemory, Worker, _told, called_after, tree_memory

COMMAND = """
import sys, time
from pathlib import Path
from deploy.processes import Worker

if __name__ == "__main__":
    folder = Path(sys.argv[1])
    with Worker("stopped", log=folder / "stopped.log") as stopped, Worker("idle", log=folder / "idle.log") as idle:
        for worker in (stopped, idle):
            worker.run(int)
        stopped.pause()
        print(stopped.pid, idle.pid, flush=True)
        time.sleep(60)
"""

# A session in a child, as the proof makes one, with a home of its own.
SESSION = """
import sys
from pathlib import Path
from deploy.processes import Worker

def run(model):
    import onnxruntime
    onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])

if __name__ == "__main__":
    folder = Path(sys.argv[1])
    with Worker("session", log=folder / "session.log") as worker:
        worker.run(run, sys.argv[2])
"""


def test_no_runtime_reports_a_model_to_its_vendor(tmp_path: Path) -> None:
    # Before it sends anything it leaves files in the home and the temporary folder; under CI it is still.
    script, model, home = tmp_path / "command.py", tmp_path / "model.onnx", tmp_path / "home"
    script.write_text(SESSION)
    value = onnx.helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, [1])
    graph = onnx.helper.make_graph(
        [onnx.helper.make_node("Identity", ["x"], ["y"])],
        "g",
        [value],
        [onnx.helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, [1])],
    )
    onnx.save(onnx.helper.make_model(graph, ir_version=9, opset_imports=[onnx.helper.make_opsetid("", 17)]), model)
    home.mkdir()
    asked_of_us = {"HOME": str(home), "XDG_CACHE_HOME": str(home / ".cache"), "TMPDIR": str(home)}
    left_out = {"CI", "GITHUB_ACTIONS", "ORT_DISABLE_TELEMETRY", "PYTEST_CURRENT_TEST"}
    variables = {name: value for name, value in os.environ.items() if name not in left_out} | asked_of_us
    subprocess.run([sys.executable, str(script), str(tmp_path), str(model)], env=variables, check=True)
    assert [path.name for path in home.rglob("*") if path.is_file()] == []


def test_a_killed_command_leaves_no_child_not_even_a_stopped_one(tmp_path: Path) -> None:
    script = tmp_path / "command.py"
    script.write_text(COMMAND)
    with subprocess.Popen([sys.executable, str(script), str(tmp_path)], stdout=subprocess.PIPE, text=True) as command:
        assert command.stdout is not None
        children = [psutil.Process(int(pid)) for pid in command.stdout.readline().split()]
        family = psutil.Process(command.pid).children(recursive=True)
        command.kill()
    _, alive = psutil.wait_procs([*children, *family], timeout=20)
    for left in alive:
        left.kill()

    assert len(children) == 2
    assert not alive


def test_memory_that_the_kernel_keeps_to_itself_is_still_limited(monkeypatch: pytest.MonkeyPatch) -> None:
    exact = tree_memory(os.getpid())

    def denied(process: psutil.Process) -> None:
        raise psutil.AccessDenied(process.pid)

    monkeypatch.setattr(psutil.Process, "memory_full_info", denied)
    assert tree_memory(os.getpid()) >= 0.9 * exact > 10_000_000


def allocate(amount: int) -> int:
    return len(bytearray(amount))


def test_a_child_that_finds_no_memory_says_so_and_lives_on(tmp_path: Path) -> None:
    with Worker("child", log=tmp_path / "log") as worker:
        with pytest.raises(OutOfMemory, match="child ran out of memory: MemoryError"):
            worker.run(allocate, 1 << 62)
        assert worker.run(allocate, 3).value == 3


@pytest.mark.parametrize(
    "said",
    [
        "DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes",
        "CUDA error: out of memory",
        "std::bad_alloc",
        "Failed to allocate memory for requested buffer of size 8",
    ],
)
def test_the_ways_in_which_libraries_say_that_memory_is_out_are_known(said: str) -> None:
    assert _told(RuntimeError(said))[0] == "no-memory"


def test_other_errors_are_no_lack_of_memory() -> None:
    assert _told(RuntimeError("mat1 and mat2 shapes cannot be multiplied"))[0] == "error"


def fill_up() -> None:
    """What a child does whose log lies on the disk that is full: each word of it raises too."""
    os.dup2(os.open("/dev/full", os.O_WRONLY), 2)
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "rows.npz")


def test_a_full_disk_in_a_child_is_told_as_such(tmp_path: Path) -> None:
    with (
        Worker("child", log=tmp_path / "log") as worker,
        pytest.raises(UnfinishedError, match=r"^the disk is full while working in a child process: rows\.npz"),
    ):
        worker.run(fill_up)


def test_a_long_block_is_told_of_again_and_again_until_its_end() -> None:
    again: queue.Queue[bool] = queue.Queue()
    with called_after(0.01, lambda: again.put(True), every=0.01):
        assert all(again.get(timeout=60) for _ in range(3))
    once: queue.Queue[bool] = queue.Queue()
    with called_after(0.01, lambda: once.put(True)):
        assert once.get(timeout=60)
        with pytest.raises(queue.Empty):
            once.get(timeout=0.2)
