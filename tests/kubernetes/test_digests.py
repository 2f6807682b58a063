"""The check that runs before the server, run as it runs in a pod: clean files pass, and every change is refused."""

import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from deploy.kubernetes.digests import CHECK_FILE, lists
from tests.kubernetes.example import NAME, REPOSITORIES, example

MODEL = Path(NAME)
VERSION = MODEL / "1"
# What Triton would load in place of its own.
BACKEND = "libtriton_onnxruntime.so"


def run_check(repository: Path, files: Path) -> subprocess.CompletedProcess[str]:
    """`sh check.sh REPOSITORY LISTS MODEL NUMBER`, the lists written as the ConfigMap holds them."""
    for name, text in lists(example("cpu").plan.model).items():
        (files / name).parent.mkdir(parents=True, exist_ok=True)
        (files / name).write_text(text)
    command = ["/bin/sh", str(files / CHECK_FILE), str(repository), str(files), NAME, "1"]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    return Path(shutil.copytree(REPOSITORIES / "cpu", tmp_path / "models"))


def test_what_was_proven_may_be_served(repository: Path, tmp_path: Path) -> None:
    result = run_check(repository, tmp_path / "lists")
    assert (result.returncode, result.stderr) == (0, "")
    assert f"{NAME}:1: every file is the one that was proven" in result.stdout


def test_an_image_that_holds_only_what_is_served_passes(repository: Path, tmp_path: Path) -> None:
    """Evidence and manifest stay behind where an image is built."""
    shutil.rmtree(repository / VERSION / "evidence")
    (repository / VERSION / "manifest.json").unlink()
    (repository / "README.md").write_text("Triton takes folders for models, and only them.")
    assert run_check(repository, tmp_path / "lists").returncode == 0


def test_other_versions_and_what_was_learnt_are_not_loaded_and_may_stay(repository: Path, tmp_path: Path) -> None:
    shutil.copytree(repository / VERSION, repository / MODEL / "2")
    (repository / MODEL / "2" / "model.onnx").write_bytes(b"another")
    (repository / MODEL / "attestations").mkdir()
    (repository / MODEL / "attestations" / "slo.json").write_text("{}")
    assert run_check(repository, tmp_path / "lists").returncode == 0


def flip_a_bit(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def replace_by_link(path: Path) -> None:
    elsewhere = path.rename(path.parents[2] / "elsewhere")
    path.symlink_to(elsewhere)


BROKEN: list[tuple[str, Callable[[Path], object], str]] = [
    ("a flipped bit", lambda r: flip_a_bit(r / VERSION / "model.onnx"), "not those that were proven"),
    ("other labels", lambda r: (r / VERSION / "labels.txt").write_text("x\n"), "not those that were proven"),
    ("another sample", lambda r: flip_a_bit(next((r / MODEL / "warmup").iterdir())), "not those that were proven"),
    ("a file is gone", lambda r: (r / VERSION / "model.onnx").unlink(), "not those that were proven"),
    ("the model is gone", lambda r: shutil.rmtree(r / MODEL), "not those that were proven"),
    ("a link", lambda r: replace_by_link(r / VERSION / "model.onnx"), "links may point elsewhere"),
    ("a linked folder", lambda r: (r / MODEL / "warmup" / "x").symlink_to(r), "links may point elsewhere"),
    ("a backend in the version", lambda r: (r / VERSION / BACKEND).touch(), BACKEND),
    ("a backend beside it", lambda r: (r / MODEL / BACKEND).touch(), BACKEND),
    ("code deep inside", lambda r: shutil.copytree(r / MODEL / "warmup", r / VERSION / "a b"), "a b/"),
    ("a second sample", lambda r: (r / MODEL / "warmup" / "other").touch(), "warmup/other"),
    ("another model", lambda r: shutil.copytree(r / MODEL, r / "other"), "more than"),
    ("a hidden model", lambda r: shutil.copytree(r / MODEL, r / ".other"), "more than"),
    ("a linked model", lambda r: (r / "other").symlink_to(r / MODEL), "more than"),
]  # fmt: skip


@pytest.mark.parametrize(("change", "words"), [one[1:] for one in BROKEN], ids=[one[0] for one in BROKEN])
def test_what_was_not_proven_is_not_served(
    change: Callable[[Path], object], words: str, repository: Path, tmp_path: Path
) -> None:
    change(repository)
    result = run_check(repository, tmp_path / "lists")
    assert result.returncode == 1
    assert words in result.stderr


def test_without_its_lists_nothing_passes(repository: Path, tmp_path: Path) -> None:
    run_check(repository, tmp_path / "lists")
    for name in ("models.sha256", "models.paths"):
        (tmp_path / "lists" / name).rename(tmp_path / name)
        command = ["/bin/sh", str(tmp_path / "lists" / CHECK_FILE), str(repository), str(tmp_path / "lists"), NAME, "1"]
        assert subprocess.run(command, capture_output=True, check=False).returncode == 1
        (tmp_path / name).rename(tmp_path / "lists" / name)


def test_an_empty_list_proves_nothing(repository: Path, tmp_path: Path) -> None:
    run_check(repository, tmp_path / "lists")
    (tmp_path / "lists" / "models.sha256").write_text("")
    command = ["/bin/sh", str(tmp_path / "lists" / CHECK_FILE), str(repository), str(tmp_path / "lists"), NAME, "1"]
    assert subprocess.run(command, capture_output=True, check=False).returncode == 1
