"""Two versions of a classifier that can be computed by hand: what flips, by how much, and when the limits fire."""

import errno
import json
import subprocess
import sys
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner, Result

from deploy.cli.diff import command
from deploy.errors import ExitCode, MissingError, UnfinishedError, UsageError
from deploy.evidence import Judgement, Verdict
from deploy.release.asked import Asked, Side, gather_rows
from deploy.release.diff import DiffRequest, DiffResult, Race, diff
from deploy.release.difference import Answered, _accuracy, _Decided, _Labels, _numbers
from deploy.release.gates import Limits, judge_gates, overall
from deploy.repository.attest import attestations
from deploy.repository.find import find_version
from deploy.repository.layout import Version
from deploy.repository.manifest import Manifest
from deploy.slo.decision import interval
from deploy.spec import BATCH, Dim
from deploy.targets import find_target
from deploy.validate.difference_records import DiffEvidence, OutputDifference, SizeDifference
from tests.release.versions import put_linear, save_samples
from tests.repository.samples import CLASSES, Sample, classifier
from tests.serve.tiny import PIXELS, Linear

OLD, NEW = Linear(seed=0), Linear(seed=1)
PERMUTED = (2, 0, 1)


@dataclass(frozen=True, slots=True, kw_only=True)
class Reordered(Linear):
    """The same decisions, its classes in another order."""

    @property
    def weight(self) -> np.ndarray:
        return np.random.default_rng(self.seed).normal(size=(PIXELS, 3)).astype(np.float32)[:, PERMUTED]

    @property
    def bias(self) -> np.ndarray:
        return np.arange(3, dtype=np.float32)[list(PERMUTED)]


@dataclass(frozen=True, slots=True, kw_only=True)
class Bent(Linear):
    """The same weights, one class a little more likely."""

    lift: float = 0.0

    @property
    def bias(self) -> np.ndarray:
        return np.array([self.lift, 1.0, 2.0], np.float32)


def test_errors_on_given_rows_count_in_units_too() -> None:
    """Rows of --samples are in no evidence; they were passed over, however far apart the versions were on them."""

    def rows(error: float, scale: float, unit: float | None) -> Answered:
        old = np.full((2, 3), scale, np.float32)
        asked = Asked(
            name="rows", real=True, inputs=(old,), origin=(0, 1), counted=np.ones(2, bool),
            units={} if unit is None else {"scores": unit},
        )  # fmt: skip
        return Answered(asked=asked, before=[old], after=[old + np.float32(error)])

    proven = rows(0.0, 1.0, 1e-6)
    assert _numbers("scores", [proven, rows(0.5, 2.0, None)], 0).eager_multiple == pytest.approx(250_000)
    assert _numbers("scores", [proven, rows(0.0, 2.0, None)], 0).eager_multiple == 0
    assert _numbers("scores", [rows(0.5, 2.0, None)], 0).eager_multiple is None


