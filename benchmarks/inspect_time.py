"""How long `deployctl inspect` of a 350 MB checkpoint takes, against `import torch` plus reading the file once.

Owns one table: the two commands in new processes, interleaved, each with n, median and quartiles, and their ratio.
Run by hand: `python benchmarks/inspect_time.py`; writes benchmarks/results/inspect_time.json.
"""

import argparse
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import torch

from deploy.checkpoint.vision import import_torchvision

RESULT = Path(__file__).parent / "results" / "inspect_time.json"
LIMIT = 1.5
BASE = """
import torch
buffer = bytearray(4 << 20)
with open({path!r}, "rb", buffering=0) as stream:
    while stream.readinto(buffer):
        pass
"""


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--n", type=int, default=15, help="runs of each command")
    runs = parser.parse_args().n
    with tempfile.TemporaryDirectory() as folder:
        path = save_vit(Path(folder))
        commands = {
            "import torch and read": [sys.executable, "-c", BASE.format(path=str(path))],
            "deployctl inspect": [sys.executable, "-m", "deploy", "inspect", str(path), "--json"],
        }
        seconds = measure(commands, runs)
        size = path.stat().st_size
    record = {"file_bytes": size, "n": runs, "machine": machine(), "limit": LIMIT, **summary(seconds)}
    RESULT.parent.mkdir(exist_ok=True)
    RESULT.write_text(json.dumps(record, indent=2) + "\n")
    print(json.dumps(record, indent=2))


def save_vit(folder: Path) -> Path:
    """A seeded vit_b_16 state_dict on disk: 343 MB."""
    torch.manual_seed(0)
    path = folder / "vit_b_16.pt"
    torch.save(import_torchvision().models.vit_b_16(weights=None).state_dict(), path)
    return path


def measure(commands: dict[str, list[str]], runs: int) -> dict[str, list[tuple[float, float]]]:
    """Wall and CPU seconds of each run; the commands take turns, after one unmeasured run of each."""
    seconds: dict[str, list[tuple[float, float]]] = {name: [] for name in commands}
    for turn in range(runs + 1):
        for name, command in commands.items():
            taken = time_process(command)
            if turn:
                seconds[name].append(taken)
    return seconds


def time_process(command: Sequence[str]) -> tuple[float, float]:
    """Wall and CPU seconds of one process from start to end. Raises CalledProcessError if it fails."""
    before, started = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    wall, after = time.perf_counter() - started, resource.getrusage(resource.RUSAGE_CHILDREN)
    return wall, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def summary(seconds: dict[str, list[tuple[float, float]]]) -> dict[str, object]:
    """Median and quartiles of wall and CPU time per command; median and range of the ratios within each turn."""
    cells: dict[str, dict[str, dict[str, float]]] = {
        name: {kind: spread([run[index] for run in runs]) for index, kind in enumerate(("wall", "cpu"))}
        for name, runs in seconds.items()
    }
    base, inspect = seconds.values()
    pairs = {
        kind: [mine[index] / theirs[index] for mine, theirs in zip(inspect, base, strict=True)]
        for index, kind in enumerate(("wall", "cpu"))
    }
    ratios = {
        kind: {
            "median": round(statistics.median(values), 3),
            "min": round(min(values), 3),
            "max": round(max(values), 3),
        }
        for kind, values in pairs.items()
    }
    return {"seconds": cells, "ratio": ratios}


def spread(values: list[float]) -> dict[str, float]:
    """Median and quartiles, in seconds."""
    low, middle, high = statistics.quantiles(values, n=4, method="inclusive")
    return {"median": round(middle, 3), "q1": round(low, 3), "q3": round(high, 3)}


def machine() -> dict[str, object]:
    """What it was measured on, the load at the end of the run included."""
    return {
        "cores": os.cpu_count(),
        "processor": platform.processor() or platform.machine(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "load_1_minute": round(os.getloadavg()[0], 1),
    }


if __name__ == "__main__":
    main()
