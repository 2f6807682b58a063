"""One conversion as a record on disk, so that a person can run it again alone: `python -m deploy.convert JOB.json`.

Owns what a job holds and the function per format that does it; runs none by itself.
Called by run, in whose children the jobs are done, and by `__main__`.
"""

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Protocol

from deploy.cache import Store
from deploy.checkpoint.model import Checkpoint
from deploy.convert.aoti import compile_aoti
from deploy.convert.lower import Subject, lowered_converters
from deploy.convert.model import Artifact, Device, Format, Program
from deploy.convert.onnx import export_onnx
from deploy.convert.precision import Lowering
from deploy.convert.tactics import UNPACKED
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


def converters_for(checkpoint: Checkpoint, max_batch: int, lowering: Lowering, *, packed: bool = True) -> Converters:
    """The converters to the precision that was asked for; in fp32, `packed` is whether weights may be packed."""
    if lowering.precision == "fp32":
        return CONVERTERS if packed else {**CONVERTERS, "aoti": partial(compile_aoti, tactic=UNPACKED)}
    return lowered_converters(Subject(checkpoint=checkpoint, max_batch=max_batch, lowering=lowering))


class ConversionJob(Record):
    """One format of one checkpoint. The program is written to `folder`, the artifact to `folder/<format>`."""

    checkpoint: Checkpoint
    format: Format
    target: Target
    max_batch: int
    folder: Path
    lowering: Lowering = Lowering()
    device: Device = "cpu"

    @property
    def artifact_folder(self) -> Path:
        """Where the artifact's files go."""
        return self.folder / self.format

    @property
    def in_words(self) -> str:
        """What is said of the precision beside the format; nothing of fp32."""
        return "" if self.lowering.precision == "fp32" else f" in {self.lowering.precision}"