SIZE = SizeDifference(artifact_before=1, artifact_after=1, total_before=1, total_after=1)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`models/pets`: 1 and 2 alike, 3 another fine-tune, 4 with its classes reordered; and samples."""
    folder = tmp_path_factory.mktemp("diff")
    repository = folder / "models"
    save_samples(folder / "samples.npz")
    save_samples(folder / "labelled.npz", rows=60, seed=4, teacher=NEW)
    for linear in (OLD, OLD, NEW):
        put_linear(repository, linear, samples=folder / "samples.npz")
    reordered = Sample(classes=tuple(CLASSES[index] for index in PERMUTED))
    put_linear(repository, Reordered(seed=0), samples=folder / "samples.npz", sample=reordered, new_contract=True)
    return folder


def compare(folder: Path, old: object, new: object, **given: object) -> DiffResult:
    asked = {"race": None, "threads": 1, "attest": False, **given}
    return diff(DiffRequest(repository=folder / "models", name="pets", old=str(old), new=str(new), **asked))  # type: ignore[arg-type]


@cache
def once(folder: Path, old: int, new: int, *, samples: str | None = None) -> DiffEvidence:
    """The comparison without limits, which several tests look at."""
    return compare(folder, old, new, samples=folder / samples if samples else None).evidence


def judged(evidence: DiffEvidence, limits: Limits) -> Judgement:
    """What limits would have made of it."""
    return overall(judge_gates(limits, answers=evidence.answers, size=evidence.size, slowdown=None))


def decisions(linear: Linear, pixels: np.ndarray) -> np.ndarray:
    found: np.ndarray = linear.outputs(pixels).argmax(1)
    return found


def test_two_builds_of_the_same_weights_differ_in_nothing(folder: Path) -> None:
    limits = Limits(max_flipped_rows=0, max_error=1.0, max_growth=1.0)
    evidence = compare(folder, 1, 2, limits=limits).evidence
    assert (evidence.exit_code, evidence.judgement.verdict) == (ExitCode.OK, Verdict.PASS)
    assert evidence.answers is not None
    (output,) = evidence.answers.outputs
    assert (output.max_error, output.relative_l2, output.eager_multiple) == (0.0, 0.0, 0.0)
    assert output.decisions is not None
    assert (output.decisions.flipped, output.decisions.low) == (0, 0.0)
    assert [change for change in evidence.changes if change.part != "environment"] == []


def test_the_flips_are_those_that_numpy_finds(folder: Path) -> None:
    evidence = once(folder, 1, 3, samples="labelled.npz")
    pixels, truth = (np.load(folder / "labelled.npz")[name] for name in ("image", "labels"))
    answers = evidence.answers
    assert answers is not None
    output = answers.outputs[0]
    assert output.decisions is not None
    old, new = decisions(OLD, pixels), decisions(NEW, pixels)
    found = {flip.row: flip for flip in output.decisions.flips if flip.source == "labelled.npz"}
    assert sorted(found) == np.flatnonzero(old != new).tolist()
    for row, flip in found.items():
        scores = OLD.outputs(pixels)[row]
        assert (flip.before.label, flip.after.label) == (CLASSES[old[row]], CLASSES[new[row]])
        assert flip.before.score == pytest.approx(scores.max(), rel=1e-5)
        assert flip.margin == pytest.approx(np.diff(np.sort(scores))[-1], rel=1e-4)
        assert flip.truth == CLASSES[truth[row]]
    assert output.decisions.rows == 60 + 8
    assert answers.flipped_rows == output.decisions.flipped
    assert (output.decisions.low, output.decisions.high) == interval(output.decisions.flipped, 68, 1 - 0.95)
    assert sum(one.flipped for one in output.decisions.by_class) == output.decisions.flipped
    assert sum(sum(one.became.values()) for one in output.decisions.by_class) == output.decisions.flipped


def test_errors_and_accuracy_are_those_that_numpy_finds(folder: Path) -> None:
    answers = once(folder, 1, 3, samples="labelled.npz").answers
    assert answers is not None
    assert answers.accuracy is not None
    pixels = np.load(folder / "labelled.npz")["image"]
    wrong = int((decisions(OLD, pixels) != decisions(NEW, pixels)).sum())
    assert (answers.accuracy.rows, answers.accuracy.after) == (60, 1.0)
    assert (answers.accuracy.fixed, answers.accuracy.broken) == (wrong, 0)
    assert answers.accuracy.low < answers.accuracy.drop < 0
    assert answers.outputs[0].relative_l2 > 0.1
    assert (answers.outputs[0].eager_multiple or 0) > 1e4


@pytest.mark.parametrize("wrong", [3, -1])
def test_labels_of_no_class_are_refused(wrong: int, folder: Path, tmp_path: Path) -> None:
    """One beyond the last class is what labels that count from 1 have; nobody could be right about them."""
    arrays = dict(np.load(folder / "labelled.npz"))
    arrays["labels"][7] = wrong
    np.savez(tmp_path / "wrong.npz", allow_pickle=False, **arrays)
    with pytest.raises(UsageError, match=rf"'labels' names class {wrong} in row 7, and there are 3"):
        once(folder, 1, 3, samples=str(tmp_path / "wrong.npz"))


def test_a_row_that_two_sources_hold_counts_once(folder: Path) -> None:
    answers = once(folder, 1, 3).answers
    assert answers is not None
    counted = {source.name: source.counted for source in answers.sources}
    assert counted["real rows in the evidence of pets:1"] == 8
    assert counted["real rows in the evidence of pets:3"] == 0
    assert (answers.judged_on, answers.rows) == ("real samples", 8)


def test_a_class_that_only_moved_is_no_flip(folder: Path) -> None:
    evidence = compare(folder, 1, 4).evidence
    assert evidence.answers is not None
    assert evidence.answers.flipped_rows == 0
    assert evidence.answers.outputs[0].max_error > 1
    assert "label 0" in [change.what for change in evidence.changes if change.part == "contract"]


def test_a_class_that_was_added_is_right_where_the_labels_say_so() -> None:
    """Its number beyond the older version's is the only one it has; nobody was right about it before."""
    labels = _Labels(before=CLASSES, after=(*CLASSES, "fox"))
    truth = np.arange(4)
    asked = Asked(name="labelled.npz", real=True, inputs=(), origin=(0, 1, 2, 3), counted=np.ones(4, bool), truth=truth)
    scores = (np.eye(4, 3), np.eye(4))
    decided = _Decided(
        asked=asked, before=np.array([0, 1, 2, 0]), after=truth, moved=labels.moved(truth),
        flipped=np.array([False, False, False, True]), scores=scores, axis=1,
    )  # fmt: skip
    found = _accuracy([decided])
    assert found is not None
    assert (found.before, found.after, found.fixed, found.broken) == (0.75, 1.0, 1, 0)
    assert _Labels(before=CLASSES, after=("fox", "dog", "cat", "eel")).moved(truth).tolist() == [-1, 1, 0, 2]


