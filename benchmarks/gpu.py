"""How fast models run on a GPU, by whom, how exactly, and how much of the chip's measured limits that is.

Owns the command, the order and the time budget; writes results/gpu.json and the table results/gpu.md after each cell,
so that a run which is cut short loses nothing. Run from the project's root: `python -m benchmarks.gpu`.

    1. Prepare each model in each precision, in a process of its own, several side by side.
    2. Measure the device's limits.
    3. Measure one process after another, the others stopped.
"""

import argparse
import json
import os
import shlex
import sys
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from itertools import product
from pathlib import Path
from typing import Any

from benchmarks import gpu_worker
from benchmarks.gpu_contenders import CONTENDERS, GRAPHED
from benchmarks.gpu_models import SUBJECTS
from benchmarks.gpu_table import commit, merged, skipped, table, with_shares
from benchmarks.gpu_worker import PRECISIONS, Bench, Job, Plan
from deploy.errors import DeployError
from deploy.files import write_atomically
from deploy.processes import Worker, called_after, prepare, run_alone

RESULTS = Path(__file__).parent / "results"
MODELS = tuple(name for name in SUBJECTS if name != "tiny")
BATCHES = (1, 8, 32, 128)
_GRACE = 25.0  # seconds for the contender that is being prepared when the time for preparing is over
_LONGEST_CELL = 60.0  # seconds; a batch that takes longer has hung


@dataclass(frozen=True, slots=True, kw_only=True)
class Times:
    """When what must have ended, in seconds since the epoch."""

    preparing: float
    all: float


def main() -> None:
    """Prepare, measure, write and print; ends with the exit code of the error that prevents it."""
    chosen = _arguments()
    try:
        found = run(chosen)
    except DeployError as error:
        print(error, file=sys.stderr)
        sys.exit(error.exit_code)
    print(table(found))


