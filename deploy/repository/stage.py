"""The place where a version is made before anyone can see it.

Owns the stage's folders, its lock, and what goes into a version; `publish` makes it visible. Called by package, and by
whatever makes a version from another one.

A stage lies beside the repository, in `.<repository>.deployctl/stage-<random>/`: on its filesystem, so that publishing
is a rename, and outside it, since Triton takes any folder inside for a model. A lock file beside the stage is held
while its process lives, so the next run knows which stages the dead have left.
"""

import fcntl
import os
import secrets
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from deploy.checkpoint.pretrained_folder import kept_folder
from deploy.convert.model import Artifact
from deploy.errors import UsageError
from deploy.files import disk_errors_explained, link_or_copy
from deploy.repository.config import WarmupTensor
from deploy.repository.layout import LABELS_FILE, WARMUP_FOLDER, Version, check_name, next_number

Step = Callable[[str], None]


class Stage:
    """A version in the making. `work` is for scratch files that are to be linked into it.

    `on_step` is told the name of each boundary as it is passed.
    """

    def __init__(self, repository: Path, name: str, folder: Path, on_step: Step) -> None:
        self.repository = repository
        self.name = name
        self.folder = folder
        self.work = folder / "work"
        self.published: Version | None = None
        self.step = on_step
        self._number = next_number(repository / name)
        self.work.mkdir(parents=True)
        self.version.evidence.mkdir(parents=True)

    @property
    def version(self) -> Version:
        """Where the version lies now. Its number is the one it will get unless somebody else publishes first."""
        return Version(repository=self.folder / "models", name=self.name, number=self._number)

    def renumber(self, number: int) -> None:
        """Give the version another number; the caller rewrites what holds it."""
        folder = self.version.folder
        self._number = number
        if folder != self.version.folder:
            folder.rename(self.version.folder)

    def add_artifact(self, artifact: Artifact) -> None:
        """Link the artifact's files into the version: one, or those in the folder that Triton wants for several."""
        with disk_errors_explained("staging the artifact", self.repository):
            for name in artifact.files:
                link_or_copy(artifact.folder / name, self.version.folder / name)
        self.step("artifact-added")

    def add_kept(self, files: Mapping[str, Path]) -> None:
        """Copy files of the checkpoint's folder into the version's: the tokenizer that its inputs come from."""
        with disk_errors_explained("staging the files beside the model", self.repository):
            for name, source in files.items():
                destination = self.version.folder / kept_folder(tuple(files)) / name
                destination.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(source, destination)

    def add_file(self, name: str, data: bytes) -> None:
        """Write a file of the version itself, such as the `model.py` of Triton's python backend."""
        with disk_errors_explained("staging a file", self.repository):
            (self.version.folder / name).write_bytes(data)

    def add_config(self, text: str, *, classes: Sequence[str] | None = None) -> None:
        """Write the version's config, and its labels one per line in the order of the output."""
        with disk_errors_explained("staging the configuration", self.repository):
            self.version.config.write_text(text)
            if classes is not None:
                self._add_labels(classes)
        self.step("config-added")

    def add_warmup(self, tensors: Sequence[WarmupTensor]) -> None:
        """Write the warm-up sample that the config names, each input by its digest."""
        folder = self.version.model_folder / WARMUP_FOLDER
        with disk_errors_explained("staging the warm-up sample", self.repository):
            for tensor in tensors:
                folder.mkdir(exist_ok=True)
                (folder / tensor.digest).write_bytes(tensor.data)
        self.step("warmup-added")

    def add_evidence(self, name: str, data: bytes) -> Path:
        """Write a file below `evidence/`, and give back where it lies for now."""
        path = self.version.evidence / name
        with disk_errors_explained("staging the evidence", self.repository):
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)
        return path

    def _add_labels(self, classes: Sequence[str]) -> None:
        broken = next((name for name in classes if not name.strip() or "\n" in name or "\r" in name), None)
        if broken is not None:
            raise UsageError(
                f"{broken!r} cannot be a label",
                expected="one line of text per class",
                fix="correct the file of --labels, or the classes in the checkpoint",
            )
        (self.version.folder / LABELS_FILE).write_text("".join(f"{name}\n" for name in classes), encoding="utf-8")


