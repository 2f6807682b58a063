"""A stage becomes a version of a repository, in one rename that either happened or did not.

Owns the order of the steps that make a version visible. Called by package, and by whatever makes a version from another
one.

    1. Refuse what did not pass, before anything is touched.
    2. Compare the contract with the version that binds the name.
    3. Number the version, lint its config, write the evidence that shows the finished manifest (the report), and the
       manifest itself with every digest.
    4. Flush it to disk, and rename it: `<name>/` for a new model, `<name>/<N>/` for a later version. If another
       packager took the name or the number meanwhile, go back to 2.
    5. Promote it where that was asked for; a first version came with its promotion.
"""

import shutil
import stat
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from types import MappingProxyType

from deploy.errors import DeployError, UnfinishedError, UsageError, after
from deploy.files import disk_errors_explained, relative_files, rename_new, sync_tree, write_atomically
from deploy.repository.config import renumbered
from deploy.repository.contract import check_contract
from deploy.repository.engine_files import renumber_engine_files
from deploy.repository.layout import CONFIG_FILE, EVIDENCE_FOLDER, WARMUP_FOLDER, Version, next_number
from deploy.repository.lint import require_clean
from deploy.repository.manifest import Manifest, file_entries, file_entry, version_digest
from deploy.repository.promotion import promote
from deploy.repository.stage import Stage

# Files of the evidence by name, each made from the manifest that holds the digests of all others.
LateEvidence = Mapping[str, Callable[[Manifest], bytes]]

NOTHING_LATE: LateEvidence = MappingProxyType({})
_ATTEMPTS = 100


@dataclass(frozen=True, slots=True, kw_only=True)
class PublishOptions:
    """What the user asked for: promotion of a later version, and leave to change the contract.

    `leaving` is the version that must still be promoted for this one to be; None for any.
    """

    promote: bool = False
    leaving: int | None = None
    new_contract: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class PublishedVersion:
    """A version that is now there for good. `contract_changes` is empty unless they were accepted."""

    version: Version
    digest: str
    promoted: bool
    contract_changes: tuple[str, ...]


def publish(
    stage: Stage,
    manifest: Manifest,
    options: PublishOptions = PublishOptions(),
    *,
    late: LateEvidence = NOTHING_LATE,
) -> PublishedVersion:
    """Make the staged version visible. `manifest` is complete but for what only this step can know.

    That is its number, its files and its contract changes; `late` is evidence that shows them. Raises UsageError if a
    check did not pass or the contract would change, UnfinishedError if Triton would reject the config; nothing is
    published then.
    """
    _refuse_unproven(manifest)
    with disk_errors_explained(f"publishing {manifest.name}", stage.repository):
        sealed = _rename_into_place(stage, manifest, options, late)
        version = Version(repository=stage.repository, name=stage.name, number=sealed.version)
        stage.published = version
        stage.step("published")
    promoted = version.number == 1
    if options.promote and not promoted:
        try:
            promote(stage.repository, stage.name, version.number, leaving=options.leaving, on_step=stage.step)
        except DeployError as error:
            raise after(str(version), error) from error
        promoted = True
    return PublishedVersion(
        version=version,
        digest=version_digest(version.folder),
        promoted=promoted,
        contract_changes=sealed.contract_changes,
    )


def publish_sealed(stage: Stage) -> bool:
    """Make a staged version visible that has its number and its manifest already: it comes from elsewhere.

    Gives back whether it came as the first of its model, and so with its promotion. Raises FileExistsError if its
    number is taken. The caller has compared its files with the manifest.
    """
    model = stage.repository / stage.name
    version = Version(repository=stage.repository, name=stage.name, number=stage.version.number)
    with disk_errors_explained(f"publishing {version}", stage.repository):
        _let_read(stage.version.model_folder)
        first = not model.exists() and _appeared_first(stage, model)
        if not first:
            _publish_version(stage, model)
    stage.published = version
    stage.step("published")
    return first