def test_samples_that_one_version_does_not_take_are_no_reason_to_judge_by_others(folder: Path) -> None:
    """Of one contract, with narrower bounds: the rows in the evidence alone would have decided."""
    old, new = (
        Side(version=version, manifest=Manifest.read(version.manifest), digest="")
        for version in (find_version(folder / "models", f"pets:{number}") for number in (1, 2))
    )
    image = new.manifest.spec.inputs[0]
    narrow = new.manifest.spec.model_copy(
        update={
            "inputs": (image.model_copy(update={"shape": (BATCH, 3, "height", 4)}),),
            "dims": (*new.manifest.spec.dims, Dim(name="height", minimum=1, maximum=3)),
        }
    )
    newer = replace(new, manifest=new.manifest.model_copy(update={"spec": narrow}))
    with pytest.raises(UsageError, match=r"samples\.npz does not fit pets:2: .*\[1, 3, 4, 4\](.|\n)*height in 1\.\.3"):
        gather_rows((old, newer), folder / "samples.npz")
    assert gather_rows((old, new), folder / "samples.npz")[0].name == "samples.npz"


def test_without_real_rows_the_seeded_ones_are_judged_and_that_is_said(tmp_path: Path) -> None:
    for linear in (OLD, NEW):
        put_linear(tmp_path / "models", linear)
    answers = compare(tmp_path, 1, 2).evidence.answers
    assert answers is not None
    assert answers.judged_on == "seeded inputs"
    assert answers.flipped_rows > 0


