"""What a file is, told from its bytes and never from its suffix.

Owns the recognition and the message for each thing that is not a checkpoint; reads no tensor and imports no torch.
Called by formats.
"""

import struct
import zipfile
from enum import Enum, auto
from pathlib import Path

from deploy.errors import UsageError

WANTED = "a state_dict saved with torch.save, or a .safetensors file"
WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
SAVE_STATE_DICT = "save the weights alone: torch.save(model.state_dict(), 'weights.pt')"

SAVE_WHOLE = (
    "save whole tensors: get_model_state_dict(model, options=StateDictOptions(full_state_dict=True)) of "
    "torch.distributed.checkpoint.state_dict; or the folder that torch.distributed.checkpoint.save writes"
)
_HEAD = 4096
_ZIP = b"PK\x03\x04"
_LEGACY_TORCH = b"\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19."  # torch.serialization.MAGIC_NUMBER, pickled
_PICKLE_PROTOCOLS = range(2, 6)
_LARGEST_SAFETENSORS_HEADER = 100_000_000  # the limit of the format itself

_UNPACK = "unpack it, and give the weights inside"
# Offset, magic, what it is, and what to do about it where that is plain.
_FOREIGN: tuple[tuple[int, bytes, str, str], ...] = (
    (0, b"\x89HDF\r\n\x1a\n", "an HDF5 file (Keras, or MATLAB)", ""),
    (0, b"GGUF", "a GGUF file", ""),
    (0, b"\x93NUMPY", "a NumPy array", ""),
    (0, b"\x7fELF", "a compiled program or library", ""),
    (0, b"\x1f\x8b", "a gzip archive", _UNPACK),
    (0, b"\xfd7zXZ\x00", "an xz archive", _UNPACK),
    (0, b"\x28\xb5\x2f\xfd", "a Zstandard archive", _UNPACK),
    (257, b"ustar", "a tar archive", _UNPACK),
    (0, b"version https://git-lfs.github.com/spec/", "a Git LFS pointer, not the file itself", "run: git lfs pull"),
)


class Kind(Enum):
    """The containers that weights are read from; `SHARDED` is a folder of torch.distributed.checkpoint's.

    `SAFETENSORS_FOLDER` holds one file of the usual name, or shards with their index. `PROGRAM` is what
    torch.export.save writes: weights and the graph that computes with them.
    """

    TORCH_ZIP = auto()
    TORCH_LEGACY = auto()
    SAFETENSORS = auto()
    SAFETENSORS_FOLDER = auto()
    SHARDED = auto()
    PROGRAM = auto()


def recognise(path: Path) -> Kind:
    """Which container `path` is. Raises UsageError, saying what it is instead, if it is none of them."""
    if path.is_dir():
        return _recognise_folder(path)
    head, size = _read_head(path)
    if head.startswith(_ZIP):
        return _recognise_zip(path)
    if head.startswith(_LEGACY_TORCH):
        return Kind.TORCH_LEGACY
    if _is_safetensors(path, head, size):
        return Kind.SAFETENSORS
    raise _refusal(path, head)


def is_torchscript(path: Path) -> bool:
    """Whether a file is what torch.jit.save wrote. Raises UsageError if it cannot be read, or is damaged."""
    head, _ = _read_head(path)
    if not head.startswith(_ZIP):
        return False
    try:
        with zipfile.ZipFile(path) as archive:
            return _holds_script({name.partition("/")[2] for name in archive.namelist()})
    except (zipfile.BadZipFile, UnicodeDecodeError, NotImplementedError, struct.error) as error:
        raise damaged(path, error) from error


def damaged(path: Path, why: object) -> UsageError:
    """The error for a file that ends too early, or whose inside makes no sense."""
    first_line = str(why).strip().partition("\n")[0][:200]
    return UsageError(
        f"{path} is truncated or damaged" + (f" ({first_line})" if first_line else ""),
        expected="the whole file that training wrote",
        fix="copy or download it again, and compare its size with the original",
    )


def _read_head(path: Path) -> tuple[bytes, int]:
    try:
        with path.open("rb") as stream:
            head = stream.read(_HEAD)
    except FileNotFoundError as error:
        raise UsageError(f"{path} does not exist", expected="the path of a checkpoint file") from error
    except OSError as error:
        raise UsageError(f"{path} cannot be read: {error.strerror}", expected="a file this user may read") from error
    if not head:
        raise UsageError(f"{path} is empty (0 bytes)", expected=WANTED, fix="save or copy the checkpoint again")
    return head, path.stat().st_size


