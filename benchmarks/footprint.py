"""What packaging holds in memory and on disk, as multiples of the checkpoint's size.

Owns results/footprint.*. Run from the project's root on an idle machine: `python -m benchmarks.footprint`. One network
per size, hardly more than its weights, packaged by a new process with all checks; a thread of this one looks at the
proportional set size of that process's whole tree, children and compilers included, and at what lies in its stage.
Mapped pages of the checkpoint's file count like any other memory.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from deploy.cache import cache_folder
from deploy.checkpoint.model import CheckpointRequest
from deploy.package import package
from deploy.processes import tree_memory
from deploy.repository.manifest import Environment
from deploy.request import PackageRequest, Resources
from deploy.targets import find_target
from deploy.validate.machine import describe_cpus
from tests.wide import WIDTH, save_wide

RESULTS = Path(__file__).parent / "results"
TURNS = ("first", "next")
EVERY_SECONDS = 0.1
LIMITS = {"convert": 2.5, "prove": 4.0}


class Announcing:
    """A progress display that says each stage's name on standard output as it begins and ends."""

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Say both."""
        print(f"+{name}", flush=True)
        yield
        print(f"-{name}", flush=True)

    def note(self, text: str) -> None:
        """Say it, for whoever waits."""
        print(text, file=sys.stderr, flush=True)


def main() -> None:
    """All sizes, or the one run that a size asks for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gigabytes", default="0.5,2", help="sizes of the weights")
    parser.add_argument("--dtypes", default="float32,float16,bfloat16", help="what the weights are in")
    parser.add_argument("--one", nargs=4, metavar="X", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.one:
        one(*given.one)
        return
    dtypes, sizes = given.dtypes.split(","), map(float, given.gigabytes.split(","))
    rows = [row for size in sizes for dtype in dtypes for row in measure(size, dtype=dtype)]
    record = {
        "what": __doc__,
        "command": f"python -m benchmarks.footprint --gigabytes {given.gigabytes} --dtypes {given.dtypes}",
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "environment": Environment.here().model_dump(mode="json", exclude={"platform"}),
        "cpus": describe_cpus(),
        "limits": LIMITS,
        "rows": rows,
    }
    RESULTS.joinpath("footprint.json").write_text(json.dumps(record, indent=1) + "\n")
    RESULTS.joinpath("footprint.md").write_text(table(record))
    print(table(record))


def measure(
    gigabytes: float, *, dtype: str = "float32", width: int = WIDTH, turns: Sequence[str] = TURNS, serve: bool = True
) -> list[dict[str, Any]]:
    """The peaks of every stage of the first packaging of a network and of the next, in bytes, and their seconds.

    The network has layers of `width` inputs and outputs, their weights of type `dtype`.
    """
    with tempfile.TemporaryDirectory() as folder:
        path = save_wide(Path(folder, "wide.pt"), int(gigabytes * 1e9), dtype=dtype, width=width)
        Path(folder, "cache").mkdir()
        Path(folder, "cache", "engines").symlink_to(cache_folder("engines"))
        return [
            {"gigabytes": gigabytes, "dtype": dtype, "weights": path.stat().st_size, "turn": turn, **row}
            for turn in turns
            for row in watch([str(path), str(Path(folder, turn)), str(width), str(int(serve))], Path(folder, "cache"))
        ]


def watch(run: Sequence[str], cache: Path) -> list[dict[str, Any]]:
    """One run, looked at while it lasts: a row per stage. Stages side by side each have what both took.

    `run` are the words of `one`.
    """
    command = [sys.executable, "-m", "benchmarks.footprint", "--one", *run]
    environment = {**os.environ, "DEPLOYCTL_CACHE": str(cache)}
    peaks: defaultdict[str, list[int]] = defaultdict(lambda: [0, 0])
    spans: dict[str, list[float]] = {}
    running: set[str] = set()
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as process:
        stop = threading.Event()
        looker = threading.Thread(target=look, args=(process.pid, cache.parent, running, peaks, stop))
        looker.start()
        assert process.stdout is not None
        for line in process.stdout:
            sign, name = line[0], line[1:].strip()
            if sign == "+":
                running.add(name)
                spans[name] = [time.monotonic()]
            elif sign == "-":
                running.discard(name)
                spans[name].append(time.monotonic())
        stop.set()
        looker.join()
    assert process.returncode == 0
    return [
        {"stage": name, "seconds": end - start, "memory": peaks[name][0], "disk": peaks[name][1]}
        for name, (start, end) in spans.items()
    ]


def look(pid: int, folder: Path, running: set[str], peaks: defaultdict[str, list[int]], stop: threading.Event) -> None:
    """Raise the peaks of the stages that are running, until told to stop."""
    while not stop.wait(EVERY_SECONDS):
        memory, disk = tree_memory(pid), staged_bytes(folder)
        for name in list(running):
            peaks[name] = [max(peaks[name][0], memory), max(peaks[name][1], disk)]


def staged_bytes(folder: Path) -> int:
    """Bytes of the files in the stages below a folder, each file once however many links it has."""
    sizes: dict[int, int] = {}
    for stage in folder.glob(".*.deployctl"):
        for root, _, names in os.walk(stage):
            for name in names:
                with suppress(OSError):
                    found = os.lstat(Path(root, name))
                    sizes[found.st_ino] = found.st_blocks * 512
    return sum(sizes.values())


def one(checkpoint: str, repository: str, width: str, serve: str) -> None:
    """One packaging by the main job."""
    request = PackageRequest(
        checkpoint=CheckpointRequest(path=Path(checkpoint), factory="tests.wide:wide", input_shapes=((int(width),),)),
        repository=Path(repository),
        target=find_target("local-cpu"),
        name="wide",
        serve_check=serve == "1",
        resources=Resources(seconds_per_cell=0.5),
    )
    outcome = package(request, progress=Announcing()).outcome
    assert outcome.judgement.passed, outcome.judgement.reason


def table(record: dict[str, Any]) -> str:
    """Peaks as multiples of the weights, as Markdown."""
    lines = [
        "# Memory and disk while packaging",
        "",
        f"{record['date']}, {record['cpus']}, torch {record['environment']['torch']}. n=1 per size.",
        "Peak memory is the proportional set size of the whole process tree, mapped files included; disk is what lies",
        "in the stage. How: `benchmarks/footprint.py`.",
        "",
        "| weights, GB | in | run | stage | peak memory, GB | / weights | peak disk, GB | / weights | seconds |",
        "| ---: | --- | --- | --- | ---: | ---: | ---: | ---: | ---: |",
    ]
    for row in record["rows"]:
        memory, disk, weights = row["memory"], row["disk"], row["weights"]
        lines.append(
            f"| {weights / 1e9:.2f} | {row['dtype']} | {row['turn']} | {row['stage']} | {memory / 1e9:.2f} "
            f"| {memory / weights:.2f} | {disk / 1e9:.2f} | {disk / weights:.2f} | {row['seconds']:.1f} |"
        )
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