@contextmanager
def open_stage(
    repository: Path, name: str, *, keep_failed: Path | None = None, on_step: Step = lambda _: None
) -> Iterator[Stage]:
    """A new stage for a version of `name`, removed when the block is left.

    With `keep_failed` a stage that was not published is moved to that folder instead. Stages that dead processes left
    are removed first. Raises UsageError if the name cannot be a model's, the repository is a mount point of its own,
    or a folder may not be written.
    """
    check_name(name)
    repository = repository.resolve()
    with disk_errors_explained(f"preparing {repository}"):
        _check_keep(keep_failed)
        _check_mount(repository)
        repository.mkdir(parents=True, exist_ok=True)
        _check_writable(repository / name)
        remove_stale_stages(repository)
        folder, lock = _claim(repository)
    try:
        with disk_errors_explained("making a stage"):
            stage = Stage(repository, name, folder, on_step)
        stage.step("stage-made")
        try:
            with disk_errors_explained("working in the stage", repository):
                yield stage
        finally:
            if keep_failed is not None and stage.published is None:
                _keep(folder, keep_failed)
    finally:
        _release(folder, lock)


def stage_root(repository: Path) -> Path:
    """The folder beside a repository in which its stages lie."""
    return repository.parent / f".{repository.name}.deployctl"


def remove_stale_stages(repository: Path) -> tuple[Path, ...]:
    """Remove the stages whose processes are gone, and give back which those were.

    Those of another user, who shares the repository by their group, are that one's to remove.
    """
    removed = []
    for path in sorted(stage_root(repository).glob("*.lock")):
        with suppress(FileNotFoundError, PermissionError):
            descriptor = os.open(path, os.O_RDWR)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                os.close(descriptor)
                continue
            _release(path.with_suffix(""), descriptor)
            removed.append(path.with_suffix(""))
    return tuple(removed)


def _claim(repository: Path) -> tuple[Path, int]:
    """A name for a stage that is ours, and the descriptor that holds its lock; the folder is not made yet."""
    root = stage_root(repository)
    while True:
        folder = root / f"stage-{secrets.token_hex(4)}"
        lock = folder.with_suffix(".lock")
        root.mkdir(exist_ok=True)
        try:
            descriptor = os.open(lock, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o644)
        except (FileExistsError, FileNotFoundError):
            # The name is taken, or the last other stage ended just now and took the root with it.
            continue
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        # Between the two calls above another run may have taken the lock for a dead one's and removed it.
        if lock.exists() and os.path.samestat(lock.stat(), os.fstat(descriptor)):
            return folder, descriptor
        os.close(descriptor)


def _release(folder: Path, descriptor: int) -> None:
    """Remove a stage, then its lock, then the root if this was the last: never a stage without its lock."""
    try:
        if folder.exists():
            shutil.rmtree(folder)
        folder.with_suffix(".lock").unlink(missing_ok=True)
    finally:
        os.close(descriptor)
    with suppress(OSError):
        folder.parent.rmdir()


def _check_keep(destination: Path | None) -> None:
    if destination is not None and destination.exists() and (not destination.is_dir() or any(destination.iterdir())):
        raise UsageError(
            f"{destination} exists and is not empty",
            expected="a new folder for --keep-failed, or an empty one",
            fix="choose another folder",
        )


def _keep(folder: Path, destination: Path) -> None:
    with disk_errors_explained("keeping the failed stage"):
        destination.mkdir(parents=True, exist_ok=True)
        for entry in sorted(folder.iterdir()):
            shutil.move(entry, destination / entry.name)


def _check_writable(model: Path) -> None:
    """Refuse a model that is there and can take no more version, which would show last of all."""
    for folder in (model, model / WARMUP_FOLDER):
        if folder.is_dir() and not os.access(folder, os.W_OK | os.X_OK):
            raise UsageError(
                f"{folder} may not be written, so that {model.name} can take no further version",
                expected="a folder that this user may write",
                fix="change its permissions, or choose another name or repository",
            )


def _check_mount(repository: Path) -> None:
    """Refuse a repository that cannot be reached from its parent by a rename."""
    there = next(path for path in (repository, *repository.parents) if path.exists())
    if not there.is_dir():
        raise UsageError(
            f"{there} is no folder",
            expected="a repository, or a path where one can be made",
            fix="choose another --repository",
        )
    if repository.exists() and _mount_of(repository) != _mount_of(repository.parent):
        raise UsageError(
            f"{repository} is a mount point, so nothing beside it can be renamed into it",
            expected="a repository below a mount point",
            fix=f"use a folder inside it, for example --repository {repository / 'models'}",
        )


def _mount_of(folder: Path) -> str:
    """The kernel's id of the mount a folder lies on: unlike `st_dev` it tells bind mounts apart, as rename does."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        info = Path(f"/proc/self/fdinfo/{descriptor}").read_text()
    finally:
        os.close(descriptor)
    return next(line for line in info.splitlines() if line.startswith("mnt_id:"))
