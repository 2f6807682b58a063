"""The GPU benchmark runs end to end on a CPU; record, shares and table say what was measured and what was not."""

import argparse
import gc
import time
import weakref
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks.gpu import Times, _arguments, _jobs, run
from benchmarks.gpu_contenders import EAGER, GRAPH, ONNX, Module, Replay
from benchmarks.gpu_table import merged, skipped, table, with_shares
from benchmarks.gpu_worker import Bench, Job, Plan, machine, time_block
from deploy.errors import MissingError
from deploy.processes import run_alone

LIMITS = {"matrix": {"fp32": 1e12}, "memory": 1e11}


def arguments(*line: str) -> argparse.Namespace:
    return _arguments(["--device", "cpu", "--models", "tiny", "--precisions", "fp32", *line])


def row(contender: str, milliseconds: float, *, n: int = 12, **changes: Any) -> dict[str, Any]:
    ends = {"value": milliseconds, "low": milliseconds, "high": milliseconds}
    ratio = dict.fromkeys(ends, milliseconds / 10.0)
    cell = {"model": "tiny", "precision": "fp32", "batch": 1, "contender": contender}
    error = {"error": 1e-7, "within": True, "flops": 10**9, "least_bytes": 10**6}
    return {"name": contender, **cell, "n": n, **ends, "median_ms": milliseconds, "ratio": ratio, **error, **changes}


def record(*rows: dict[str, Any], device: str = "a chip") -> dict[str, Any]:
    about = {"date": "2026-01-31T12:00:00+00:00", "command": "here", "limits": LIMITS}
    versions = {"torch": "2.11", "onnxruntime": "1.31"}
    hardware = {"cpus": "two", "processor": device, "accelerator": None}
    return {**about, "versions": versions, "hardware": hardware, "rows": list(rows)}


def test_a_tiny_run_gives_times_beside_errors(tmp_path: Path) -> None:
    contenders = "eager;eager (A/A);ONNX Runtime"
    line = ("--contenders", contenders, "--batches", "1,8", "--seconds", "0.02", "--jobs", "1", "--budget", "300")
    found = run(arguments(*line, "--results", str(tmp_path)))
    rows = found["runs"][0]["rows"]
    assert [(row["batch"], row["contender"]) for row in rows] == [
        (batch, name) for batch in (1, 8) for name in contenders.split(";")
    ]
    for each in rows:
        assert each["n"] >= 6
        assert each["within"] and 0 < each["error"] < 1e-5
        assert 0 < each["share"] < 1
    assert (tmp_path / "gpu.json").exists()
    assert (tmp_path / "gpu.md").read_text() == table(found)


def test_pairs_take_the_place_of_all_models_in_all_precisions(tmp_path: Path) -> None:
    times = Times(preparing=0.0, all=0.0)
    jobs = _jobs(arguments("--pairs", "swin_t:bf16,tiny:fp32"), tmp_path, times)
    assert [(job.model, job.precision) for job in jobs] == [("swin_t", "bf16"), ("tiny", "fp32")]
    with pytest.raises(SystemExit):
        arguments("--pairs", "swin_t:fp64")


def measured_with_one_that_is_off(folder: Path) -> list[dict[str, Any]]:
    """In a child: eager, one whose outputs are a thousandth too large, and one that this device cannot have."""
    job = Job(
        model="tiny", precision="fp32", device="cpu", contenders=(EAGER, ONNX, EAGER + GRAPH), batches=(2,),
        folder=folder, threads=1, deadline=0.0,
    )  # fmt: skip
    bench = Bench(replace(job, deadline=time.time() + 60.0, contenders=(EAGER, EAGER + GRAPH)))
    bench._job = job
    bench._contenders[ONNX] = Module(module=lambda rows: bench._module(rows) * 1.001)
    plan = Plan(rounds=1, seconds=0.01)
    return bench.measure(2, plan, graphs=False) + bench.measure(2, plan, graphs=True)


def test_an_error_beyond_the_limit_and_a_failure_are_said(tmp_path: Path) -> None:
    eager, off, graph = run_alone("off", measured_with_one_that_is_off, tmp_path).value
    assert (eager["within"], off["within"]) == (True, False)
    assert off["error"] == pytest.approx(1e-3, rel=0.01)
    assert graph["n"] == 0
    assert graph["failed"] == "MissingError: there are CUDA graphs on a CUDA device only"


def test_without_a_gpu_it_ends_with_code_3() -> None:
    with pytest.raises(MissingError, match="no CUDA device") as error:
        machine("cuda")
    assert error.value.exit_code == 3


@pytest.mark.parametrize(("flops", "bound", "share"), [(10**9, "matrix", 0.1), (10**6, "memory", 0.001)])
def test_the_limit_is_the_larger_of_two_times(flops: int, bound: str, share: float) -> None:
    found = with_shares(row("eager", 10.0, flops=flops), LIMITS)
    assert (found["bound"], found["share"]) == (bound, share)


def test_who_is_not_exact_is_never_the_fastest() -> None:
    rows = [row("eager", 10.0), row("AOTInductor", 1.0, within=False), row("ONNX Runtime", 5.0)]
    text = table(merged(None, record(*rows)))
    assert "**✗**" in text
    assert "| ONNX Runtime | 2.00 [2.00, 2.00] |" in text


def test_a_later_run_replaces_what_it_measured_and_nothing_else() -> None:
    job = Job(
        model="tiny", precision="fp32", device="cpu", contenders=("eager", "AOTInductor"), batches=(1,),
        folder=Path(), threads=1, deadline=0.0,
    )  # fmt: skip
    first = merged(None, record(row("eager", 10.0), *skipped(job, 1, "no time")[1:]))
    late = merged(first, record(row("AOTInductor", 1.0), *skipped(job, 1, "no time")[:1]))
    kept = [(each["contender"], each["n"]) for each in (row for run in late["runs"] for row in run["rows"])]
    assert kept == [("eager", 12), ("AOTInductor", 12)]
    other = merged(first, record(row("AOTInductor", 1.0), device="another chip"))
    assert sum(len(run["rows"]) for run in other["runs"]) == 3
    assert "no time" in table(other)


def test_the_first_call_of_a_block_is_dropped_unless_it_is_alone() -> None:
    assert len(time_block(lambda: None, lambda: None, 0.0)) == 1  # type: ignore[arg-type, return-value]
    calls: list[int] = []
    times = time_block(lambda: calls.append(1), lambda: None, 0.01)  # type: ignore[arg-type, return-value]
    assert len(times) == len(calls) - 1


def test_a_replayed_graph_keeps_the_weights_that_it_reads() -> None:
    class Captured:
        def replay(self) -> None:
            output.add_(1.0)

    output, module = torch.zeros(2), torch.nn.Linear(2, 2)
    weights = weakref.ref(module)
    replay = Replay(graph=Captured(), output=output, captured=Module(module=module).bind(output))
    del module
    gc.collect()
    assert weights() is not None
    assert replay().tolist() == [1.0, 1.0]
