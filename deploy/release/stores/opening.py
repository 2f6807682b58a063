"""The store that a location names, opened by whoever knows its kind.

Owns the choice only. Called by publish and pull. Optional packages are asked for here, before any work.
"""

from deploy.errors import UsageError
from deploy.release.stores.folders import FolderStore
from deploy.release.stores.locations import Location, parse_location
from deploy.release.stores.objects import ObjectStore
from deploy.release.stores.oci import OciStore
from deploy.release.stores.store import Store


def open_store(text: str) -> Store:
    """The store that `text` names. Raises UsageError for what names none, MissingError if its extra is absent."""
    location: Location = parse_location(text)
    if location.kind == "folder":
        if location.folder.exists() and not location.folder.is_dir():
            raise UsageError(f"{location.folder} is no folder", expected="a model repository, or a name that is free")
        return FolderStore(folder=location.folder)
    return OciStore.open(location) if location.kind == "oci" else ObjectStore.open(location)
