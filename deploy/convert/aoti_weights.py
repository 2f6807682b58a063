"""An AOTInductor archive as compiled code on one side and the weights beside it on the other.

Owns the layout of the weights' entry: the constants one after another in the compiler's own order, each as the whole
memory it is a view of, filled up to the loader's alignment (torch, `aoti_runtime/model_base.h`, `load_constants`). The
order, names and sizes are read from the source that the compiler wrote. Called by aoti, in a child process.
"""

from __future__ import annotations

import re
import shutil
import zipfile
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING

from deploy.convert.reuse import Weights, raw_bytes
from deploy.records import Record

if TYPE_CHECKING:
    from typing import IO

CODE_FILE = "code.zip"
RECIPE_FILE = "recipe.json"
_BLOB = ".wrapper_weights.blob"
_IDENTITY = ".data/serialization_id"
_FIELD = re.compile(r'constants_info_\[(\d+)\]\.(data_size|from_folded|original_fqn) = (?:"([^"]*)"|(\w+));')
_CHUNK = 4 * 1024 * 1024
_BORN = (1980, 1, 1, 0, 0, 0)  # the first moment a zip file can name: equal content is to give equal files


class Constant(Record):
    """One constant in the weights' entry: the name of the weight, and its bytes with what fills them up."""

    weight: str
    size: int


class Recipe(Record):
    """How an archive is made whole again: the weights' entry, where it lies among the others, and what is in it.

    `details` are the artifact's.
    """

    blob: str
    position: int
    constants: tuple[Constant, ...]
    details: dict[str, str]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Slice:
    constant: Constant
    start: int


def weights_file(files: Iterable[object]) -> Path | None:
    """The one of the compiler's files that holds the weights, where there is exactly one."""
    found = [Path(name) for name in files if isinstance(name, str) and name.endswith(_BLOB)]
    return found[0] if len(found) == 1 else None


def take_apart(
    archive: Path, weights: Weights, details: dict[str, str], *, into: Path, blob: Path | None = None
) -> Recipe | None:
    """The archive's code and recipe in the new folder `into`, if any other weights could take the place of these.

    `blob` is the weights' file where it is not in the archive. None if they could not: a constant is there that is no
    weight of the program as it lies in memory, or a weight that the graph reads is not there, so that the code itself
    holds something of its value.
    """
    with zipfile.ZipFile(archive) as packed:
        names = packed.namelist()
        held = [name for name in names if name.endswith(_BLOB)]
        if len(held) + (blob is not None) != 1:
            return None
        slices = list(_slices(packed))
        with blob.open("rb") if blob else packed.open(held[0]) as stream:
            if not _explained(stream, slices, weights):
                return None
        into.mkdir()
        with zipfile.ZipFile(into / CODE_FILE, "w") as code:
            for name in names:
                if name not in held:
                    _copy(packed, name, code)
    entry, position = _place_in(names, blob) if blob else (held[0], names.index(held[0]))
    recipe = Recipe(blob=entry, position=position, constants=tuple(one.constant for one in slices), details=details)
    recipe.write(into / RECIPE_FILE)
    return recipe


def put_together(folder: Path, weights: Weights, archive: Path) -> Recipe:
    """The archive whose code and recipe lie in `folder`, with these weights; they are streamed, never copied whole."""
    recipe = Recipe.read(folder / RECIPE_FILE)
    with zipfile.ZipFile(folder / CODE_FILE) as code, zipfile.ZipFile(archive, "w") as packed:
        names = code.namelist()
        for name in names[: recipe.position]:
            _copy(code, name, packed)
        digest = sha256()
        entry = zipfile.ZipInfo(recipe.blob, _BORN)
        # Beside the zip's own checksum, which takes as long.
        with ThreadPoolExecutor(1) as beside, packed.open(entry, "w", force_zip64=True) as stream:
            for part in _parts(recipe, weights):
                hashed = beside.submit(digest.update, part)
                stream.write(part)
                hashed.result()
        for name in names[recipe.position :]:
            if name.endswith(_IDENTITY):
                packed.writestr(zipfile.ZipInfo(name, _BORN), _identity(code.read(name), digest.digest()))
            else:
                _copy(code, name, packed)
    return recipe


def _parts(recipe: Recipe, weights: Weights) -> Iterator[memoryview | bytes]:
    """The weights' entry, piece by piece."""
    for constant in recipe.constants:
        tensor = weights.find(constant.weight)
        assert tensor is not None
        own = raw_bytes(tensor)
        yield own
        yield bytes(constant.size - len(own))


def _identity(before: bytes, digest: bytes) -> bytes:
    """Torch's name for an archive, of decimal digits: one half for its entries' names, the other for their content."""
    half = len(before) // 2
    return before[:half] + str(int.from_bytes(digest)).zfill(half)[-half:].encode()


def _slices(packed: zipfile.ZipFile) -> Iterator[_Slice]:
    """The constants as the compiler's own source gives them, those apart that the code makes from others."""
    fields: dict[int, dict[str, str]] = {}
    for name in packed.namelist():
        if name.endswith(".cpp"):
            for index, field, quoted, plain in _FIELD.findall(packed.read(name).decode(errors="replace")):
                fields.setdefault(int(index), {})[field] = quoted or plain
    start = 0
    for _, field in sorted(fields.items()):
        if field.get("from_folded") != "false":
            continue
        size = int(field["data_size"])
        yield _Slice(constant=Constant(weight=field.get("original_fqn", ""), size=size), start=start)
        start += size


def _place_in(names: list[str], blob: Path) -> tuple[str, int]:
    """What the weights' file is called in the archive, and where among the entries: beside the code, before it."""
    position = next(index for index, name in enumerate(names) if name.endswith(".cpp"))
    return str(Path(names[position]).with_name(blob.name)), position


def _explained(stream: IO[bytes], slices: list[_Slice], weights: Weights) -> bool:
    """Whether the entry is these weights and nothing else, and every weight that the graph reads is in it."""
    held: set[str] = set()
    for one in slices:
        tensor = weights.find(one.constant.weight)
        if tensor is None or not _holds(stream, one.constant.size, raw_bytes(tensor)):
            return False
        held.add(one.constant.weight)
    places = {_place(weights, name) for name in held}
    return not stream.read(1) and all(_place(weights, name) in places for name in weights.used)


def _holds(stream: IO[bytes], size: int, wanted: memoryview) -> bool:
    """Whether the next `size` bytes are `wanted` and zeros."""
    if len(wanted) > size:
        return False
    for start in range(0, len(wanted), _CHUNK):
        part = wanted[start : start + _CHUNK]
        if stream.read(len(part)) != part:
            return False
    rest = stream.read(size - len(wanted))
    return len(rest) == size - len(wanted) and not any(rest)


def _place(weights: Weights, name: str) -> int:
    """Where a weight lies: the compiler keeps one of several that share their memory."""
    tensor = weights.find(name)
    assert tensor is not None
    return tensor.untyped_storage().data_ptr()


def _copy(source: zipfile.ZipFile, name: str, destination: zipfile.ZipFile) -> None:
    entry = zipfile.ZipInfo(name, _BORN)
    size = source.getinfo(name).file_size
    with source.open(name) as there, destination.open(entry, "w", force_zip64=size > 2**31 - 1) as here:
        shutil.copyfileobj(there, here, _CHUNK)
