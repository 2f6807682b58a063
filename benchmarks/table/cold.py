"""A command run cold: in a new process, with empty compiler caches and an empty temporary folder, its memory sampled.

Owns the clock, the samples and the cutting into stages; knows no model. Called by measure.
"""

import os
import re
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.table.records import Cold, Stage
from deploy.processes import tree_memory

ROOT = Path(__file__).parents[2]
INDUCTOR_CACHE = "inductor"
_SAMPLE_SECONDS = 0.5
_LAST_LINES = 30
_BY_HAND = re.compile(r"stage (?P<name>.+)")
_OURS = re.compile(r"\d\d:\d\d:\d\d  (?P<name>.+?)(?P<begins> \.\.\.|: done, [\d.]+ s)")


@dataclass(frozen=True, slots=True, kw_only=True)
class Watched:
    """A process that has ended: its lines and the samples of its memory, each with the seconds since its start."""

    seconds: float
    lines: list[tuple[float, str]] = field(default_factory=list)
    samples: list[tuple[float, int]] = field(default_factory=list)

    def stage(self, start: float, end: float) -> Stage:
        """What lies between two moments; a stage shorter than the sampling has the samples next to it."""
        near = [size for at, size in self.samples if start - _SAMPLE_SECONDS <= at <= end + _SAMPLE_SECONDS]
        return Stage(start=round(start, 2), end=round(end, 2), peak=max(near, default=0))


def run_cold(who: str, arguments: Sequence[str], folder: Path, *, python: Path = Path(sys.executable)) -> Cold:
    """Run `python ARGUMENTS` with its caches and temporary files below `folder`, which must be empty.

    Raises RuntimeError with its last words if it fails.
    """
    temporary = folder / "tmp"
    temporary.mkdir(parents=True)
    environment = {
        **os.environ,
        "TMPDIR": str(temporary),
        "TORCHINDUCTOR_CACHE_DIR": str(folder / INDUCTOR_CACHE),
        "DEPLOYCTL_CACHE": str(folder / "cache"),
        "PYTHONPATH": os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH")))),
    }
    watched = _watch([str(python), *arguments], environment)
    return Cold(
        who=who,
        command=" ".join(["python", *arguments]).replace(str(folder.parent), "WORK").replace(sys.prefix, "VENV"),
        seconds=round(watched.seconds, 2),
        peak=max((size for _, size in watched.samples), default=0),
        stages=dict(_stages(watched)),
    )


def _watch(command: list[str], environment: dict[str, str]) -> Watched:
    lines: list[tuple[float, str]] = []
    samples: list[tuple[float, int]] = []
    started = time.perf_counter()
    with subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as process:
        sampler = threading.Thread(target=_sample, args=(process, started, samples))
        sampler.start()
        assert process.stdout is not None
        for line in process.stdout:
            lines.append((time.perf_counter() - started, line.rstrip("\n")))
        process.wait()
        seconds = time.perf_counter() - started
        sampler.join()
    if process.returncode:
        last = "\n".join(text for _, text in lines[-_LAST_LINES:])
        raise RuntimeError(f"exit code {process.returncode} of {' '.join(command)}\n{last}")
    return Watched(seconds=seconds, lines=lines, samples=samples)


def _sample(process: subprocess.Popen[str], started: float, samples: list[tuple[float, int]]) -> None:
    while process.poll() is None:
        samples.append((time.perf_counter() - started, tree_memory(process.pid)))
        time.sleep(_SAMPLE_SECONDS)


def _stages(watched: Watched) -> Iterator[tuple[str, Stage]]:
    """Stages by hand last until the next one begins; those of deployctl say when they end, and may overlap."""
    by_hand = [(at, found["name"]) for at, line in watched.lines if (found := _BY_HAND.fullmatch(line))]
    ends = [*(at for at, _ in by_hand[1:]), watched.seconds]
    for (start, name), end in zip(by_hand, ends, strict=False):
        yield name, watched.stage(start, end)
    began: dict[str, float] = {}
    for at, line in watched.lines:
        found = _OURS.fullmatch(line)
        if found and found["begins"] == " ...":
            began[found["name"]] = at
        elif found and found["name"] in began:
            yield found["name"], watched.stage(began.pop(found["name"]), at)
