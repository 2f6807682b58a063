"""Wall time and peak memory of converting a checkpoint, against a script by hand that does the same in one process.

Owns the runs and the ratios: new processes with empty compiler caches, taking turns. Nothing here is warm but the
file cache. Run by hand: `python benchmarks/conversion.py`; writes benchmarks/results/conversion.json.
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections import defaultdict
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import onnxruntime
import psutil
import torch

from deploy.checkpoint.load import read_checkpoint
from deploy.checkpoint.model import CheckpointRequest
from deploy.checkpoint.vision import import_torchvision
from deploy.processes import tree_memory

HERE = Path(__file__).parent
RESULT = HERE / "results" / "conversion.json"
MODELS = ("resnet18", "mobilenet_v3_small", "vit_b_16")
MAX_BATCH = 8
BY_HAND, TWO_JOBS, ONE_JOB = "by hand", "deployctl", "deployctl --jobs 1"
LIMITS = {"wall": 0.9, TWO_JOBS: 2.2, ONE_JOB: 1.3}
SAMPLE_SECONDS = 0.1


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """One process from start to end: seconds and peak PSS (bytes) of its tree, whole and per stage."""

    seconds: float
    peak: int
    stages: dict[str, dict[str, float]]


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", default=",".join(MODELS), help="torchvision builders")
    parser.add_argument("--n", type=int, default=1, help="runs of each contender and model")
    chosen = parser.parse_args()
    started = datetime.now(UTC).isoformat(timespec="seconds")
    models = chosen.models.split(",")
    runs = {name: measure(name, chosen.n) for name in models}
    record = {
        "what": "wall time and peak memory of conversion to both formats, cold, against the same by hand",
        "command": f"python benchmarks/conversion.py --models {chosen.models} --n {chosen.n}",
        "date": started,
        **surroundings(),
        "settings": {"max_batch": MAX_BATCH, "limits": LIMITS, "sample_seconds": SAMPLE_SECONDS},
        "control": None,
        "rows": rows(runs),
    }
    RESULT.parent.mkdir(exist_ok=True)
    RESULT.write_text(json.dumps(record, indent=2) + "\n")
    for row in record["rows"]:
        print(f"{row['name']:60} {row['value']:8.2f} {row['unit']}")


def measure(model: str, runs: int) -> dict[str, list[Run]]:
    """The runs of each contender, which take turns."""
    found: dict[str, list[Run]] = {BY_HAND: [], TWO_JOBS: [], ONE_JOB: []}
    with tempfile.TemporaryDirectory() as folder:
        weights, record = save(model, Path(folder))
        for _ in range(runs):
            for contender, taken in found.items():
                taken.append(run_cold(contender, model, weights, record))
                print(f"{model}, {contender}: {taken[-1].seconds:.1f} s, {taken[-1].peak / 1e9:.2f} GB", flush=True)
    return found


def save(model: str, folder: Path) -> tuple[Path, Path]:
    """A seeded state_dict on disk, and what deployctl found out about it before conversion begins."""
    torch.manual_seed(0)
    weights, record = folder / f"{model}.pt", folder / "checkpoint.json"
    torch.save(import_torchvision().models.get_model(model, weights=None).state_dict(), weights)
    request = CheckpointRequest(path=weights, arch=model, input_shapes=((3, 224, 224),))
    read_checkpoint(request).write(record)
    return weights, record


def run_cold(contender: str, model: str, weights: Path, record: Path) -> Run:
    """One run whose temporary folder and compiler caches begin empty. Raises CalledProcessError if it fails."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "tmp").mkdir()
        environment = {**os.environ, "TMPDIR": str(folder / "tmp"), "TORCHINDUCTOR_CACHE_DIR": str(folder / "inductor")}
        if contender == BY_HAND:
            arguments = ["conversion_by_hand.py", model, str(weights), name, str(MAX_BATCH)]
        else:
            jobs = "1" if contender == ONE_JOB else "2"
            arguments = ["conversion_by_deployctl.py", str(record), name, str(MAX_BATCH), jobs]
        return watch([sys.executable, str(HERE / arguments[0]), *arguments[1:]], environment)


