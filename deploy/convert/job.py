"""One conversion as a record on disk, so that a person can run it again alone: `python -m deploy.convert JOB.json`.

Owns what a job holds and the function per format that does it; runs none by itself.
Called by run, in whose children the jobs are done, and by `__main__`.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Protocol

from deploy.cache import Store
from deploy.checkpoint.model import Checkpoint
from deploy.convert.aoti import compile_aoti
from deploy.convert.model import Artifact, Device, Format, Program
from deploy.convert.onnx import export_onnx
from deploy.records import Record
from deploy.targets import Target


class Converter(Protocol):
    """Makes one artifact in the existing folder `folder`; runs in a child process."""

    def __call__(self, program: Program, *, target: Target, folder: Path, store: Store | None = None) -> Artifact:
        """The artifact, without its cost; work on the same graph is taken from `store` and kept there.

        Raises DeployError if the format cannot hold the program.
        """


Converters = Mapping[Format, Converter]

CONVERTERS: Converters = {"aoti": compile_aoti, "onnx": export_onnx}


class ConversionJob(Record):
    """One format of one checkpoint. The program is written to `folder`, the artifact to `folder/<format>`."""

    checkpoint: Checkpoint
    format: Format
    target: Target
    max_batch: int
    folder: Path
    device: Device = "cpu"

    @property
    def artifact_folder(self) -> Path:
        """Where the artifact's files go."""
        return self.folder / self.format
