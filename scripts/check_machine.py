"""What this machine must have before anything is installed, each lack named with its remedy.

Owns printing only; the list is `deploy/needs.py`'s, which needs nothing installed either. `make setup` calls it.
"""

from __future__ import annotations

import argparse
import os
import platform
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from deploy.needs import (
    VENV_GB,
    WORK_GB,
    check_compiler,
    check_disk,
    check_glibc,
    check_libpython,
    check_platform,
    check_python,
    check_venv,
)


def main(arguments: list[str]) -> int:
    """Print every finding; 3 where one lacks, as `deployctl` ends when a machine lacks something."""
    parser = argparse.ArgumentParser(description="Check what deployctl needs of this machine.")
    parser.add_argument("--folder", type=Path, default=Path(), help="where the venv and the models will lie")
    folder = parser.parse_args(arguments).folder
    findings = [
        check_python(sys.version_info[:2]),
        check_platform(platform.system(), platform.machine()),
        check_venv(),
        check_compiler(os.environ.get("CXX", "g++")),
        check_glibc(platform.libc_ver()),
        check_libpython(sys.version_info[:2]),
        check_disk(folder, VENV_GB + WORK_GB),
    ]
    for finding in findings:
        print("{:>7}  {}: {}".format("MISSING" if finding.remedy else "ok", finding.what, finding.found))
        if finding.remedy:
            print(f"         to do: {finding.remedy}")
    return 3 if any(finding.remedy for finding in findings) else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
