"""Where and with what something is measured, for its record.

Owns no measurement. Called by measure.
"""

import platform
import subprocess
from datetime import UTC, datetime

import psutil

from benchmarks.table.cold import ROOT
from benchmarks.table.records import Place
from deploy.validate.machine import cpu_model, describe_cpus, installed_versions

_RELEASES = ("torch", "torchvision", "onnxruntime", "onnx", "onnxscript", "transformers", "numpy")


def here() -> Place:
    """The machine, the releases and the commit of now."""
    return Place(
        date=datetime.now(UTC).isoformat(timespec="seconds"),
        commit=_git("rev-parse", "HEAD"),
        changed=bool(_git("status", "--porcelain", "--", "deploy", "benchmarks/by_hand", "benchmarks/table")),
        processor=cpu_model(),
        cpus=describe_cpus(),
        memory_gb=round(psutil.virtual_memory().total / 1e9, 1),
        versions={"python": platform.python_version(), **installed_versions(_RELEASES)},
    )


def same_ground(one: Place, other: Place) -> bool:
    """Whether two records may stand in one table: one machine, the same releases."""
    return (one.processor, one.cpus, one.versions) == (other.processor, other.cpus, other.versions)


def _git(*arguments: str) -> str:
    done = subprocess.run(["git", *arguments], capture_output=True, text=True, check=False, cwd=ROOT)
    return done.stdout.strip()
