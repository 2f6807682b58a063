"""The index of known architectures: where it is kept, and finding one in it by name.

Owns the choice between the shipped index and one built here; zoo_index builds it, identify compares with it.
Called by load. Reading a shipped index imports neither torch nor torchvision.
"""

from difflib import get_close_matches
from functools import cache
from importlib.resources import files
from pathlib import Path

from deploy.cache import cache_folder
from deploy.checkpoint.architecture import PREFIX, Architecture, Zoo, decode, encode
from deploy.checkpoint.vision import minor_release, torchvision_version
from deploy.errors import UsageError
from deploy.files import write_atomically

# Raised with each fact that an Architecture gains: an index of before would say that no builder has it.
_FACTS = 2


@cache
def load_zoo() -> Zoo:
    """Every known architecture by name: shipped for one torchvision release, else built once and kept in the cache."""
    release = minor_release()
    shipped = files("deploy").joinpath(f"data/zoo-{release}.json.gz")
    if shipped.is_file():
        return decode(shipped.read_bytes())
    cached = cache_folder("zoo", f"zoo-{torchvision_version()}-{_FACTS}.json.gz")
    if not cached.is_file():
        _build_into(cached)
    return decode(cached.read_bytes())


def find_architecture(asked: str) -> Architecture:
    """The architecture called `asked`, with or without `torchvision/`. Raises UsageError, naming the nearest names."""
    zoo = load_zoo()
    name = asked.strip().removeprefix(PREFIX)
    if name in zoo:
        return zoo[name]
    near = get_close_matches(name.lower(), zoo, n=3, cutoff=0.5)
    raise UsageError(
        f"there is no architecture {asked!r}",
        expected=f"a torchvision builder; nearest: {', '.join(near)}" if near else "one of docs/architectures.md",
        fix="use --factory package.module:function for an architecture of your own",
    )


def _build_into(path: Path) -> None:
    from deploy.checkpoint.zoo_index import build_zoo

    write_atomically(path, encode(build_zoo()))
