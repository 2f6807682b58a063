"""One model in one precision, in a process of its own: prepared beside others, measured while the others are stopped.

Owns preparing, timing and comparing; also the machine's limits. Called by gpu through `deploy.processes.Worker`.
"""

import os
import platform
import random
import subprocess
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.export import ExportedProgram
from torch.utils.flop_counter import FlopCounterMode

from benchmarks import gpu_contenders as ways
from benchmarks.gpu_models import SUBJECTS
from deploy.convert.flex import plain_attention
from deploy.errors import MissingError
from deploy.validate.baseline import LIMITS
from deploy.validate.machine import cpu_model, describe_cpus, installed_versions
from deploy.validate.statistics import Estimate, paired_ratio, percentile

CONFIDENCE = 0.95
COMPARED_ROWS = 8
_ROWS_AT_ONCE = 4
_FLOOR_EPSILONS = 8.0
_LIMIT_REPEATS = 10
_MATRIX = {"cuda": 8192, "cpu": 1024}
_COPIED_BYTES = {"cuda": 4 << 30, "cpu": 64 << 20}


@dataclass(frozen=True, slots=True, kw_only=True)
class Precision:
    """How numbers are kept and multiplied. `judged` is the row of the converter's own parity limits."""

    dtype: torch.dtype
    tf32: bool = False
    judged: str = "fp32"


PRECISIONS = {
    "bf16": Precision(dtype=torch.bfloat16, judged="bf16"),
    "fp16": Precision(dtype=torch.float16, judged="fp16"),
    "tf32": Precision(dtype=torch.float32, tf32=True),
    "fp32": Precision(dtype=torch.float32),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """What one process does. `deadline`: when, in seconds since the epoch, to begin preparing no more contenders."""

    model: str
    precision: str
    device: str
    contenders: tuple[str, ...]
    batches: tuple[int, ...]
    folder: Path
    threads: int
    deadline: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """How much is measured: so many rounds, in all so many seconds per contender and batch."""

    rounds: int
    seconds: float
    seed: int = 0


@dataclass(slots=True)
class _Batch:
    """What is known of the contenders at one batch, while it is measured."""

    calls: dict[str, ways.Call] = field(default_factory=dict)
    errors: dict[str, float] = field(default_factory=dict)
    samples: dict[str, list[list[float]]] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)


