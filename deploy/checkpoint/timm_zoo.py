"""The index of timm's architectures: where it is kept.

Owns the choice between the shipped index and one built here; timm_index builds it. Called by timm_models. Reading an
index imports neither torch nor timm.
"""

from functools import cache
from importlib.resources import files
from pathlib import Path

from deploy.cache import cache_folder
from deploy.checkpoint.timm_entries import TimmIndex, decode, encode, index_file, timm_version
from deploy.files import write_atomically


@cache
def load_index() -> TimmIndex:
    """Every architecture of the installed timm: shipped for one release, else built once and kept in the cache."""
    shipped = index_file(Path(str(files("deploy").joinpath("data"))))
    path = shipped if shipped.is_file() else index_file(cache_folder("timm"))
    if not path.is_file():
        from deploy.checkpoint.timm_index import build_index

        write_atomically(path, encode(build_index()))
    return decode(path.read_bytes())


def index_is_ready() -> bool:
    """Whether timm is installed and its index need not be built first."""
    if timm_version() is None:
        return False
    folders = (Path(str(files("deploy").joinpath("data"))), cache_folder("timm"))
    return any(index_file(folder).is_file() for folder in folders)
