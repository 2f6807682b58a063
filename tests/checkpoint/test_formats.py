"""Each thing that is not a checkpoint gets its own message; each container of weights is read."""

import argparse
import fractions
import io
import pickle
import random
import sys
import tarfile
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import numpy as np
import onnx
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from deploy.checkpoint.formats import read_stored
from deploy.checkpoint.sniff import Kind, recognise
from deploy.errors import ExitCode, UsageError

STATE = {"weight": torch.arange(6.0).reshape(2, 3), "bias": torch.ones(2)}


class Tiny(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 2)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = self.layer(image)
        return result


def refusal(path: Path, *, trust_pickle: bool = False) -> str:
    with pytest.raises(UsageError) as caught:
        read_stored(path, trust_pickle=trust_pickle)
    assert caught.value.exit_code is ExitCode.USAGE
    return str(caught.value)


def put_torchscript(path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.save(torch.jit.trace(Tiny(), torch.zeros(1, 3)), str(path))


def put_exported(path: Path) -> None:
    torch.export.save(torch.export.export(Tiny(), (torch.zeros(1, 3),)), path)


def put_onnx(path: Path) -> None:
    value = onnx.helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, [1])
    graph = onnx.helper.make_graph([onnx.helper.make_node("Identity", ["x"], ["y"])], "g", [value], [value])
    onnx.save(onnx.helper.make_model(graph), path)


def put_truncated(path: Path) -> None:
    torch.save(STATE, path)
    path.write_bytes(path.read_bytes()[:-200])


def put_truncated_legacy(path: Path) -> None:
    torch.save(STATE, path, _use_new_zipfile_serialization=False)
    path.write_bytes(path.read_bytes()[:-20])


def put_truncated_safetensors(path: Path) -> None:
    save_file(STATE, path)
    path.write_bytes(path.read_bytes()[:-4])


def put_header_only(path: Path) -> None:
    save_file(STATE, path)
    path.write_bytes(path.read_bytes()[:40])


def put_npz(path: Path) -> None:
    with path.open("wb") as stream:
        np.savez(stream, a=np.ones(2))


def put_zip(path: Path) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("readme.txt", "nothing")


def put_tar(path: Path) -> None:
    with tarfile.open(path, "w") as archive:
        archive.addfile(tarfile.TarInfo("model_weights.ckpt"))


UNUSABLE: dict[str, tuple[Callable[[Path], object], list[str]]] = {
    "absent": (lambda path: None, ["does not exist"]),
    "empty": (lambda path: path.write_bytes(b""), ["is empty (0 bytes)"]),
    "truncated zip": (put_truncated, ["truncated or damaged"]),
    "truncated legacy": (put_truncated_legacy, ["truncated or damaged"]),
    "truncated safetensors": (put_truncated_safetensors, ["truncated or damaged"]),
    "safetensors header": (put_header_only, ["truncated or damaged"]),
    "text": (lambda path: path.write_text("epoch,loss\n1,0.5\n"), ["text file that begins 'epoch,loss'"]),
    "long text": (lambda path: path.write_text("é" * 4095), ["text file that begins 'ééé"]),
    "lfs pointer": (
        lambda path: path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\n"),
        ["Git LFS pointer", "git lfs pull"],
    ),
    "bare tensor": (lambda path: torch.save(torch.ones(2, 3), path), ["bare tensor of shape [2, 3]", "state_dict"]),
    "list": (lambda path: torch.save([torch.ones(2)], path), ["a list of 1 items"]),
    "number": (lambda path: torch.save(3, path), ["holds an object of type int"]),
    "torchscript": (put_torchscript, ["TorchScript archive", "torch.jit.load", "state_dict()"]),
    "exported program": (put_exported, ["torch.export program rather than weights"]),
    "onnx": (put_onnx, ["ONNX model", "exported from"]),
    "plain pickle": (lambda path: path.write_bytes(pickle.dumps({"a": 1})), ["PyTorch did not write"]),
    "whole module": (lambda path: torch.save(Tiny(), path), ["whole pickled module", "Tiny", "state_dict()"]),
    "needs a type": (
        lambda path: torch.save({"state_dict": STATE, "rate": fractions.Fraction(1, 3)}, path),
        ["fractions.Fraction", "--trust-pickle"],
    ),
    "needs a type, legacy": (
        lambda path: torch.save({"rate": fractions.Fraction(1, 3)}, path, _use_new_zipfile_serialization=False),
        ["fractions.Fraction", "--trust-pickle"],
    ),
    "npz": (put_npz, ["NumPy archive"]),
    "zip": (put_zip, ["a zip archive without PyTorch weights"]),
    "hdf5": (lambda path: path.write_bytes(b"\x89HDF\r\n\x1a\n" + bytes(64)), ["HDF5"]),
    "tar": (put_tar, ["tar archive", "unpack it"]),
    "zstd": (lambda path: path.write_bytes(b"\x28\xb5\x2f\xfd" + bytes(64)), ["a Zstandard archive"]),
    "noise": (lambda path: path.write_bytes(bytes(range(200, 256)) * 9), ["no format that is known"]),
}


