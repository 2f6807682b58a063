"""Processor time of `deployctl --help`, which everybody waits for; the limit is 0.25 s.

Owns the measurement only. Run by hand: `python benchmarks/help_time.py [--n N]`; writes results/help_time.json.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path

from deploy.repository.manifest import Environment

RESULT = Path(__file__).parent / "results" / "help_time.json"
LIMIT_SECONDS = 0.25


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--n", type=int, default=20)
    seconds = [cpu_seconds() for _ in range(parser.parse_args().n)]
    record = {
        "what": "processor seconds (user and system) of `deployctl --help` in a new process",
        "command": f"python benchmarks/help_time.py --n {len(seconds)}",
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "environment": Environment.here().model_dump(mode="json"),
        "limit": LIMIT_SECONDS,
        "n": len(seconds),
        "median": statistics.median(seconds),
        "lowest": min(seconds),
        "highest": max(seconds),
    }
    RESULT.write_text(json.dumps(record, indent=2) + "\n")
    print(
        f"deployctl --help: {record['median']:.3f} s of CPU [{min(seconds):.3f}, {max(seconds):.3f}], n={len(seconds)}"
    )


def cpu_seconds() -> float:
    """User and system seconds of one process."""
    before = os.times()
    subprocess.run([sys.executable, "-m", "deploy", "--help"], check=True, stdout=subprocess.DEVNULL)
    after = os.times()
    return after.children_user + after.children_system - before.children_user - before.children_system


if __name__ == "__main__":
    main()
