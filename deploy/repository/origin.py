"""The checkpoint that a version was made from, found again: the same bytes, understood as they were then.

Owns whether a file is that checkpoint, and how it is read without being looked at anew. Called by bench.
"""

from pathlib import Path

from deploy.checkpoint.adapters import digest_of, is_adapter, require_base
from deploy.checkpoint.model import Checkpoint, CheckpointRequest
from deploy.errors import UsageError
from deploy.files import sha256_path, size_of
from deploy.repository.manifest import Manifest

_FACTORY = "factory/"


def restore_checkpoint(manifest: Manifest, asked: CheckpointRequest) -> Checkpoint:
    """The checkpoint as the packaging run understood it, its architecture and prefixes taken from the manifest.

    Raises UsageError if the file is not the one that the version was made from, or needs code to be run that the user
    did not name: a manifest may come from elsewhere.
    """
    origin = manifest.checkpoint
    for path in (asked.path, asked.base):
        if path is not None and not path.exists():
            raise UsageError(
                f"there is no checkpoint {path}",
                expected=f"the file that was {origin.file} then",
                fix="name it by --checkpoint, an adapter's base by --base, or leave both out",
            )
    base = require_base(asked.path, asked.base) if is_adapter(asked.path) or asked.base else None
    digest = digest_of(asked.path, base) if base else sha256_path(asked.path)
    if digest != origin.sha256:
        raise UsageError(
            f"{asked.path} is not what {manifest.name}:{manifest.version} was made from: its sha256 is {digest}",
            expected=f"{origin.sha256}, {origin.file} then",
            fix="name that file, and the --base of an adapter, or leave out --checkpoint",
        )
    factory = origin.architecture.removeprefix(_FACTORY) if origin.how == "factory" else None
    if factory != asked.factory:
        raise UsageError(
            f"the architecture was {origin.architecture} when {manifest.name}:{manifest.version} was made",
            expected=f"--factory {factory}, which runs its code" if factory else "no --factory",
            fix=f"add --factory {factory}" if factory else "leave out --factory",
        )
    if origin.trust_pickle and not asked.trust_pickle:
        raise UsageError(
            f"{asked.path} was unpickled with --trust-pickle, which runs code from the file",
            expected="the same trust now",
            fix="add --trust-pickle",
        )
    return _restored(manifest, asked.path, base, digest=digest)


def _restored(manifest: Manifest, path: Path, base: Path | None, *, digest: str) -> Checkpoint:
    facts = manifest.checkpoint.model_dump(exclude={"file", "sha256"})
    return Checkpoint.model_validate(
        {
            **facts,
            "path": path.absolute(),
            "base": base.absolute() if base else None,
            "digest": digest,
            "name": manifest.name,
            "inputs": manifest.spec.inputs,
            "dims": manifest.spec.input_dims,
            "size": size_of(path) + (size_of(base) if base else 0),
            "classes": manifest.classes,
            "num_classes": None,
            "preprocessing": manifest.preprocessing,
        }
    )
