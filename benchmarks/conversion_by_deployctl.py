"""The conversion step of `deployctl package` in a process of its own, as the command runs it: see conversion.py.

Prints a line as each stage begins. Called as
`python benchmarks/conversion_by_deployctl.py CHECKPOINT_RECORD FOLDER MAX_BATCH JOBS`.
"""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from deploy.checkpoint.model import Checkpoint
from deploy.convert.run import ConversionPlan, convert
from deploy.processes import Worker, prepare
from deploy.targets import LOCAL_CPU, find_target
from deploy.validate.executables import OnnxModel


class Stages:
    """Prints each stage as it begins."""

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Says the name, which lasts until the next one is said."""
        print(f"stage {name}", flush=True)
        yield

    def note(self, text: str) -> None:
        """Nothing is said."""


def main(record: Path, folder: Path, max_batch: int, jobs: int) -> None:
    """Convert to both formats and load the ONNX one, as the script by hand does."""
    stages = Stages()
    with stages.stage("start"):
        prepare("deploy.convert.preload")
        checkpoint = Checkpoint.read(record)
    plan = ConversionPlan(max_batch=max_batch, target=find_target(LOCAL_CPU), folder=folder / "out", jobs=jobs)
    conversion = convert(checkpoint, plan, stages)
    if conversion.failures:
        raise SystemExit(f"failed: {conversion.failures}")
    with stages.stage("ort load"), Worker("onnx", log=Path(os.devnull)) as worker:
        worker.make(OnnxModel, conversion.artifacts["onnx"].path, threads=1)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4]))
