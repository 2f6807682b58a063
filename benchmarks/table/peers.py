"""Model Navigator beside the rest: an environment of its own, its cold run, and its best runner as a contender.

Owns the pinned release and the other side of the pipe. Nothing is ever installed beside the project. Called by measure.
"""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.table.cold import ROOT
from benchmarks.table.records import NAVIGATOR
from deploy.processes import ChildFailed
from deploy.validate.contenders import Memory, Surroundings

PINNED = "triton-model-navigator==0.14.0"
# What runs the models is that of the project, so that routes differ and not releases.
SHARED = ("torch", "torchvision", "onnx", "onnxruntime", "onnxscript", "transformers")
# All that it declares but TensorRT, its quantizer and ONNX Runtime for GPUs, which a CPU has no use for.
NEEDED = (
    "dacite~=1.8", "fire", "jsonlines", "loguru", "mpmath~=1.3", "numpy<2", "onnx_graphsurgeon~=0.5", "packaging~=24.1",
    "polygraphy", "psutil", "py-cpuinfo", "pynvml~=11.5", "python-slugify~=8.0", "pyyaml~=6.0", "tabulate",
    "tritonclient[grpc]~=2.47", "wrapt", "pyee", "rich",
)  # fmt: skip

_WAITS = "torch.cuda.synchronize()"


def environment(folder: Path) -> Path:
    """The Python of a virtual environment in `folder` that holds it, made if it is not there yet."""
    python = folder / "bin" / "python"
    if not (folder / "complete").exists():
        subprocess.run([sys.executable, "-m", "venv", "--clear", str(folder)], check=True)
        shared = [f"{name}=={version(name).split('+')[0]}" for name in SHARED]
        install = [str(python), "-m", "pip", "install", "--quiet"]
        subprocess.run([*install, *NEEDED, *shared], check=True)
        subprocess.run([*install, "--no-deps", PINNED], check=True)
        _mend(folder)
        (folder / "complete").touch()
    return python


def _mend(folder: Path) -> None:
    """Let its runners of torch wait for a GPU only where there is one: with a CPU build of torch each would fail."""
    (path,) = folder.glob("lib/python*/site-packages/model_navigator/runners/torch.py")
    text = path.read_text()
    if _WAITS not in text:
        raise RuntimeError(f"{PINNED} has another {path.name} than it was mended for")
    path.write_text(text.replace(_WAITS, f"torch.cuda.is_available() and {_WAITS}"))


@dataclass(slots=True, kw_only=True)
class NavigatorContender:
    """The runner that Model Navigator calls its best, in a process of its own Python."""

    python: Path
    folder: Path
    given: Surroundings
    name: str = NAVIGATOR
    runner: str = ""
    _process: subprocess.Popen[str] | None = None
    _memory: Memory = field(default_factory=partial(Memory, base=0, peak=0))

    def load(self) -> float:
        """See `Contender.load`. Raises ChildFailed if the process ends, here and later."""
        inputs = self.folder / "inputs.npz"
        arrays = {
            f"{batch}/{index}": array for batch, rows in self.given.inputs.items() for index, array in enumerate(rows)
        }
        np.savez(inputs, allow_pickle=False, **arrays)
        self.given.logs.mkdir(parents=True, exist_ok=True)
        command = ["-m", "benchmarks.by_hand.model_navigator", "serve", str(self.folder), str(inputs)]
        with (self.given.logs / "latency-model-navigator.log").open("wb") as log:
            self._process = subprocess.Popen(
                [str(self.python), *command, str(self.given.threads)], cwd=ROOT, stdin=subprocess.PIPE,
                stdout=subprocess.PIPE, stderr=log, text=True, start_new_session=True,
            )  # fmt: skip
        answer = self._answer()
        self.runner = answer["runner"]
        return float(answer["load_seconds"])

    def first(self) -> float:
        """See `Contender.first`."""
        return self.time_calls(1, 1)[0]

    def time_calls(self, batch: int, calls: int) -> list[float]:
        """See `Contender.time_calls`."""
        answer = self._ask([batch, calls])
        self._memory = Memory(base=answer["base"], peak=answer["peak"])
        return [float(one) for one in answer["seconds"]]

    def run(self, inputs: Sequence[np.ndarray]) -> list[np.ndarray]:
        """The outputs for one batch."""
        arrays = {str(index): array for index, array in enumerate(inputs)}
        np.savez(self.folder / "asked.npz", allow_pickle=False, **arrays)
        self._ask("asked")
        with np.load(self.folder / "asked-out.npz", allow_pickle=False) as archive:
            return [archive[str(index)] for index in range(len(archive.files))]

    def memory(self) -> Memory:
        """See `Contender.memory`; what it said last."""
        return self._memory

    def pause(self) -> None:
        """See `Contender.pause`."""
        self._signal(signal.SIGSTOP)

    def resume(self) -> None:
        """See `Contender.resume`."""
        self._signal(signal.SIGCONT)

    def close(self) -> None:
        """See `Contender.close`."""
        process, self._process = self._process, None
        if process is not None and process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()

    def _signal(self, number: signal.Signals) -> None:
        if self._process is not None and self._process.poll() is None:
            os.killpg(self._process.pid, number)

    def _ask(self, order: list[int] | str) -> dict[str, Any]:
        assert self._process is not None and self._process.stdin is not None, "a contender is loaded before it is used"
        try:
            self._process.stdin.write(json.dumps(order) + "\n")
            self._process.stdin.flush()
        except BrokenPipeError as error:
            raise ChildFailed(f"{self.name} has ended") from error
        return self._answer()

    def _answer(self) -> dict[str, Any]:
        """The next answer, past what its libraries print. Raises ChildFailed where there is none."""
        assert self._process is not None and self._process.stdout is not None
        for line in self._process.stdout:
            if line.startswith("answer "):
                found: dict[str, Any] = json.loads(line.removeprefix("answer "))
                return found
        raise ChildFailed(f"{self.name} ended with exit code {self._process.wait()}")