@pytest.mark.parametrize(
    ("limits", "verdict", "words"),
    [
        (Limits(max_flipped_rows=0), Verdict.FAIL, "flip, 0 may"),
        (Limits(max_flips=0.02), Verdict.FAIL, "of decisions flip"),
        (Limits(max_flips=0.99), Verdict.PASS, "of decisions flip"),
        (Limits(max_error=10.0), Verdict.FAIL, "times eager's own error apart"),
        (Limits(max_accuracy_drop=0.0), Verdict.PASS, "accuracy goes from"),
        (Limits(max_growth=0.5), Verdict.FAIL, "times the"),
        (Limits(max_flips=0.99, max_growth=0.5), Verdict.FAIL, "max_growth"),
    ],
    ids=str,
)
def test_a_limit_fires(folder: Path, limits: Limits, verdict: Verdict, words: str) -> None:
    judgement = judged(once(folder, 1, 3, samples="labelled.npz"), limits)
    assert judgement.verdict is verdict
    assert words in judgement.reason


@pytest.mark.parametrize("limits", [Limits(max_flips=0.9), Limits(max_flipped_rows=1000)])
def test_decisions_that_cannot_be_compared_are_not_taken_for_kept(folder: Path, limits: Limits) -> None:
    """An output of another shape, or that is gone, flips nothing that could be counted."""
    answers = once(folder, 1, 2).answers
    assert answers is not None
    gone = OutputDifference(output="boxes", incomparable="only the older version has it", decisions_lost=True)
    lost = answers.model_copy(update={"outputs": (*answers.outputs, gone)})
    found = [judge_gates(limits, answers=one, size=SIZE, slowdown=None)[0].judgement for one in (answers, lost)]
    assert [one.verdict for one in found] == [Verdict.PASS, Verdict.UNDECIDED]
    assert found[1].reason == "the decisions of boxes cannot be compared"


def test_accuracy_that_falls_fails_and_few_samples_decide_nothing(folder: Path) -> None:
    back = compare(folder, 3, 1, samples=folder / "labelled.npz", limits=Limits(max_accuracy_drop=0.05)).evidence
    assert (back.judgement.verdict, back.exit_code) == (Verdict.FAIL, ExitCode.NO)
    few = compare(folder, 1, 2, limits=Limits(max_flips=0.05)).evidence
    assert (few.judgement.verdict, few.exit_code) == (Verdict.UNDECIDED, ExitCode.NO)
    unlabelled = judged(once(folder, 1, 3), Limits(max_accuracy_drop=0.5))
    assert unlabelled.verdict is Verdict.UNDECIDED
    assert "labels" in unlabelled.reason


def test_what_is_nan_in_one_version_only_is_a_flip_and_fails_the_error(tmp_path: Path) -> None:
    save_samples(tmp_path / "samples.npz")
    for linear in (OLD, Bent(seed=0, lift=float("nan"))):
        put_linear(tmp_path / "models", OLD, artifact=linear.onnx(), samples=tmp_path / "samples.npz")
    evidence = compare(tmp_path, 1, 2, limits=Limits(max_error=1e9)).evidence
    assert evidence.answers is not None
    assert evidence.answers.flipped_rows == evidence.answers.rows == 8
    assert "not finite in one version only" in evidence.judgement.reason


def test_a_changed_artifact_is_refused_before_it_is_loaded(tmp_path: Path) -> None:
    for linear in (OLD, NEW):
        put_linear(tmp_path / "models", linear)
    (tmp_path / "models/pets/1/model.onnx").write_bytes(b"no graph")
    with pytest.raises(UsageError, match=r"model\.onnx has changed"):
        compare(tmp_path, 1, 2)


def test_an_artifact_that_cannot_be_loaded_is_unfinished(tmp_path: Path) -> None:
    put_linear(tmp_path / "models", OLD)
    put_linear(tmp_path / "models", OLD, artifact=b"no graph")
    with pytest.raises(UnfinishedError, match="answers of version 2"):
        compare(tmp_path, 1, 2)


