"""A command whose conversions hang, to be interrupted: prints the children's ids once both are at work."""

import os
import sys
import threading
import time
from pathlib import Path

import psutil

from deploy.convert.job import ConversionJob
from deploy.convert.model import FORMATS
from deploy.convert.run import ConversionPlan, convert
from deploy.processes import prepare
from deploy.progress import Silent
from tests.convert.converters import hang


def main(job_file: Path) -> None:
    """Convert for ever."""
    job = ConversionJob.read(job_file)
    logs = [job.folder / f"{name}.log" for name in FORMATS]
    prepare("deploy.convert.preload")
    threading.Thread(target=_announce, args=(logs,), daemon=True).start()
    plan = ConversionPlan(max_batch=job.max_batch, target=job.target, folder=job.folder, jobs=2)
    convert(job.checkpoint, plan, Silent(), converters={"aoti": hang, "onnx": hang})


def _announce(logs: list[Path]) -> None:
    while not all(log.exists() and "a lock" in log.read_text() for log in logs):
        time.sleep(0.05)
    workers = [child for child in psutil.Process().children(recursive=True) if child.children() == []]
    leaders = [child.pid for child in workers if _session(child.pid) == child.pid]
    print(*leaders, flush=True)


def _session(pid: int) -> int:
    return os.getsid(pid)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