@pytest.mark.parametrize("what", UNUSABLE)
def test_what_is_not_a_checkpoint_is_named(what: str, tmp_path: Path) -> None:
    path = tmp_path / "given.pt"
    put, words = UNUSABLE[what]
    put(path)
    message = refusal(path)
    assert str(path) in message
    assert [word for word in words if word not in message] == []


def test_different_things_are_refused_in_different_words() -> None:
    first_words = {what: words[0] for what, (_, words) in UNUSABLE.items()}
    shared = [words for words in first_words.values() if list(first_words.values()).count(words) > 1]
    assert set(shared) == {"truncated or damaged", "fractions.Fraction"}


def test_a_directory_names_the_files_in_it(tmp_path: Path) -> None:
    (tmp_path / "weights.safetensors").touch()
    message = refusal(tmp_path)
    assert "is a directory that holds weights.safetensors" in message


def test_a_directory_of_several_checkpoints_names_them(tmp_path: Path) -> None:
    for step in (500, 1000):
        (tmp_path / f"checkpoint-{step}").mkdir()
        (tmp_path / f"checkpoint-{step}" / "model.safetensors").touch()
    assert "holds checkpoint-1000/model.safetensors, checkpoint-500/model.safetensors" in refusal(tmp_path)


@pytest.mark.parametrize("name", ["weights.pt", "weights.safetensors", "weights.txt"])
def test_the_content_decides_not_the_suffix(name: str, tmp_path: Path) -> None:
    torch.save(STATE, tmp_path / name)
    assert recognise(tmp_path / name) is Kind.TORCH_ZIP
    save_file(STATE, tmp_path / name)
    assert recognise(tmp_path / name) is Kind.SAFETENSORS


@pytest.mark.parametrize("zipped", [True, False])
def test_torch_files_old_and_new_are_read(zipped: bool, tmp_path: Path) -> None:
    path = tmp_path / "weights.pth"
    torch.save(STATE, path, _use_new_zipfile_serialization=zipped)
    stored = read_stored(path)
    assert stored.format == "torch"
    assert torch.equal(stored.content["weight"], STATE["weight"])


def test_a_zip_is_mapped_into_memory_and_not_copied(tmp_path: Path) -> None:
    path = tmp_path / "mapped.pt"
    torch.save({"weight": torch.zeros(1000, 1000)}, path)
    kept = read_stored(path)
    assert str(path) in Path("/proc/self/maps").read_text()
    assert kept.content["weight"].shape == (1000, 1000)


def test_safetensors_keep_their_metadata(tmp_path: Path) -> None:
    path = tmp_path / "weights.safetensors"
    save_file(STATE, path, metadata={"classes": '["cat", "dog"]'})
    stored = read_stored(path)
    assert stored.format == "safetensors"
    assert stored.metadata == {"classes": '["cat", "dog"]'}
    assert torch.equal(stored.content["bias"], STATE["bias"])


