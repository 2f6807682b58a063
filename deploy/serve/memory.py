"""How much memory a server took, as the kernel counted it.

Owns reading it. Called by parity, once the server has answered everything.
"""

import re
from contextlib import suppress
from pathlib import Path

import psutil

_KIBI = 1024


def peak_memory(guard: int) -> int:
    """Bytes: the largest resident sets of the processes below `guard`, added up; 0 where the kernel does not say.

    What they share counts once for each, and they need not have peaked together: it is a bound from above.
    """
    total = 0
    for process in psutil.Process(guard).children(recursive=True):
        # A stub may end while it is looked at.
        with suppress(OSError):
            status = Path(f"/proc/{process.pid}/status").read_text()
            if found := re.search(r"^VmHWM:\s+(\d+) kB$", status, re.MULTILINE):
                total += int(found[1]) * _KIBI
    return total