def _appeared_first(stage: Stage, model: Path) -> bool:
    """Whether the whole model could be made visible: not if another process made one of that name meanwhile."""
    try:
        _publish_model(stage, model)
    except FileExistsError:
        return False
    return True


def _refuse_unproven(manifest: Manifest) -> None:
    blockers = manifest.blockers()
    if blockers:
        raise UsageError(
            f"{manifest.name} was not published: {'; '.join(blockers)}", expected="a version whose checks passed"
        )


def _rename_into_place(stage: Stage, manifest: Manifest, options: PublishOptions, late: LateEvidence) -> Manifest:
    """The manifest as it was published."""
    model = stage.repository / stage.name
    for _ in range(_ATTEMPTS):
        # Looked at first: a model that appears after this line makes the rename below fail, and is then compared.
        first = not model.exists()
        changes = check_contract(stage.repository, stage.name, manifest, accept=options.new_contract)
        stage.renumber(1 if first else next_number(model))
        stage.step("numbered")
        sealed = _seal(stage, manifest.model_copy(update={"contract_changes": tuple(map(str, changes))}), late)
        try:
            if first:
                _publish_model(stage, model)
            else:
                _publish_version(stage, model)
        except FileExistsError:
            # Another publisher took the number, or was the first of this model, since the look above.
            continue
        return sealed
    raise UnfinishedError(
        f"no free number was found for {manifest.name} in {_ATTEMPTS} attempts",
        fix="run it again when fewer others publish this model",
    )


def _seal(stage: Stage, manifest: Manifest, late: LateEvidence) -> Manifest:
    """Write what depends on the number, and the digests of all."""
    version = stage.version
    config = renumbered(version.config.read_text(), version.number)
    version.config.write_text(config)
    renumber_engine_files(version.folder, version.number)
    require_clean(config, folder=version.model_folder)
    # An attempt before this one may have left its own.
    for name in late:
        (version.evidence / name).unlink(missing_ok=True)
    sealed = manifest.model_copy(update={"version": version.number, "files": file_entries(version.folder)})
    for name, make in late.items():
        stage.add_evidence(name, make(sealed))
    added = [file_entry(version.folder, f"{EVIDENCE_FOLDER}/{name}") for name in late]
    files = sorted((*sealed.files, *added), key=lambda entry: PurePosixPath(entry.path))
    sealed = sealed.model_copy(update={"files": tuple(files)})
    sealed.write(version.manifest)
    _let_read(version.model_folder)
    stage.step("sealed")
    return sealed


def _publish_model(stage: Stage, model: Path) -> None:
    staged = stage.version.model_folder
    shutil.copyfile(stage.version.config, staged / CONFIG_FILE)
    sync_tree(staged)
    stage.step("synced")
    rename_new(staged, model)


def _publish_version(stage: Stage, model: Path) -> None:
    sync_tree(stage.version.folder)
    stage.step("synced")
    _add_warmup(stage.version.model_folder / WARMUP_FOLDER, model / WARMUP_FOLDER)
    stage.step("warmup-linked")
    rename_new(stage.version.folder, model / stage.version.folder.name)


def _add_warmup(staged: Path, shared: Path) -> None:
    """Put each sample among the model's under its digest; one that is there is the same one and stays."""
    samples = sorted(staged.iterdir()) if staged.exists() else []
    for sample in samples:
        if not (shared / sample.name).exists():
            write_atomically(shared / sample.name, sample.read_bytes())


def _let_read(folder: Path) -> None:
    """Let everyone read the files, for the server runs as another user; a compiler may have made them private."""
    for name in relative_files(folder):
        path = folder / name
        mode = path.stat().st_mode
        readable = mode | stat.S_IRUSR | stat.S_IRGRP | stat.S_IROTH
        if mode != readable:
            path.chmod(readable)