def _recognise_folder(path: Path) -> Kind:
    if (path / ".metadata").is_file():
        return Kind.SHARDED
    if any((path / name).is_file() for name in (WEIGHTS, INDEX)):
        return Kind.SAFETENSORS_FOLDER
    if next(path.glob("*.distcp"), None):
        raise UsageError(
            f"{path} holds shards of torch.distributed.checkpoint without their .metadata",
            expected="a checkpoint whose saving came to its end: .metadata is written last",
            fix="take the one before it, or copy .metadata too (its name begins with a dot)",
        )
    if (path / "zero_to_fp32.py").is_file() or next(path.rglob("*_model_states.pt"), None):
        raise UsageError(
            f"{path} is a checkpoint of DeepSpeed, whose ZeRO pieces only its own code can join",
            expected=f"{WANTED}, or a folder of torch.distributed.checkpoint",
            fix=f"join them: python {path}/zero_to_fp32.py {path} joined, then package joined/pytorch_model.bin",
        )
    suffixes = {".pt", ".pth", ".ckpt", ".bin", ".safetensors"}
    entries = (*path.iterdir(), *path.glob("*/*"))
    inside = sorted(str(entry.relative_to(path)) for entry in entries if entry.suffix in suffixes)[:5]
    models = sorted(str(config.parent) for config in path.glob("*/config.json"))[:5]
    raise UsageError(
        f"{path} is a directory" + (f" that holds {', '.join(inside)}" if inside else ""),
        expected="one checkpoint file, or a folder of torch.distributed.checkpoint (.metadata and *.distcp)",
        fix=f"name the one to deploy: {', '.join(models)}" if models else "name the file itself, not a folder above it",
    )


def _recognise_zip(path: Path) -> Kind:
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
    except (zipfile.BadZipFile, UnicodeDecodeError, NotImplementedError, struct.error) as error:
        raise damaged(path, error) from error
    entries = {name.partition("/")[2] for name in names}
    if _holds_script(entries):
        raise UsageError(
            f"{path} is a TorchScript archive (torch.jit.save)",
            expected=WANTED,
            fix="load it where it was made with torch.jit.load and torch.save(module.state_dict(), 'weights.pt'); "
            "or add --as-is, which serves it as it is",
        )
    if any(entry.startswith("data/aotinductor/") for entry in entries.union(names)):
        raise UsageError(
            f"{path} is an AOTInductor archive (.pt2): machine code, already compiled",
            expected=f"{WANTED}, or a program of torch.export.save",
            fix="give the checkpoint or the exported program that it was compiled from",
        )
    if "models/model.json" in entries:
        return Kind.PROGRAM
    if {"archive_format", "serialized_exported_program.json"} & entries.union(names):
        raise UsageError(
            f"{path} is a torch.export archive (.pt2) of an old release, or of several programs",
            expected="one program, as torch.export.save writes it since torch 2.8",
            fix="export it again with this release, or give the checkpoint that it was exported from",
        )
    if "data.pkl" not in entries:
        what = "a NumPy archive (.npz)" if any(name.endswith(".npy") for name in names) else "a zip archive"
        raise UsageError(f"{path} is {what} without PyTorch weights in it", expected=WANTED)
    return Kind.TORCH_ZIP


def _holds_script(entries: set[str]) -> bool:
    return "constants.pkl" in entries or any(entry.startswith("code/") for entry in entries)


def _is_safetensors(path: Path, head: bytes, size: int) -> bool:
    if len(head) < 9 or head[8:9] != b"{":
        return False
    (header,) = struct.unpack("<Q", head[:8])
    if not 2 <= header <= _LARGEST_SAFETENSORS_HEADER:
        return False
    if size < 8 + header:
        raise damaged(path, f"the file has {size} bytes, its header alone {header}")
    return True


def _refusal(path: Path, head: bytes) -> UsageError:
    if head[0] == 0x80 and len(head) > 1 and head[1] in _PICKLE_PROTOCOLS:
        found = f"{path} is a pickle that PyTorch did not write, or the beginning of one"
        return UsageError(found, expected=WANTED, fix=SAVE_STATE_DICT)
    if _is_onnx(head):
        return UsageError(
            f"{path} is an ONNX model, already converted",
            expected=WANTED,
            fix="give the PyTorch checkpoint that it was exported from",
        )
    for offset, magic, what, fix in _FOREIGN:
        if head[offset:].startswith(magic):
            return UsageError(f"{path} is {what}", expected=WANTED, fix=fix)
    if _is_text(head):
        return UsageError(f"{path} is a text file that begins {_beginning(head)!r}", expected=WANTED)
    return UsageError(f"{path} is in no format that is known here", expected=WANTED)


def _is_onnx(head: bytes) -> bool:
    """A ModelProto begins with ir_version (field 1, varint), then a producer, opset, graph or metadata field."""
    return len(head) > 2 and head[0] == 0x08 and 1 <= head[1] <= 32 and head[2] in (0x12, 0x1A, 0x22, 0x3A, 0x42)


def _is_text(head: bytes) -> bool:
    try:
        text = head.decode("utf-8")
    except UnicodeDecodeError as error:
        if error.start < len(head) - 4:  # a character cut off at the end of the head is still text
            return False
        text = head[: error.start].decode("utf-8")
    return all(character.isprintable() or character in "\r\n\t\f" for character in text)


def _beginning(head: bytes) -> str:
    return head.decode("utf-8", errors="replace").strip().partition("\n")[0][:40]