def test_numpy_scalars_beside_the_weights_are_harmless(tmp_path: Path) -> None:
    path = tmp_path / "best.pth"
    torch.save({"state_dict": STATE, "best_accuracy": np.float64(0.93), "epoch": np.int64(3)}, path)
    assert read_stored(path).content["best_accuracy"] == 0.93


def test_settings_and_paths_beside_the_weights_are_harmless(tmp_path: Path) -> None:
    path = tmp_path / "reference.pth"
    torch.save({"model": STATE, "args": argparse.Namespace(lr=0.1), "data": Path("images")}, path)
    content = read_stored(path).content
    assert (content["args"].lr, str(content["data"])) == (0.1, "images")


def test_trust_pickle_reads_other_types(tmp_path: Path) -> None:
    path = tmp_path / "training.pth"
    torch.save({"state_dict": STATE, "rate": fractions.Fraction(1, 3)}, path)
    assert read_stored(path, trust_pickle=True).content["rate"].denominator == 3


def test_trust_pickle_still_refuses_a_whole_module(tmp_path: Path) -> None:
    path = tmp_path / "module.pth"
    torch.save(Tiny(), path)
    assert "Tiny" in refusal(path, trust_pickle=True)


def test_trust_pickle_explains_a_type_that_is_not_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "elsewhere.pth"
    monkeypatch.setitem(sys.modules, "training_code", module := ModuleType("training_code"))
    monkeypatch.setattr(module, "Settings", settings := type("Settings", (), {"__module__": "training_code"}), False)
    torch.save({"state_dict": STATE, "settings": settings()}, path)
    monkeypatch.delitem(sys.modules, "training_code")
    assert "training_code.Settings" in refusal(path)
    message = refusal(path, trust_pickle=True)
    assert "ModuleNotFoundError: No module named 'training_code'" in message
    assert "where the training code is" in message


def test_a_tensor_that_this_torchao_does_not_know_is_refused_by_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, name = tmp_path / "quantized.pth", "torchao.gone"
    monkeypatch.setitem(sys.modules, name, module := ModuleType(name))
    monkeypatch.setattr(module, "Int8Tensor", quantized := type("Int8Tensor", (), {"__module__": name}), False)
    torch.save({"weight": quantized()}, path)
    assert "torchao has quantized (torchao.gone.Int8Tensor), which the torchao here does not know" in refusal(path)


def test_nothing_runs_without_trust(tmp_path: Path) -> None:
    path, witness = tmp_path / "evil.pth", tmp_path / "witness"
    torch.save({"state_dict": _Evil(witness)}, path)
    message = refusal(path)
    assert "io.open" in message or "_io.open" in message
    assert not witness.exists()


@pytest.mark.parametrize("kind", ["zip", "legacy", "safetensors"])
def test_damaged_bytes_are_refused_or_harmless_but_never_a_traceback(kind: str, tmp_path: Path) -> None:
    whole = tmp_path / "whole"
    if kind == "safetensors":
        save_file(STATE, whole)
    else:
        torch.save({"state_dict": STATE}, whole, _use_new_zipfile_serialization=kind == "zip")
    data, chance, refused = whole.read_bytes(), random.Random(0), 0
    for number in range(80):
        damaged = bytearray(data)
        for _ in range(6):
            damaged[chance.randrange(min(len(data), 900))] = chance.randrange(256)
        path = tmp_path / f"damaged_{number}"  # a new file each time: the one before may still be mapped
        path.write_bytes(damaged)
        try:
            read_stored(path)
        except UsageError:
            refused += 1
    assert refused > 30


class _Evil:
    def __init__(self, witness: Path) -> None:
        self.witness = witness

    def __reduce__(self) -> tuple[object, ...]:
        return io.open, (str(self.witness), "w")