def watch(command: list[str], environment: dict[str, str]) -> Run:
    """Run a command that prints `stage <name>` lines, sampling the memory of its tree."""
    began: list[tuple[str, float]] = []
    peaks: defaultdict[str, int] = defaultdict(int)
    started = time.perf_counter()
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as process:
        sampler = threading.Thread(target=sample, args=(process, began, peaks))
        sampler.start()
        assert process.stdout is not None
        for line in process.stdout:
            if line.startswith("stage "):
                began.append((line.removeprefix("stage ").strip(), time.perf_counter()))
        process.wait()
        ended = time.perf_counter()
        sampler.join()
    if process.returncode:
        raise subprocess.CalledProcessError(process.returncode, command)
    ends = [moment for _, moment in began[1:]] + [ended]
    stages = {
        name: {"seconds": round(end - begin, 2), "peak": peaks[name]}
        for (name, begin), end in zip(began, ends, strict=True)
    }
    return Run(seconds=ended - started, peak=max(peaks.values()), stages=stages)


def sample(process: subprocess.Popen[str], began: list[tuple[str, float]], peaks: defaultdict[str, int]) -> None:
    """Raise each stage's peak until the process has ended."""
    while process.poll() is None:
        name = began[-1][0] if began else "start"
        peaks[name] = max(peaks[name], tree_memory(process.pid))
        time.sleep(SAMPLE_SECONDS)


def rows(runs: dict[str, dict[str, list[Run]]]) -> list[dict[str, Any]]:
    """One row per figure; `low` and `high` are the range over the pairs, null for a single one."""
    found = []
    for model, contenders in runs.items():
        for contender, taken in contenders.items():
            found.append(row(f"{model}, {contender}: wall", "s", [run.seconds for run in taken]))
            found.append(row(f"{model}, {contender}: peak PSS", "GB", [run.peak / 1e9 for run in taken]))
            found += stage_rows(f"{model}, {contender}", taken)
        for contender in (TWO_JOBS, ONE_JOB):
            name = f"{model}, {contender} / by hand"
            found.append(row(f"{name}: wall", "ratio", ratios(contenders, contender, "seconds")))
            found.append(row(f"{name}: peak PSS", "ratio", ratios(contenders, contender, "peak")))
    for contender in (TWO_JOBS, ONE_JOB):
        means = [statistics.median(ratios(contenders, contender, "seconds")) for contenders in runs.values()]
        found.append(row(f"{contender} / by hand: wall, geometric mean", "ratio", [statistics.geometric_mean(means)]))
    return found


def stage_rows(name: str, taken: list[Run]) -> list[dict[str, Any]]:
    """Seconds and peak of each stage; those that run side by side share theirs with the one that began last."""
    found = []
    for stage in taken[0].stages:
        found.append(row(f"{name}, {stage}: wall", "s", [run.stages[stage]["seconds"] for run in taken]))
        found.append(row(f"{name}, {stage}: peak PSS", "GB", [run.stages[stage]["peak"] / 1e9 for run in taken]))
    return found


def ratios(contenders: dict[str, list[Run]], contender: str, field: str) -> list[float]:
    """Of each pair. The memory of the script by hand is that of its hungriest stage, which is its peak."""
    pairs = zip(contenders[contender], contenders[BY_HAND], strict=True)
    return [getattr(ours, field) / getattr(theirs, field) for ours, theirs in pairs]


def row(name: str, unit: str, values: list[float]) -> dict[str, Any]:
    """Median and range."""
    several = len(values) > 1
    return {
        "name": name,
        "unit": unit,
        "n": len(values),
        "value": round(statistics.median(values), 3),
        "low": round(min(values), 3) if several else None,
        "high": round(max(values), 3) if several else None,
    }


def surroundings() -> dict[str, Any]:
    """The machine, the releases and the state of this project."""
    commit = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=True, cwd=HERE)
    changes = subprocess.run(["git", "status", "--porcelain"], capture_output=True, text=True, check=True, cwd=HERE)
    return {
        "commit": {"id": commit.stdout.strip(), "changed": bool(changes.stdout.strip())},
        "hardware": {
            "processor": platform.processor() or platform.machine(),
            "cpus": len(os.sched_getaffinity(0)),
            "memory_gb": round(psutil.virtual_memory().total / 1e9, 1),
            "accelerator": None,
            "load_1_minute_at_the_end": round(os.getloadavg()[0], 1),
        },
        "versions": {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "onnxruntime": onnxruntime.__version__,
        },
    }


if __name__ == "__main__":
    main()