def test_versions_that_take_other_inputs_are_compared_in_what_they_say(tmp_path: Path) -> None:
    put_linear(tmp_path / "models", OLD)
    put_linear(tmp_path / "models", OLD, sample=Sample(spec=classifier(side=5)), new_contract=True)
    evidence = compare(tmp_path, 1, 2, race=Race(), limits=Limits(max_slowdown=1.1, max_flips=0.5)).evidence
    assert (evidence.answers, evidence.latency) == (None, None)
    assert evidence.judgement.verdict is Verdict.UNDECIDED
    assert "pets:2 takes" in evidence.left_out["answers"]
    assert [change.what for change in evidence.changes if change.part == "contract"] == ["input INPUT__0 shape"]


def test_what_cannot_be_asked_is_refused(folder: Path) -> None:
    with pytest.raises(UsageError, match="compared with itself"):
        compare(folder, "promoted", 1)
    with pytest.raises(UsageError, match="pets has no version 9"):
        compare(folder, 9, 1)
    with pytest.raises(UsageError, match=r"'new' names no version of pets(.|\n)*1, 2, 3, 4, or promoted"):
        compare(folder, 1, "new")
    with pytest.raises(UsageError, match="latency left out"):
        compare(folder, 1, 2, limits=Limits(max_slowdown=1.1))
    with pytest.raises(UsageError, match="use --max-flipped-rows 0"):
        compare(folder, 1, 2, limits=Limits(max_flips=0.0))


def for_gpu(version: Version) -> None:
    """Make a version say that it is built for a GPU."""
    manifest = Manifest.read(version.manifest)
    manifest.model_copy(update={"target": find_target("26.08-cuda-sm90")}).write(version.manifest)


def test_a_graph_for_a_gpu_that_is_not_here_is_asked_on_the_cpu_and_that_is_said(tmp_path: Path) -> None:
    for linear in (OLD, NEW):
        for_gpu(put_linear(tmp_path / "models", linear))
    evidence = compare(tmp_path, 1, 2, race=Race(sizes=(1,), seconds_per_cell=0.02)).evidence
    assert evidence.answers is not None
    assert evidence.answers.flipped_rows > 0
    assert evidence.latency is None
    said = "pets:1 is built for cuda (target 26.08-cuda-sm90), and this run is on the CPU"
    assert evidence.left_out == {"answers on the GPU": said, "latency": said}
    with pytest.raises(MissingError, match="so that no slowdown can be shown"):
        compare(tmp_path, 1, 2, race=Race(), limits=Limits(max_slowdown=1.1))


def test_machine_code_for_a_device_that_is_not_here_is_refused(tmp_path: Path) -> None:
    put_linear(tmp_path / "models", OLD)
    for_gpu(put_linear(tmp_path / "models", NEW, sample=Sample(format="aoti"), new_contract=True))
    with pytest.raises(MissingError, match="pets:2 is built for cuda"):
        compare(tmp_path, 1, 2)


def test_what_versions_say_of_themselves_is_compared(tmp_path: Path) -> None:
    put_linear(tmp_path / "models", OLD)
    put_linear(tmp_path / "models", OLD, sample=Sample(spec=classifier(max_batch=16), classes=(*CLASSES,)))
    path = tmp_path / "models/pets/2/manifest.json"
    manifest = Manifest.read(path)
    other = manifest.checkpoint.model_copy(update={"sha256": "1" * 64, "architecture": "torchvision/resnet34"})
    environment = manifest.environment.model_copy(update={"onnxruntime": "9.9"})
    manifest.model_copy(update={"checkpoint": other, "environment": environment}).write(path)
    evidence = compare(tmp_path, 1, 2).evidence
    found = {(change.part, change.what): (change.before, change.after) for change in evidence.changes}
    assert found["contract", "bounds of batch"] == ("1..8", "1..16")
    assert found["config", "max_batch_size"] == ("8", "16")
    assert found["checkpoint", "architecture"] == ("torchvision/resnet18", "torchvision/resnet34")
    assert found["environment", "onnxruntime"][1] == "9.9"
    assert not [what for part, what in found if part in ("target", "preprocessing", "labels")]


