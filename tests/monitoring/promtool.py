"""promtool and prometheus as programs: found, or the test fails with the line that installs them.

Owns running them. A machine that lacks them fails, and skips nothing.
"""

import shutil
import subprocess
from pathlib import Path


def program(name: str) -> str:
    """Where a program of Prometheus lies."""
    found = shutil.which(name)
    assert found, f"{name} is not on PATH: run `make prometheus`, or `apt-get install prometheus` as root"
    return found


def promtool(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    """What promtool says, whatever its exit code."""
    command = [program("promtool"), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False)
