"""The gate, proven on artifacts that were corrupted on purpose: each is caught, and its slip or its place is named."""

import io
import re
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from deploy.convert.model import Artifact
from tests.validate.models import seeded_tiny
from tests.validate.mutants import DOCUMENT, MUTANTS, Mutant, first_words, to_bfloat16, with_nan
from tests.validate.rig import Rig, convert, image_rig


@pytest.fixture(scope="module")
def rig(tmp_path_factory: pytest.TempPathFactory) -> Rig:
    return image_rig(seeded_tiny(), "tiny", tmp_path_factory.mktemp("rig"))


@pytest.fixture(scope="module")
def clean(rig: Rig) -> Artifact:
    return convert(rig.program, "onnx", rig.folder / "clean")


@pytest.fixture(scope="module")
def archive(rig: Rig) -> Artifact:
    return convert(rig.program, "aoti", rig.folder / "archive")


def test_the_clean_artifact_passes(rig: Rig, clean: Artifact) -> None:
    evidence = rig.judge(clean)
    assert evidence.judgement.passed, evidence.judgement.reason
    assert evidence.reference == "float64"
    assert {output.output for output in evidence.outputs} == {"logits", "coarse"}
    assert all(0 < output.max_multiple < 5 for output in evidence.outputs)
    assert all(output.decisions_compared > 0 for output in evidence.outputs)
    assert evidence.bitwise_repeatable


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.name)
def test_a_mutant_is_caught_and_named(mutant: Mutant, rig: Rig, clean: Artifact, tmp_path: Path) -> None:
    evidence = rig.judge(mutant.make(rig, clean, tmp_path / "mutant"))
    assert not evidence.judgement.passed
    assert evidence.failures[0].check == mutant.check
    words = first_words(evidence)
    assert [word for word in mutant.named if word not in words] == [], words


def test_a_failure_names_output_sample_index_and_both_values(rig: Rig, clean: Artifact, tmp_path: Path) -> None:
    mutant = next(mutant for mutant in MUTANTS if mutant.name == "one weight tensor off by 1e-3")
    failure = rig.judge(mutant.make(rig, clean, tmp_path / "mutant"), seconds=0).failures[0]
    assert failure.output == "logits"
    assert failure.sample is not None and len(failure.index) == 1
    assert failure.reference is not None and failure.found is not None and failure.reference != failure.found
    assert f"{failure.reference:.6g}" in failure.message and f"{failure.found:.6g}" in failure.message


def test_the_table_in_the_documents_lists_these_mutants() -> None:
    rows = re.findall(r"^\| ([^|]+) \| [a-z]+ \|", DOCUMENT.read_text(), flags=re.MULTILINE)
    assert [row for row in rows if row != "mutant"] == [mutant.name for mutant in MUTANTS]


def with_blob(artifact: Artifact, folder: Path, change: Callable[[np.ndarray], np.ndarray]) -> Artifact:
    """A copy of an archive whose packaged weights went through `change`, as one flat array."""
    folder.mkdir()
    with zipfile.ZipFile(artifact.path) as source, zipfile.ZipFile(folder / "model.pt2", "w") as target:
        for entry in source.infolist():
            data = source.read(entry)
            if entry.filename.endswith(".blob"):
                data = change(np.frombuffer(data, np.float32).copy()).astype(np.float32).tobytes()
            target.writestr(entry, data)
    return Artifact(format="aoti", folder=folder, files=("model.pt2",), seconds=0.0, peak_memory=0, details={})


def spoiled(rig: Rig, name: str, change: Callable[[np.ndarray], np.ndarray]) -> Callable[[np.ndarray], np.ndarray]:
    """A change of one tensor where it lies in the blob."""
    import torch

    weights = torch.load(rig.checkpoint.path)[name].numpy()  # noqa: TID251 - written by this test

    def on_blob(blob: np.ndarray) -> np.ndarray:
        size = weights.size
        start = next(at for at in range(len(blob) - size + 1) if np.array_equal(blob[at : at + size], weights.ravel()))
        blob[start : start + size] = change(weights.copy()).ravel()
        return blob

    return on_blob


def test_a_clean_archive_passes(rig: Rig, archive: Artifact) -> None:
    evidence = rig.judge(archive)
    assert evidence.judgement.passed, evidence.judgement.reason
    assert evidence.place is None


@pytest.mark.parametrize(
    ("name", "change", "words"),
    [
        ("mix.weight", lambda array: array * np.float32(1.001), "mix.weight is scaled by 1.001"),
        ("mix.weight", with_nan, "mix.weight holds 1 NaN, the first at [3, 5]"),
        ("head.weight", to_bfloat16, "head.weight is rounded to bfloat16"),
    ],
    ids=["one tensor off by 1e-3", "one NaN", "the head rounded to bfloat16"],
)
def test_wrong_weights_in_an_archive_are_named(
    name: str,
    change: Callable[[np.ndarray], np.ndarray],
    words: str,
    rig: Rig,
    archive: Artifact,
    tmp_path: Path,
) -> None:
    evidence = rig.judge(with_blob(archive, tmp_path / "mutant", spoiled(rig, name, change)))
    assert not evidence.judgement.passed
    assert evidence.place is not None
    assert evidence.place.kind == "constant"
    assert words in evidence.place.message


def test_an_archive_that_is_no_archive_fails_with_the_reason(rig: Rig, tmp_path: Path) -> None:
    buffer = io.BytesIO()
    zipfile.ZipFile(buffer, "w").close()
    (tmp_path / "model.pt2").write_bytes(buffer.getvalue())
    artifact = Artifact(format="aoti", folder=tmp_path, files=("model.pt2",), seconds=0.0, peak_memory=0, details={})
    evidence = rig.judge(artifact)
    assert not evidence.judgement.passed
    assert evidence.failures[0].check == "run"
    assert "could not be loaded" in evidence.judgement.reason
