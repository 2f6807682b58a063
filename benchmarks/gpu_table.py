"""Rows of gpu.py as a record that later runs add to, and as a table for people.

Owns the arithmetic of shares and the words; measures nothing.
"""

import math
import subprocess
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from benchmarks.gpu_contenders import CONTENDERS, CONTROL, EAGER
from benchmarks.gpu_worker import Job

WHAT = "how fast models run on a GPU, by whom, how exactly, and how much of the chip's measured limits that is"
_NOISE = 0.1
Row = dict[str, Any]


def skipped(job: Job, batch: int, reason: str) -> list[Row]:
    """The rows of a batch that was not measured."""
    cell = {"model": job.model, "precision": job.precision, "batch": batch}
    nothing = {"unit": "ms", "n": 0, "value": None, "low": None, "high": None, "failed": reason}
    label = f"{job.model} {job.precision}, batch {batch}"
    return [{"name": f"{label}: {name}", **cell, "contender": name, **nothing} for name in job.contenders]


def with_shares(row: Row, limits: dict[str, Any]) -> Row:
    """The row with its operations per second, and the least time that the measured limits allow over the time taken."""
    if not row["n"] or not row["flops"]:
        return row
    seconds = row["median_ms"] / 1e3
    computing = row["flops"] / limits["matrix"][row["precision"]]
    moving = row["least_bytes"] / limits["memory"]
    return {
        **row,
        "tflops": round(row["flops"] / seconds / 1e12, 2),
        "bound": "matrix" if computing >= moving else "memory",
        "share": round(max(computing, moving) / seconds, 4),
    }


def merged(known: dict[str, Any] | None, run: dict[str, Any]) -> dict[str, Any]:
    """The record with this run as its last. On one kind of device a newer figure of a cell takes the older one's place;
    a cell that this run only skipped keeps what it had.
    """
    device = _device(run)
    older = known["runs"] if known else []
    had = {_cell(row) for other in older if _device(other) == device for row in other["rows"] if row["n"]}
    run = {**run, "rows": [row for row in run["rows"] if row["n"] or _cell(row) not in had]}
    new = {_cell(row) for row in run["rows"]}
    runs = []
    for other in older:
        rows = [row for row in other["rows"] if _device(other) != device or _cell(row) not in new]
        runs += [{**other, "rows": rows}] if rows else []
    return {"what": WHAT, "runs": [*runs, run]}


def table(found: dict[str, Any]) -> str:
    """The record as Markdown."""
    lines = ["# How fast models run on a GPU", "", *_EXPLAINED, ""]
    for device in dict.fromkeys(map(_device, found["runs"])):
        runs = [run for run in found["runs"] if _device(run) == device]
        rows = [row for run in runs for row in run["rows"]]
        lines += [f"## {device}", "", *(_made(run) for run in runs), "", *_summary(rows), ""]
        for model in dict.fromkeys(row["model"] for row in rows):
            lines += [f"### {model}", "", *_model(row for row in rows if row["model"] == model), ""]
        lines += _missing(rows)
    return "\n".join(lines).rstrip() + "\n"


_EXPLAINED = (
    "Each model in each precision in a process of its own, prepared beside others and measured alone: inputs lie on",
    "the device, a call is timed until the device has ended it, contenders take turns in random order. A cell is the",
    "median in ms with its 95 % interval, then the relative L2 error of the first 8 rows against the model in float64;",
    "**✗** marks an error beyond the converter's limit (5 times eager's own in float32, 2 times in half precisions, 8",
    "epsilons at least), which is never called the fastest. tf32 and fp32 differ in whether products may round float32",
    "to TF32, set on every side. A CUDA graph is the contender's call, captured by hand and replayed. The limit is the",
    "larger of two times: operations over the measured rate of a large matrix product in that precision, and the least",
    "bytes (weights, input, output) over the measured rate of a copy. Made by `benchmarks/gpu.py`.",
)


def _made(run: dict[str, Any]) -> str:
    hardware, versions, limits = run["hardware"], run["versions"], run["limits"]
    accelerator = hardware["accelerator"]
    driver = f", driver {accelerator['driver'].split(',')[0]}" if accelerator else ""
    rates = ", ".join(f"{name} {rate / 1e12:.3g}" for name, rate in limits["matrix"].items())
    runtime = versions.get("onnxruntime-gpu") or versions.get("onnxruntime")
    # Written into the JSON by hand where it is known: what else ran on the machine.
    beside = f" Beside it: {run['beside']}." if run.get("beside") else ""
    return (
        f"- {run['date'][:10]}, `{run['command']}`: {hardware['cpus']}{driver}, torch {versions['torch']}, "
        f"ONNX Runtime {runtime}. Measured limits: matrix products {rates} TFLOP/s, "
        f"a copy {limits['memory'] / 1e12:.3g} TB/s.{beside}"
    )