class Bench:
    """All contenders of a job, made when it is made. A contender that cannot be made is one that failed, with why."""

    def __init__(self, job: Job) -> None:
        self._job, self._precision, self._subject = job, PRECISIONS[job.precision], SUBJECTS[job.model]
        self.failed: dict[str, str] = {}
        self.seconds: dict[str, float] = {}
        self._contenders: dict[str, ways.Contender] = {}
        job.folder.mkdir(parents=True, exist_ok=True)
        os.environ["TORCHINDUCTOR_CACHE_DIR"] = str(job.folder / "inductor")
        torch.set_num_threads(job.threads)
        set_tf32(self._precision.tf32)
        rows = self._subject.rows(max(*job.batches, COMPARED_ROWS))
        self._reference, self._module = self._refer(rows[:COMPARED_ROWS].to(job.device))
        self._rows = self._typed(rows).to(job.device)
        self._program: ExportedProgram | None = None
        self._flops = self._count()
        self._prepare()

    def about(self) -> dict[str, Any]:
        """Which contenders there are, which failed and why, and what preparing each took, in seconds, beside others."""
        return {"prepared": list(self._contenders), "failed": self.failed, "seconds": self.seconds}

    def measure(self, batch: int, plan: Plan, *, graphs: bool) -> list[dict[str, Any]]:
        """A row per contender at one batch: its time, its ratio to eager, its error, and what it computed and moved.

        With `graphs` of those that are CUDA graphs, eager being run beside them; else of the others. Apart, because a
        capture that fails can leave the whole process without a device.
        """
        state = _Batch(failed=dict(self.failed))
        rows = self._rows[:batch].contiguous()
        wanted = [name for name in self._job.contenders if (name in ways.GRAPHED) == graphs]
        for name in dict.fromkeys((ways.EAGER, *wanted)):
            if name in self._contenders:
                self._bind(state, name, self._contenders[name], rows)
        order, chance = list(state.calls), random.Random(plan.seed)
        for _ in range(plan.rounds):
            chance.shuffle(order)
            for name in order:
                samples = state.samples.setdefault(name, [])
                samples.append(time_block(state.calls[name], self._wait, plan.seconds / plan.rounds))
        for name in list(state.calls):
            self._compare(state, name, batch)
        return [self._row(state, name, rows) for name in wanted]

    def _refer(self, rows: Tensor) -> tuple[Tensor, nn.Module]:
        """The model's outputs in float64, and the model, whose weights have then passed through float64 unchanged."""
        module = self._subject.build(self._job.device).requires_grad_(False).double()
        given = rows.double() if rows.is_floating_point() else rows
        with torch.inference_mode():
            parts = [module(part) for part in given.split(_ROWS_AT_ONCE)]
        reference, module = torch.cat(parts), module.to(self._precision.dtype)
        del parts
        self._give_back()
        return reference, module

    def _typed(self, rows: Tensor) -> Tensor:
        return rows.to(self._precision.dtype) if rows.is_floating_point() else rows

    def _wait(self) -> None:
        if self._job.device == "cuda":
            torch.cuda.synchronize()

    def _give_back(self) -> None:
        """Leave the device's memory that is free to the other processes."""
        if self._job.device == "cuda":
            torch.cuda.empty_cache()

    def _prepare(self) -> None:
        makers: dict[str, Callable[[], ways.Contender]] = {
            ways.EAGER: lambda: ways.Module(module=self._module),
            ways.CONTROL: lambda: ways.Module(module=self._module),
            ways.AOTI: self._archive,
            ways.ONNX: self._session,
            ways.COMPILED: lambda: ways.compiled(self._module, self._rows),
        }
        for name in self._job.contenders:
            started = time.time()
            if started > self._job.deadline and name not in ways.GRAPHED:  # those take no time yet
                self.failed[name] = "the time for preparing was over"
                continue
            try:
                self._contenders[name] = self._graph(name) if name in ways.GRAPHED else makers[name]()
            except Exception as error:  # noqa: BLE001 - whatever a contender raises is its result
                self.failed[name] = _said(error)
            self.seconds[name] = round(time.time() - started, 1)
        self._give_back()
        print(torch._dynamo.utils.compile_times("str"))

    def _count(self) -> int:
        """The operations of one row's matrix products and convolutions; 0 where the program cannot be counted."""
        try:
            self._program = ways.exported(self._module, self._rows)
            plain = plain_attention(self._program).module()
            with torch.inference_mode(), FlopCounterMode(display=False) as counter:
                plain(self._rows[: ways.SAMPLE_BATCH].clone())
        except Exception as error:  # noqa: BLE001 - what comes of it is a dash in the table
            print(_said(error))
            return 0
        return int(counter.get_total_flops()) // ways.SAMPLE_BATCH - self._subject.spared

    def _archive(self) -> ways.Contender:
        program = self._program or ways.exported(self._module, self._rows)
        return ways.Archive(path=ways.archived(program, self._job.folder, threads=self._job.threads))

    def _session(self) -> ways.Contender:
        module = self._subject.build("cpu").requires_grad_(False).to(self._precision.dtype)
        path = ways.graph_file(module, self._rows[:2].cpu(), self._job.folder)
        return ways.session(path, self._job.device, tf32=self._precision.tf32)

    def _graph(self, name: str) -> ways.Contender:
        if self._job.device != "cuda":
            raise MissingError("there are CUDA graphs on a CUDA device only")
        inner = self._contenders.get(name.removesuffix(ways.GRAPH))
        if inner is None:
            raise MissingError(f"without {name.removesuffix(ways.GRAPH)} there is no graph of it")
        return ways.Graph(inner=ways.Archive(path=inner.path, alone=True) if isinstance(inner, ways.Archive) else inner)

    def _bind(self, state: _Batch, name: str, contender: ways.Contender, rows: Tensor) -> None:
        try:
            state.calls[name] = contender.bind(rows)
            self._compare(state, name, len(rows))
            state.calls[name]()
            self._wait()
        except Exception as error:  # noqa: BLE001 - whatever a contender raises is its result
            state.calls.pop(name, None)
            state.failed[name] = _said(error)

    def _compare(self, state: _Batch, name: str, batch: int) -> None:
        """Keep the larger of the errors before and after measuring; what is not a number is infinitely far off."""
        found = state.calls[name]()[:COMPARED_ROWS].double()
        wanted = self._reference[:batch]
        error = float((found - wanted).norm() / wanted.norm()) if found.shape == wanted.shape else np.inf
        state.errors[name] = max(state.errors.get(name, 0.0), error if np.isfinite(error) else np.inf)

    def _least_bytes(self, rows: Tensor) -> int:
        """What must be moved at least: each weight once, of a table no more rows than are looked up, input, output."""
        total = sum(each.nbytes for each in (*self._module.parameters(), *self._module.buffers(), rows))
        total += self._reference[0].numel() * len(rows) * self._precision.dtype.itemsize
        for table in self._module.modules():
            if isinstance(table, nn.Embedding):
                unread = max(0, table.num_embeddings - rows.numel())
                total -= unread * table.embedding_dim * table.weight.element_size()
        return total

    def _row(self, state: _Batch, name: str, rows: Tensor) -> dict[str, Any]:
        batch = len(rows)
        cell = {"model": self._job.model, "precision": self._job.precision, "batch": batch, "contender": name}
        label = f"{self._job.model} {self._job.precision}, batch {batch}: {name}"
        if name not in state.samples:
            return {"name": label, **cell, "unit": "ms", "n": 0, **plain(None), "failed": state.failed[name]}
        samples, base = state.samples[name], state.samples.get(ways.EAGER)
        error, own = state.errors[name], state.errors.get(ways.EAGER, 0.0)
        limits = LIMITS[self._precision.judged]
        floor = _FLOOR_EPSILONS * torch.finfo(self._precision.dtype).eps
        return {
            "name": label,
            **cell,
            "unit": "ms",
            "n": sum(map(len, samples)),
            **plain(percentile([[1e3 * each for each in block] for block in samples], 0.5, CONFIDENCE)),
            "median_ms": float(1e3 * np.median(np.concatenate(samples))),
            "ratio": ratio_of(samples, base) if base else plain(None),
            "error": error if np.isfinite(error) else None,
            "within": error <= max(limits.l2_multiple * own, floor),
            "flops": self._flops * batch,
            "least_bytes": self._least_bytes(rows),
            "prepare_seconds": self.seconds.get(name),
        }


