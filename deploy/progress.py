"""How long work tells whoever waits: a stage begins, says things, ends.

Owns the seam only; `report.stages` shows stages to people, tests and `--json` use `Silent`.
"""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Protocol


class Progress(Protocol):
    """Shows stages as they run; safe to call from several threads, since conversions run side by side."""

    def stage(self, name: str) -> AbstractContextManager[None]:
        """A stage that lasts as long as the block; left by an exception, it is shown as failed."""

    def note(self, text: str) -> None:
        """One line that stays: something found or decided on the way."""


class Silent:
    """Shows nothing."""

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Nothing happens around the block."""
        yield

    def note(self, text: str) -> None:
        """Nothing is said."""
