"""A manifest holds every file's digest, tells what was changed, and keeps no local path."""

from collections.abc import Callable
from pathlib import Path

import pytest

from deploy.errors import UsageError
from deploy.evidence import Judgement, Verdict
from deploy.repository.manifest import (
    Environment,
    FileEntry,
    Manifest,
    Verdicts,
    changed_files,
    created_now,
    verify_files,
    version_digest,
)
from tests.repository.samples import FAIL, PASS, UNDECIDED, WEIGHTS, Sample, classifier, put

FIRST_MANIFEST = Path(__file__).with_name("first_manifest.json")


def test_every_file_but_the_manifest_is_listed(tmp_path: Path) -> None:
    folder = put(tmp_path / "models").version.folder
    manifest = verify_files(folder)
    assert [entry.path for entry in manifest.files] == [
        "config.pbtxt",
        "evidence/parity.json",
        "labels.txt",
        "model.onnx",
    ]
    assert manifest.wire == {"INPUT__0": "image", "OUTPUT__0": "scores"}


def test_the_checkpoint_is_kept_by_file_name_only(tmp_path: Path) -> None:
    folder = put(tmp_path / "models").version.folder
    assert Manifest.read(folder / "manifest.json").checkpoint.file == "pets.pt"
    assert "private" not in (folder / "manifest.json").read_text()


def test_a_manifest_of_before_targets_had_a_gpu_is_still_read() -> None:
    manifest = Manifest.read(FIRST_MANIFEST)
    assert (manifest.target.name, manifest.target.opset, manifest.target.aoti.batches) == ("26.06-cpu", 25, True)
    assert (manifest.target.sm, manifest.target.torch, manifest.target.latency_histograms) == (None, None, None)


DAMAGE: dict[str, tuple[Callable[[Path], object], str]] = {
    "one bit": (
        lambda f: (f / "model.onnx").write_bytes(WEIGHTS.replace(b"weights", b"weighTs")),
        "model.onnx has changed",
    ),
    "longer": (lambda f: (f / "labels.txt").write_text("more\n" * 9), "labels.txt has changed"),
    "gone": (lambda f: (f / "evidence/parity.json").unlink(), "evidence/parity.json is missing"),
    "new": (lambda f: (f / "extra.so").write_bytes(b""), "extra.so is not in the manifest"),
}


@pytest.mark.parametrize(("damage", "message"), DAMAGE.values(), ids=DAMAGE.keys())
def test_a_changed_file_is_named(tmp_path: Path, damage: Callable[[Path], object], message: str) -> None:
    folder = put(tmp_path / "models").version.folder
    damage(folder)
    with pytest.raises(UsageError, match=message):
        verify_files(folder)
    assert changed_files(folder, Manifest.read(folder / "manifest.json")) == (message,)


def test_links_are_refused_even_to_equal_bytes(tmp_path: Path) -> None:
    folder = put(tmp_path / "models").version.folder
    model = folder / "model.onnx"
    model.rename(tmp_path / "elsewhere")
    model.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(UsageError, match=r"model\.onnx is a link"):
        verify_files(folder)
    (tmp_path / "other").symlink_to(folder)
    with pytest.raises(UsageError, match="other is a link"):
        verify_files(tmp_path / "other")


@pytest.mark.parametrize("path", ["/etc/passwd", "../2/model.onnx", "a/../../b", "", "./a"])
def test_an_entry_cannot_leave_the_version(path: str) -> None:
    with pytest.raises(ValueError, match="does not stay in the version"):
        FileEntry(path=path, sha256="0" * 64, size=0)


def test_the_digest_of_a_version_moves_with_any_file(tmp_path: Path) -> None:
    one = put(tmp_path / "a" / "models")
    two = put(tmp_path / "b" / "models", Sample(weights=b"others"))
    assert one.digest == version_digest(one.version.folder)
    assert one.digest != two.digest


def test_a_manifest_reads_back_as_it_was(tmp_path: Path) -> None:
    manifest = Sample(spec=classifier(max_batch=4)).manifest()
    manifest.write(tmp_path / "manifest.json")
    assert Manifest.read(tmp_path / "manifest.json") == manifest


def test_source_date_epoch_is_the_time_of_creation(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "86400")
    assert created_now() == "1970-01-02T00:00:00Z"
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "yesterday")
    with pytest.raises(UsageError, match="SOURCE_DATE_EPOCH is 'yesterday'"):
        created_now()


def test_two_runs_are_equal_under_source_date_epoch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "1700000000")
    models = [put(tmp_path / run / "models").version.model_folder for run in ("a", "b")]
    contents = [{str(p.relative_to(m)): p.read_bytes() for p in m.rglob("*") if p.is_file()} for m in models]
    assert len(contents[0]) == 7
    assert contents[0] == contents[1]


def test_the_environment_is_read_without_importing_anything() -> None:
    here = Environment.here()
    assert here.torch is not None
    assert here.torch.startswith("2.")
    assert here.cores >= 1
    assert here.cpu


@pytest.mark.parametrize(
    ("verdicts", "blocked"),
    [
        (Verdicts(parity=PASS, architecture=UNDECIDED, served=PASS), ()),
        (Verdicts(parity=PASS, architecture=PASS, latency=UNDECIDED, served=PASS), ()),
        (Verdicts(parity=FAIL, architecture=PASS, served=PASS), ("parity",)),
        (Verdicts(parity=UNDECIDED, architecture=PASS, served=PASS), ("parity",)),
        (Verdicts(parity=PASS, architecture=FAIL, served=PASS), ("architecture",)),
        (Verdicts(parity=PASS, architecture=PASS, latency=FAIL, served=PASS), ("latency",)),
        (Verdicts(parity=PASS, architecture=PASS, served=FAIL), ("served",)),
        (Verdicts(parity=PASS, architecture=PASS), ("served",)),
    ],
)
def test_what_blocks_a_release(verdicts: Verdicts, blocked: tuple[str, ...]) -> None:
    manifest = Sample().manifest().model_copy(update={"verdicts": verdicts})
    assert tuple(reason.partition(":")[0] for reason in manifest.blockers()) == blocked


def test_a_skipped_served_check_and_an_accepted_failure_do_not_block() -> None:
    skipped = {"served_check": "skipped", "verdicts": Verdicts(parity=PASS, architecture=PASS)}
    assert Sample().manifest().model_copy(update=skipped).blockers() == ()
    assert Sample(parity=FAIL, unsafe_accepted=("parity",)).manifest().blockers() == ()
    late = Judgement(verdict=Verdict.FAIL, reason="served answers differ")
    both = Verdicts(parity=FAIL, architecture=PASS, served=late)
    assert Sample(unsafe_accepted=("parity",)).manifest().model_copy(update={"verdicts": both}).blockers() == (
        "served: served answers differ",
    )