def _summary(rows: list[Row]) -> list[str]:
    """How many times as fast as eager, over all models that have the figure."""
    names = [name for name in CONTENDERS if name != EAGER and any(row["contender"] == name for row in rows)]
    lines = [f"| eager's time over | {' | '.join(names)} |", "| --- " * (len(names) + 1) + "|"]
    for precision, batch in dict.fromkeys((row["precision"], row["batch"]) for row in rows):
        here = [row for row in rows if (row["precision"], row["batch"]) == (precision, batch) and row["n"]]
        cells = [_mean(row for row in here if row["contender"] == name and row["within"]) for name in names]
        lines.append(f"| {precision}, batch {batch} | {' | '.join(cells)} |")
    return ["Geometric means over the models, whose number is in brackets.", "", *lines] if rows else []


def _mean(rows: Iterable[Row]) -> str:
    ratios = [row["ratio"]["value"] for row in rows if row["ratio"]["value"]]
    return f"{math.exp(-sum(map(math.log, ratios)) / len(ratios)):.2f} ({len(ratios)})" if ratios else "—"


def _model(rows: Iterable[Row]) -> list[str]:
    found = {(row["precision"], row["batch"], row["contender"]): row for row in rows}
    names = [name for name in CONTENDERS if any(key[2] == name for key in found)]
    heads = ["precision", "batch", *names, "fastest", "over eager", "of the limit"]
    lines = [f"| {' | '.join(heads)} |", "| --- " * len(heads) + "|"]
    for precision, batch in dict.fromkeys((key[0], key[1]) for key in found):
        here = {name: found[precision, batch, name] for name in names if (precision, batch, name) in found}
        if any(row["n"] for row in here.values()):
            cells = [_time(here.get(name)) for name in names]
            lines.append(f"| {' | '.join([precision, str(batch), *cells, *_fastest(here)])} |")
    return [*lines, *_control(found.values())]


def _time(row: Row | None) -> str:
    if row is None or not row["n"]:
        return "—"
    digits = 2 if row["median_ms"] >= 1 else 3
    interval = f" [{row['low']:.{digits}f}, {row['high']:.{digits}f}]" if row["value"] is not None else ""
    error = "not finite" if row["error"] is None else f"{row['error']:.1e}"
    return f"{row['median_ms']:.{digits}f}{interval}; {error}{'' if row['within'] else ' **✗**'}"


def _fastest(here: dict[str, Row]) -> list[str]:
    fit = [row for row in here.values() if row["n"] and row["within"] and row["contender"] != CONTROL]
    if not fit:
        return ["—"] * 3
    best = min(fit, key=lambda row: float(row["median_ms"]))
    ratio = best["ratio"]
    over = "—"
    if ratio["value"]:
        over = f"{1 / ratio['value']:.2f}"
    if ratio["low"]:
        over += f" [{1 / ratio['high']:.2f}, {1 / ratio['low']:.2f}]"
    share = f"{best['share']:.0%} ({best['bound']})" if "share" in best else "—"
    return [best["contender"], over, share]


def _control(rows: Iterable[Row]) -> list[str]:
    """The range of eager over itself, and which cells are too noisy to be believed."""
    ratios = [row for row in rows if row["contender"] == CONTROL and row["n"] and row["ratio"]["value"]]
    if not ratios:
        return []
    values = [row["ratio"]["value"] for row in ratios]
    noisy = [f"{row['precision']} at {row['batch']}" for row in ratios if abs(row["ratio"]["value"] - 1) > _NOISE]
    said = f"Eager over itself (A/A): {min(values):.2f} to {max(values):.2f} in {len(ratios)} cells"
    return ["", f"{said}; **too noisy**: {', '.join(noisy)}." if noisy else f"{said}."]


def _missing(rows: list[Row]) -> list[str]:
    reasons: dict[tuple[str, str, str], list[str]] = {}
    for row in rows:
        if not row["n"]:
            key = (row["model"], row["contender"], row["failed"])
            reasons.setdefault(key, []).append(f"{row['precision']} at {row['batch']}")
    if not reasons:
        return []
    said = ["### Not measured", ""]
    by_cell: dict[tuple[str, str, str], list[str]] = {}
    for (model, contender, reason), where in reasons.items():
        by_cell.setdefault((model, reason, ", ".join(where)), []).append(contender)
    for (model, reason, places), contenders in by_cell.items():
        said.append(f"- {model}, {', '.join(contenders)}, {places}: {reason}")
    return [*said, ""]


def _device(run: dict[str, Any]) -> str:
    accelerator = run["hardware"]["accelerator"]
    return str(accelerator["name"] if accelerator else run["hardware"]["processor"])


def _cell(row: Row) -> tuple[Any, ...]:
    return tuple(row[key] for key in ("model", "precision", "batch", "contender"))


def commit() -> dict[str, Any]:
    """The commit that the code is of, and whether the tree has changes; nulls where there is no history."""

    def git(*arguments: str) -> str:
        here = Path(__file__).parent
        return subprocess.run(["git", *arguments], capture_output=True, text=True, check=True, cwd=here).stdout.strip()

    try:
        return {"id": git("rev-parse", "HEAD"), "changed": bool(git("status", "--porcelain"))}
    except (OSError, subprocess.CalledProcessError):
        return {"id": None, "changed": None}
