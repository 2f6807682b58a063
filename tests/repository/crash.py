"""Module-level functions that tests run in child processes: publish or promote, and die at a named step.

Owns no assertion. Called through `deploy.processes.Worker` by test_crashes.
"""

import os
import signal
from pathlib import Path

from deploy.repository.promotion import promote, rollback
from deploy.repository.publish import PublishOptions
from tests.repository.samples import Sample, put


class DieAt:
    """Kills its own process, as `kill -9` does, when a step is reached."""

    def __init__(self, step: str) -> None:
        self.step = step

    def __call__(self, reached: str) -> None:
        if reached == self.step:
            os.kill(os.getpid(), signal.SIGKILL)


def publish_and_die(repository: Path, step: str) -> None:
    """Publish a version with its promotion; never ends where `step` is one that is passed."""
    put(repository, Sample(weights=b"finer"), options=PublishOptions(promote=True), on_step=DieAt(step))


def promote_and_die(repository: Path, number: int, step: str) -> None:
    """Promote a version."""
    promote(repository, "pets", number, on_step=DieAt(step))


def rollback_and_die(repository: Path, step: str) -> None:
    """Roll back."""
    rollback(repository, "pets", on_step=DieAt(step))


def publish_many(repository: Path, count: int, mark: str) -> list[int]:
    """Publish `count` versions one after the other, and give back their numbers."""
    samples = (Sample(weights=f"{mark}{index}".encode()) for index in range(count))
    return [put(repository, sample).version.number for sample in samples]


class DieAfter:
    """Kills its own process at the step of that place in the order."""

    def __init__(self, place: int) -> None:
        self.left = place

    def __call__(self, reached: str) -> None:
        if self.left == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        self.left -= 1


def change_and_die(repository: Path, name: str, action: str, place: int) -> None:
    """Promote version 2 of a model or roll it back; ends where there are fewer steps."""
    if action == "promote":
        promote(repository, name, 2, on_step=DieAfter(place))
    else:
        rollback(repository, name, on_step=DieAfter(place))