def _arguments(line: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--models", type=_list_of(SUBJECTS), default=MODELS, help=", ".join(SUBJECTS))
    parser.add_argument(
        "--precisions", type=_list_of(PRECISIONS), default=tuple(PRECISIONS), help=", ".join(PRECISIONS)
    )
    parser.add_argument("--pairs", type=_pairs, help="MODEL:PRECISION,... in place of all of both, in this order")
    parser.add_argument("--contenders", type=_list_of(CONTENDERS, ";"), help=f"all by default: {'; '.join(CONTENDERS)}")
    parser.add_argument("--batches", type=lambda text: tuple(map(int, text.split(","))), default=BATCHES)
    parser.add_argument("--budget", type=float, default=360.0, help="seconds for everything; what is left is skipped")
    parser.add_argument("--share", type=float, default=0.6, help="of the budget, at most, for preparing")
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--seconds", type=float, default=0.3, help="measured per contender and batch")
    parser.add_argument("--jobs", type=int, default=len(os.sched_getaffinity(0)), help="prepared side by side")
    parser.add_argument("--commit", help="what is measured, where the tree has no git history")
    parser.add_argument("--logs", type=Path, help="keep the processes' logs in this folder")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of the two files; other cells there stay")
    return parser.parse_args(line)


def _list_of(known: Sequence[str] | dict[str, Any], separator: str = ",") -> Any:
    def parse(text: str) -> tuple[str, ...]:
        names = tuple(text.split(separator))
        if unknown := [name for name in names if name not in known]:
            raise argparse.ArgumentTypeError(f"{', '.join(unknown)}: unknown; known are {', '.join(known)}")
        return names

    return parse


def _pairs(text: str) -> tuple[tuple[str, str], ...]:
    parse_model, parse_precision = _list_of(SUBJECTS), _list_of(PRECISIONS)
    pairs = [pair.partition(":") for pair in text.split(",")]
    return tuple((parse_model(model)[0], parse_precision(precision)[0]) for model, _, precision in pairs)


def run(chosen: argparse.Namespace) -> dict[str, Any]:
    """The whole result, as it lies in the results folder. Raises MissingError if there is no such device."""
    began = time.time()
    times = Times(preparing=began + chosen.budget * chosen.share, all=began + chosen.budget)
    with tempfile.TemporaryDirectory(prefix="gpu-") as work, ExitStack() as workers:
        # Kernels are kept by their source, whoever compiled them first.
        os.environ["TRITON_CACHE_DIR"] = str(Path(work, "triton"))
        os.environ["TORCHINDUCTOR_COMPILE_THREADS"] = str(_threads(chosen.jobs))
        prepare("deploy.convert.preload")
        about = _about(chosen, run_alone("machine", gpu_worker.machine, chosen.device).value)
        jobs = _jobs(chosen, Path(work), times)
        ready = _prepared(jobs, workers, chosen, times)
        about["limits"] = run_alone("limits", gpu_worker.limits, chosen.device, chosen.precisions).value
        about["seconds_preparing"] = round(time.time() - began, 1)
        return _measured(ready, about, chosen, times)


def _threads(jobs: int) -> int:
    """Of each process that is prepared: some wait, so twice as many as there are cores."""
    return max(1, 2 * len(os.sched_getaffinity(0)) // jobs)


def _about(chosen: argparse.Namespace, machine: dict[str, Any]) -> dict[str, Any]:
    return {
        "command": shlex.join(["python", "-m", "benchmarks.gpu", *sys.argv[1:]]),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "commit": {"id": chosen.commit, "changed": None} if chosen.commit else commit(),
        **machine,
        "settings": {
            "rounds": chosen.rounds,
            "seconds_per_cell": chosen.seconds,
            "budget": chosen.budget,
            "prepared_side_by_side": chosen.jobs,
            "compared_rows": gpu_worker.COMPARED_ROWS,
            "confidence": gpu_worker.CONFIDENCE,
        },
    }


def _jobs(chosen: argparse.Namespace, work: Path, times: Times) -> list[Job]:
    contenders = chosen.contenders or tuple(
        name for name in CONTENDERS if chosen.device == "cuda" or name not in GRAPHED
    )
    return [
        Job(
            model=model,
            precision=precision,
            device=chosen.device,
            contenders=contenders,
            batches=chosen.batches,
            folder=work / f"{model}-{precision}",
            threads=_threads(chosen.jobs),
            deadline=times.preparing,
        )
        for model, precision in chosen.pairs or product(chosen.models, chosen.precisions)
    ]


Ready = list[tuple[Job, Worker | str]]
"""Each job with its prepared process, stopped, or with why there is none."""


def _prepared(jobs: Sequence[Job], workers: ExitStack, chosen: argparse.Namespace, times: Times) -> Ready:
    def one(job: Job) -> Worker | str:
        if time.time() > times.preparing:
            return "the time for preparing was over"
        name = f"{job.model}-{job.precision}"
        log = (chosen.logs or job.folder) / f"{name}.log"
        worker = workers.enter_context(Worker(name, log=log))
        try:
            with called_after(times.preparing + _GRACE - time.time(), worker.kill):
                worker.make(Bench, job)
        except DeployError as error:
            return "not prepared in time" if time.time() > times.preparing + _GRACE else error.found
        about = worker.call("about")
        _note(f"{name}: {about}")
        worker.pause()
        return worker

    with ThreadPoolExecutor(max_workers=chosen.jobs) as pool:
        return list(zip(jobs, pool.map(one, jobs), strict=True))


def _measured(ready: Ready, about: dict[str, Any], chosen: argparse.Namespace, times: Times) -> dict[str, Any]:
    plan = Plan(rounds=chosen.rounds, seconds=chosen.seconds)
    rows: list[dict[str, Any]] = []
    known = _known(chosen.results)
    found = merged(known, {**about, "rows": rows})
    for job, worker in ready:
        for graphs, batch in product((False, True), job.batches):
            cell = _cell(job, worker, batch, plan, times, graphs=graphs)
            rows += [with_shares(row, about["limits"]) for row in cell]
            found = merged(known, {**about, "rows": rows})
            _write(found, chosen.results)
        if isinstance(worker, Worker):
            worker.close()
        _note(f"{job.model} {job.precision}: done, {times.all - time.time():.0f} s left")
    return found


def _cell(
    job: Job, worker: Worker | str, batch: int, plan: Plan, times: Times, *, graphs: bool
) -> list[dict[str, Any]]:
    """The rows of one batch, of CUDA graphs or of the others, whatever came of it."""
    job = replace(job, contenders=tuple(name for name in job.contenders if (name in GRAPHED) == graphs))
    if not job.contenders:
        return []
    if isinstance(worker, str):
        return skipped(job, batch, worker)
    if time.time() > times.all:
        return skipped(job, batch, "the time for everything was over")
    if not worker.alive:
        return skipped(job, batch, "its process had ended")
    try:
        worker.resume()
        with called_after(_LONGEST_CELL, worker.kill):
            rows: list[dict[str, Any]] = worker.call("measure", batch, plan, graphs=graphs)
    except DeployError as error:
        return skipped(job, batch, error.found)
    return rows


def _known(results: Path) -> dict[str, Any] | None:
    path = results / "gpu.json"
    return json.loads(path.read_text()) if path.exists() else None


def _write(found: dict[str, Any], results: Path) -> None:
    results.mkdir(parents=True, exist_ok=True)
    write_atomically(results / "gpu.json", (json.dumps(found, indent=1, allow_nan=False) + "\n").encode())
    write_atomically(results / "gpu.md", table(found).encode())


def _note(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