def test_the_race_is_that_of_bench_and_the_result_is_kept(folder: Path) -> None:
    race = Race(sizes=(1,), seconds_per_cell=0.02)
    result = compare(folder, "promoted", 3, race=race, limits=Limits(max_slowdown=50.0), attest=True)
    evidence = result.evidence
    assert evidence.latency is not None
    assert {cell.contender for cell in evidence.latency.cells} == {"onnx v1", "onnx v1 (A/A)", "onnx v3"}
    assert [gate.name for gate in evidence.gates] == ["max_slowdown"]
    assert (evidence.version, evidence.compared) == ("pets:3", "pets:1")
    (kept,) = attestations(find_version(folder / "models", "pets:3"))
    assert (kept.kind, kept.path) == ("diff", result.attestation)
    assert DiffEvidence.read(kept.path) == evidence


def invoke(*arguments: object) -> Result:
    return CliRunner().invoke(command, [str(argument) for argument in arguments])


def test_the_command_in_words_and_markdown(folder: Path, tmp_path: Path) -> None:
    options = ("--no-latency", "--no-attest", "--threads", 1)
    summary = tmp_path / "diff.md"
    result = invoke(folder / "models", "pets", 1, 3, *options, "--max-flipped-rows", 0, "--markdown", summary)
    assert result.exit_code == ExitCode.NO, result.output
    assert "FAIL  pets:1 -> pets:3" in result.stdout
    assert "--max-flipped-rows" in result.stdout
    assert summary.read_text().startswith("## ❌ FAIL: pets:1 → pets:3\n")
    assert "| sample | output | before | after | margin before | truth |" in summary.read_text()
    same = invoke(folder / "models", "pets", 1, 2, *options)
    assert (same.exit_code, "COMPARED  pets:1 -> pets:2" in same.stdout) == (ExitCode.OK, True)
    assert "no limit was asked for" in same.stdout


def test_options_that_do_not_go_together_are_refused(folder: Path) -> None:
    for options, words in (
        (("--no-latency", "--batch", 1), "--batch was given and latency left out"),
        (("--no-latency", "--max-slowdown", 1.1), "a slowdown was limited and latency left out"),
    ):
        result = invoke(folder / "models", "pets", 1, 2, *options)
        assert isinstance(result.exception, UsageError)
        assert words in str(result.exception)


def test_a_result_that_cannot_be_kept_is_shown_all_the_same(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(path: Path, data: bytes) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", str(path))

    monkeypatch.setattr("deploy.repository.attest.write_new", full)
    result = invoke(folder / "models", "pets", 1, 3, "--no-latency", "--threads", 1, "--json")
    assert result.exit_code == ExitCode.UNFINISHED
    assert "keeping the result of diff beside pets:3" in result.stderr
    printed = json.loads(result.stdout)
    assert "keeping the result of diff beside pets:3" in printed["error"]["found"], "machines read one object"
    assert (printed["exit_code"], printed["attestation"]) == (ExitCode.UNFINISHED, None)
    assert printed["answers"]["outputs"][0]["decisions"]["flipped"] > 0


PROBE = """
import sys
from deploy.cli.main import cli
code = cli.main(sys.argv[1:], standalone_mode=False)
heavy = [name for name in ("torch", "onnx", "onnxruntime", "torchvision") if name in sys.modules]
print(code, heavy, file=sys.stderr)
"""


def test_the_process_of_the_command_imports_no_runtime_and_prints_one_json_object(folder: Path) -> None:
    arguments = ["diff", str(folder / "models"), "pets", "1", "3", "--no-latency", "--no-attest", "--json"]
    call = [sys.executable, "-c", PROBE, *arguments]
    result = subprocess.run(call, capture_output=True, text=True, check=True)
    assert result.stderr.splitlines()[-1] == "0 []"
    printed = json.loads(result.stdout)
    assert (printed["exit_code"], printed["version"], printed["attestation"]) == (0, "pets:3", None)
    assert printed["answers"]["outputs"][0]["decisions"]["flipped"] > 0
