"""What tests do in processes of their own: commands side by side, and a publisher that is killed on its way."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from deploy.release.stores.publish import PublishRequest, run_publish
from deploy.release.stores.pull import PullRequest, run_pull

COMMAND = (sys.executable, "-m", "deploy")


class DieAfter:
    """A progress that kills its own process, as `kill -9` does, when so many files were told as done."""

    def __init__(self, files: int) -> None:
        self.left = files

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        yield

    def note(self, text: str) -> None:
        self.left -= text.startswith(("sent ", "received "))
        if not self.left:
            os.kill(os.getpid(), signal.SIGKILL)


def run_together(commands: Sequence[Sequence[str]]) -> list[subprocess.CompletedProcess[str]]:
    """What became of several commands that ran at the same time."""
    running = [
        subprocess.Popen([*COMMAND, *command], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        for command in commands
    ]
    ended = [process.communicate(timeout=120) for process in running]
    return [
        subprocess.CompletedProcess(process.args, process.returncode, out, err)
        for process, (out, err) in zip(running, ended, strict=True)
    ]


def die(verb: str, first: str, reference: str, second: str, *, files: int) -> None:
    """Publish or pull in a child that is killed when `files` files of a megabyte or more are done."""
    arguments = [sys.executable, "-m", "tests.release.stores.children", verb, first, reference, second, str(files)]
    ended = subprocess.run(arguments, check=False, timeout=120, capture_output=True, text=True)
    assert ended.returncode == -signal.SIGKILL, ended.stderr


def main() -> None:
    verb, first, reference, second, files = sys.argv[1:]
    if verb == "publish":
        request = PublishRequest(repository=Path(first), reference=reference, destination=second)
        run_publish(request, progress=DieAfter(int(files)))
    else:
        run_pull(PullRequest(source=first, reference=reference, repository=Path(second)), progress=DieAfter(int(files)))


if __name__ == "__main__":
    main()
