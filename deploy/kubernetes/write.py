"""A rendering becomes a folder, whole or not at all, and only in place of an earlier rendering.

Owns the record beside the files that tells ours from others'. Called by the command `k8s`.
"""

import shutil
import tempfile
from pathlib import Path
from typing import Literal

from deploy.errors import UsageError
from deploy.files import (
    disk_errors_explained,
    make_folder,
    relative_files,
    rename_new,
    sha256_bytes,
    sha256_file,
    swap,
    sync_tree,
)
from deploy.kubernetes.render import Rendered
from deploy.records import Record

RECORD_FILE = "rendered.json"


class Rendering(Record):
    """What was written into a folder: from which version, and each file with its digest."""

    schema_version: Literal[1] = 1
    version: str
    digest: str
    target: str
    files: dict[str, str]


def write(rendered: Rendered, output: Path) -> tuple[Path, ...]:
    """The paths of the files, now in `output`; an earlier rendering there is replaced in one step.

    Raises UsageError if `output` holds anything else: a file that was not rendered, or was changed since.
    """
    replaces = _check(output)
    make_folder(output.parent)
    with disk_errors_explained(f"writing to {output}"):
        beside = Path(tempfile.mkdtemp(dir=output.resolve().parent, prefix=f".{output.name}."))
        try:
            fresh = beside / "new"
            _fill(fresh, rendered)
            if replaces:
                swap(fresh, output)
            else:
                rename_new(fresh, output)
        finally:
            shutil.rmtree(beside, ignore_errors=True)
    return tuple(output / name for name in rendered.files)


def _check(output: Path) -> bool:
    """Whether there is an earlier rendering to replace. Raises UsageError if there is something else."""
    if output.is_symlink() or (output.exists() and not output.is_dir()):
        raise UsageError(f"{output} is no folder", expected="a folder for --output, or none yet")
    if not output.exists():
        return False
    present = set(relative_files(output)) - {RECORD_FILE}
    if not present and not (output / RECORD_FILE).exists():
        return True
    if not (output / RECORD_FILE).is_file():
        raise UsageError(
            f"{output} holds files that deployctl did not render: {_some(present)}",
            expected="a folder of its own for --output",
            fix="name another folder",
        )
    ours = Rendering.read(output / RECORD_FILE).files
    foreign = {path for path in present if ours.get(path) != sha256_file(output / path)}
    if foreign:
        raise UsageError(
            f"{output} was changed since it was rendered: {_some(foreign)}",
            expected="the files as they were rendered, and no others",
            fix="keep your changes in an overlay beside the folder (docs/kubernetes.md), or render into another one",
        )
    return True


def _fill(folder: Path, rendered: Rendered) -> None:
    for name, text in rendered.files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    plan = rendered.plan
    Rendering(
        version=str(plan.version),
        digest=plan.model.digest,
        target=plan.target.name,
        files={name: sha256_bytes(text.encode()) for name, text in rendered.files.items()},
    ).write(folder / RECORD_FILE)
    sync_tree(folder)


def _some(paths: set[str]) -> str:
    shown = sorted(paths)[:3]
    more = len(paths) - len(shown)
    return ", ".join(shown) + (f" and {more} more" if more else "")
