"""What the tests of this room share: checkpoints of tiny models, read in a child as the command does it."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from torch import nn

from deploy.checkpoint.load import read_checkpoint
from deploy.checkpoint.model import Checkpoint
from deploy.convert.model import FORMATS, Format
from deploy.convert.run import ConversionPlan
from deploy.processes import run_alone
from deploy.targets import LOCAL_CPU, Target, find_target
from tests.models import save


@dataclass(frozen=True)
class Read:
    """Saves a factory's weights in a folder and reads them back as a Checkpoint."""

    folder: Path

    def __call__(self, factory: Callable[[], nn.Module], *shapes: tuple[int, ...]) -> Checkpoint:
        request = save(factory, self.folder, *shapes)
        return run_alone("read", read_checkpoint, request).value


def plan(
    folder: Path,
    *formats: Format,
    max_batch: int = 4,
    jobs: int | None = None,
    limits: tuple[float | None, int | None] = (None, None),
) -> ConversionPlan:
    """A plan for this machine; `limits` are seconds and bytes."""
    timeout, memory_limit = limits
    return ConversionPlan(
        formats=formats or FORMATS,
        max_batch=max_batch,
        target=target(),
        folder=folder / "out",
        jobs=jobs,
        timeout=timeout,
        memory_limit=memory_limit,
    )


def target() -> Target:
    return find_target(LOCAL_CPU)
