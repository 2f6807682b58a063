"""The user's cache folder: engines, indexes, and work done before, found by digest.

Owns where things lie; what they mean belongs to the rooms that put them there.
"""

import os
from pathlib import Path


def cache_folder(*parts: str) -> Path:
    """A folder below `$DEPLOYCTL_CACHE`, else `$XDG_CACHE_HOME/deployctl`, else `~/.cache/deployctl`; not created."""
    chosen = os.environ.get("DEPLOYCTL_CACHE")
    if chosen:
        return Path(chosen, *parts)
    base = os.environ.get("XDG_CACHE_HOME")
    return Path(base, "deployctl", *parts) if base else Path.home().joinpath(".cache", "deployctl", *parts)
