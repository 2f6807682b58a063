"""Runs one server and makes sure that it ends: when told to, by itself, or because whoever asked for it is gone.

Owns the server's process group and the shared memory it leaves. Run as a script of its own by `server`, standard
library only: `guard.py GRACE_SECONDS FOLDER COMMAND...`, with a pipe on stdin. Any byte there stops the server, the
byte `k` without letting it finish; the end of the pipe means that the parent died, and then FOLDER is removed as well.
"""

import ctypes
import os
import select
import shutil
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

AT_ONCE = b"k"

_PR_SET_PDEATHSIG = 1
_POLL_SECONDS = 0.1
_SHARED = "/dev/shm/triton_"  # noqa: S108 - the prefix of the python backend's regions, not a file of ours
_libc = ctypes.CDLL(None)


def main(grace: float, folder: Path, command: list[str]) -> int:
    """Run the command until it ends; its exit status."""
    asked = []
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: asked.append(True))
    # This process has one thread only, so that code between fork and exec is safe.
    server = subprocess.Popen(command, stdin=subprocess.DEVNULL, process_group=0, preexec_fn=_die_with_guard)  # noqa: PLW1509
    told = b""
    while server.poll() is None and not asked:
        if select.select([0], [], [], _POLL_SECONDS)[0]:
            told = os.read(0, 1)
            break
    parent_died = server.poll() is None and not asked and not told
    status = _end(server, grace, patience=0.0 if told == AT_ONCE else grace)
    if parent_died:
        shutil.rmtree(folder, ignore_errors=True)
    return status


def _die_with_guard() -> None:
    _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def _end(server: subprocess.Popen[bytes], grace: float, *, patience: float) -> int:
    """Ask the server to stop, then kill what is left of its group, and remove the regions they had mapped.

    It may take `patience` seconds to end by itself, and what was killed `grace` seconds to be gone.
    """
    regions = _mapped_regions(server.pid)
    _signal(server.pid, signal.SIGINT)
    try:
        status = server.wait(patience)
    except subprocess.TimeoutExpired:
        _signal(server.pid, signal.SIGKILL)
        status = server.wait()
    regions |= _mapped_regions(server.pid)
    _signal(server.pid, signal.SIGKILL)
    _wait_for_group(server.pid, grace)
    for region in regions:
        Path(region).unlink(missing_ok=True)
    return status


def _signal(group: int, number: signal.Signals) -> None:
    with suppress(ProcessLookupError):
        os.killpg(group, number)


def _wait_for_group(group: int, seconds: float) -> None:
    """Wait until no process of the group is left: a stub still ending could hold a port or a region."""
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        try:
            os.killpg(group, 0)
        except ProcessLookupError:
            return
        time.sleep(0.02)


def _mapped_regions(group: int) -> set[str]:
    """The server's shared memory files, seen in the memory maps of its processes."""
    found = set()
    for process in Path("/proc").iterdir():
        if not process.name.isdigit():
            continue
        # Processes end while they are looked at, and those of others may not be.
        with suppress(OSError):
            if os.getpgid(int(process.name)) == group:
                lines = (process / "maps").read_text().splitlines()
                found |= {_SHARED + line.partition(_SHARED)[2] for line in lines if _SHARED in line}
    return {region.removesuffix(" (deleted)") for region in found}


if __name__ == "__main__":
    code = main(float(sys.argv[1]), Path(sys.argv[2]), sys.argv[3:])
    sys.exit(code if code >= 0 else 128 - code)
