"""The report of a version in the making, drawn in a child while the command goes on.

Owns the child and the thread that waits for it. Called by versions, and by whatever makes a version from another one.
"""

import os
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager
from pathlib import Path
from types import TracebackType

from deploy.processes import Finished, Limits, Worker
from deploy.report.html import VersionReport
from deploy.repository.manifest import Manifest
from deploy.repository.stage import Stage

# Far beyond the second that it takes: only a child that hangs meets it.
_SECONDS = 120.0


class Reporter(AbstractContextManager["Reporter"]):
    """Draws what lies in a stage from the moment it is made, and writes the page when the manifest is known.

    Raises UnfinishedError where the page is asked for and could not be drawn.
    """

    def __init__(self, stage: Stage, draft: Manifest) -> None:
        self._stage = stage
        self._worker = Worker("report", log=Path(os.devnull), limits=Limits(seconds=_SECONDS))
        self._threads = ThreadPoolExecutor(max_workers=1)
        folder = stage.version.folder
        self._drawn: Future[Finished[None]] = self._threads.submit(self._worker.make, VersionReport, folder, draft)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        # The thread ends with the call that it waits for; the child's pipe is not closed under it.
        self._threads.shutdown()
        self._worker.close()

    @property
    def alive(self) -> bool:
        """False once the child has ended."""
        return self._worker.alive

    def page(self, manifest: Manifest) -> bytes:
        """The page of the version as it now lies in the stage."""
        self._drawn.result()
        page = self._worker.call("page", self._stage.version.folder, manifest)
        assert isinstance(page, bytes)
        return page