def ratio_of(samples: Sequence[Sequence[float]], base: Sequence[Sequence[float]]) -> dict[str, float | None]:
    """The median over rounds of ours over the base's; without an interval where the rounds are too few for one."""
    found = paired_ratio(samples, base, CONFIDENCE)
    if found is not None:
        return plain(found)
    rounds = [float(np.median(mine) / np.median(theirs)) for mine, theirs in zip(samples, base, strict=True)]
    return {**plain(None), "value": float(f"{np.median(rounds):.6g}")}


def time_block(call: ways.Call, wait: Callable[[], None], seconds: float) -> list[float]:
    """Wall seconds of calls in a row, each until the device has ended it; the first is dropped unless it is alone."""
    samples: list[float] = []
    end = time.perf_counter() + seconds
    while not samples or time.perf_counter() < end:
        started = time.perf_counter()
        call()
        wait()
        samples.append(time.perf_counter() - started)
    return samples[1:] or samples


def set_tf32(allowed: bool) -> None:
    """Whether float32 products, of matrices and in convolutions, may round their factors to TF32."""
    torch.set_float32_matmul_precision("high" if allowed else "highest")
    torch.backends.cudnn.allow_tf32 = allowed


def machine(device: str) -> dict[str, Any]:
    """Hardware and versions. Raises MissingError if there is no such device."""
    accelerator = None
    if device == "cuda":
        if not torch.cuda.is_available():
            raise MissingError(
                "torch sees no CUDA device here",
                expected="an NVIDIA GPU, its driver, and a torch built for CUDA",
                fix="run it on a machine with a GPU; `--device cpu --models tiny` tries the benchmark itself",
            )
        found = torch.cuda.get_device_properties(0)
        accelerator = {
            "name": found.name,
            "capability": f"{found.major}.{found.minor}",
            "multiprocessors": found.multi_processor_count,
            "memory_gb": round(found.total_memory / 1e9, 1),
            "driver": _driver(),
        }
    versions = {
        "python": platform.python_version(),
        **installed_versions(("torch", "torchvision", "transformers", "triton", "onnx", "onnxscript")),
        **installed_versions(("onnxruntime", "onnxruntime-gpu")),
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version() if device == "cuda" else None,
    }
    hardware = {"processor": cpu_model(), "cpus": describe_cpus(), "accelerator": accelerator}
    return {"hardware": hardware, "versions": versions}


def limits(device: str, precisions: Sequence[str]) -> dict[str, Any]:
    """What the device reaches: operations per second of a large product in each precision, bytes per second of a copy.

    Bytes are counted read and written.
    """
    size = _MATRIX[device]
    found: dict[str, Any] = {"matrix": {}, "matrix_size": size, "copied_bytes": _COPIED_BYTES[device]}
    for name in precisions:
        precision = PRECISIONS[name]
        set_tf32(precision.tf32)
        left, right = (torch.randn(size, size, device=device).to(precision.dtype) for _ in range(2))
        found["matrix"][name] = 2 * size**3 / _median_seconds(left.matmul, right)
    source = torch.empty(_COPIED_BYTES[device], dtype=torch.uint8, device=device).random_(256)
    found["memory"] = 2 * source.nbytes / _median_seconds(torch.empty_like(source).copy_, source)
    return found


def _median_seconds(function: Callable[[Tensor], Tensor], argument: Tensor) -> float:
    wait: Callable[[], Any] = torch.cuda.synchronize if argument.is_cuda else lambda: None
    samples = []
    for _ in range(3 + _LIMIT_REPEATS):
        wait()
        started = time.perf_counter()
        function(argument)
        wait()
        samples.append(time.perf_counter() - started)
    return float(np.median(samples[3:]))


def plain(found: Estimate | None) -> dict[str, float | None]:
    """An estimate as JSON has it; null where no interval exists."""
    return {end: float(f"{getattr(found, end):.6g}") if found else None for end in ("value", "low", "high")}


def _driver() -> str:
    command = ["nvidia-smi", "--query-gpu=driver_version,clocks.sm,clocks.max.sm,power.limit", "--format=csv,noheader"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def _said(error: Exception) -> str:
    """The error's name and first line, for a table."""
    import traceback

    traceback.print_exc()
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0][:200] if lines else ''}"
