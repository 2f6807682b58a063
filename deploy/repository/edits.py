"""Whether somebody edited the config that Triton reads: every promotion writes that of a version, byte for byte.

Owns finding the edits and keeping an edited file aside; replaces nothing. Called by promotion.
"""

from pathlib import Path

from deploy.errors import UsageError
from deploy.files import sha256_bytes, write_atomically
from deploy.repository.beside import own_config
from deploy.repository.config_diff import config_changes
from deploy.repository.layout import ATTESTATIONS_FOLDER, CONFIG_FILE, promoted_version

_DIGITS = 16


def find_edits(model_folder: Path) -> tuple[str, ...]:
    """What the model's config has otherwise than that of the version it names; empty if nothing."""
    path = model_folder / CONFIG_FILE
    if not path.exists():
        return ()
    number = promoted_version(model_folder)
    if number is None:
        return ("it names no version, or Triton could not parse it",)
    own = model_folder / str(number) / CONFIG_FILE
    if not own.is_file():
        return (f"it names version {number}, which has no config of its own",)
    # It may name older versions too, which an ensemble runs or ran.
    wanted = own_config(model_folder) or own.read_text(errors="replace")
    if wanted.encode() == path.read_bytes():
        return ()
    try:
        changes = config_changes(wanted, path.read_text())
    except (UsageError, UnicodeDecodeError):
        return (f"the config of version {number} itself cannot be parsed",)
    return tuple(map(str, changes)) or ("its text, in no field",)


def keep_edited(model_folder: Path) -> Path:
    """Where a copy of the model's config now lies: `attestations/edited-config-<digest>.pbtxt`."""
    data = (model_folder / CONFIG_FILE).read_bytes()
    path = model_folder / ATTESTATIONS_FOLDER / f"edited-config-{sha256_bytes(data)[:_DIGITS]}.pbtxt"
    if not path.exists():
        write_atomically(path, data)
    return path
