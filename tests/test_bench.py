"""Benching published versions of the tiny net: against eager, against a version that is truly slower, and refusals."""

import errno
import io
import json
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from operator import mul
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from rich.console import Console

from deploy.bench import BenchRequest, BenchResult, bench
from deploy.checkpoint.model import CheckpointRequest
from deploy.cli.bench import command
from deploy.errors import ExitCode, MissingError, UsageError
from deploy.evidence import Judgement, Verdict
from deploy.files import sha256_file
from deploy.latency_evidence import (
    CONTROL,
    EAGER,
    BenchEvidence,
    LatencyEvidence,
    LatencyRatio,
    LostContender,
    control_of,
)
from deploy.progress import Silent
from deploy.report.terminal import latency_table
from deploy.repository.attest import attestations
from deploy.repository.find import find_version
from deploy.repository.manifest import version_digest
from deploy.validate.contenders import SimulatedContender
from deploy.validate.latency import LatencyPlan, evidence_of, take_figures
from deploy.validate.winner import Outcome
from tests import models
from tests.packaging import make_request, run, save_samples
from tests.slower import SlowerNet

QUICK = 0.1


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> dict[int, CheckpointRequest]:
    """Two versions of `tiny`, the second truly slower; the checkpoint of each, beside the folder `repository`."""
    folder = tmp_path_factory.mktemp("bench")
    request = replace(make_request(folder), serve_check=False)
    slower = models.save(SlowerNet, folder, models.IMAGE)
    module = SlowerNet()
    with torch.no_grad():
        module.head.weight.normal_(std=2.0)
        module.train()(torch.randn(64, *models.IMAGE))
    torch.save(module.eval().state_dict(), slower.path)
    save_samples(folder / "slower.npz", module)
    assert run(request).exit_code is ExitCode.OK
    assert run(request, checkpoint=slower, samples=folder / "slower.npz").exit_code is ExitCode.OK
    return {1: request.checkpoint, 2: slower}


@pytest.fixture
def repository(checkpoints: dict[int, CheckpointRequest], tmp_path: Path) -> Path:
    """A copy of the repository, so that each test may change it."""
    return Path(shutil.copytree(checkpoints[1].path.parent / "repository", tmp_path / "repository"))


def quick(repository: Path, reference: str, **given: Any) -> BenchResult:
    return bench(
        BenchRequest(
            repository=repository, reference=reference, threads=1, seconds_per_cell=QUICK, timeout=120.0, **given
        )
    )


def names(evidence: LatencyEvidence) -> list[str]:
    return list(dict.fromkeys(cell.contender for cell in evidence.cells))


def pairs(evidence: LatencyEvidence) -> set[tuple[str, str]]:
    return {(ratio.contender, ratio.base) for ratio in evidence.ratios}


def test_with_its_checkpoint_a_version_is_raced_against_eager_and_the_result_kept(
    repository: Path, checkpoints: dict[int, CheckpointRequest]
) -> None:
    result = quick(repository, "tiny", eager=checkpoints[1])
    latency = result.evidence.latency
    assert result.exit_code is ExitCode.OK
    assert names(latency) == [EAGER, CONTROL, "onnx v1"]
    assert pairs(latency) == {(CONTROL, EAGER), ("onnx v1", EAGER)}
    assert {cell.batch for cell in latency.cells} == {1, 4}
    assert (result.evidence.version, result.evidence.checkpoint) == ("tiny:1", sha256_file(checkpoints[1].path))
    (kept,) = attestations(find_version(repository, "tiny:1"))
    assert (kept.kind, kept.path) == ("bench", result.attestation)
    assert BenchEvidence.read(kept.path) == result.evidence


def test_without_a_checkpoint_a_version_is_raced_against_itself(repository: Path) -> None:
    result = quick(repository, "tiny:2", sizes=(2,), attest=False)
    assert names(result.evidence.latency) == ["onnx v2", control_of("onnx v2")]
    assert pairs(result.evidence.latency) == {(control_of("onnx v2"), "onnx v2")}
    assert {cell.batch for cell in result.evidence.latency.cells} == {2}
    assert (result.evidence.checkpoint, result.attestation) == (None, None)
    assert not (repository / "tiny" / "attestations").exists()


def test_a_version_that_is_truly_slower_is_said_to_be_and_fails_the_limit(repository: Path) -> None:
    result = quick(repository, "tiny:2", compare=1, max_slowdown=1.05)
    latency = result.evidence.latency
    assert names(latency) == ["onnx v1", control_of("onnx v1"), "onnx v2"]
    assert pairs(latency) == {(control_of("onnx v1"), "onnx v1"), ("onnx v2", "onnx v1")}
    assert (latency.judgement.verdict, result.exit_code) == (Verdict.FAIL, ExitCode.NO)
    assert (result.evidence.compared, result.evidence.max_slowdown) == ("tiny:1", 1.05)


def test_a_version_that_is_truly_faster_passes_the_limit_eager_beside_it(
    repository: Path, checkpoints: dict[int, CheckpointRequest]
) -> None:
    result = quick(repository, "tiny:1", compare=2, max_slowdown=1.05, eager=checkpoints[1], sizes=(4,))
    assert result.exit_code is ExitCode.OK
    assert names(result.evidence.latency) == [EAGER, CONTROL, "onnx v2", control_of("onnx v2"), "onnx v1"]


def test_a_comparison_without_a_limit_is_information(repository: Path) -> None:
    result = quick(repository, "tiny:2", compare=1, sizes=(1,), attest=False)
    assert result.exit_code is ExitCode.OK
    assert "onnx v2 is slower than onnx v1 at batch 1" in result.evidence.latency.judgement.reason


@pytest.mark.parametrize("reference", ["tiny:1", "tiny:2"], ids=["the version", "what it is compared with"])
def test_a_changed_artifact_is_refused_before_it_is_loaded(repository: Path, reference: str) -> None:
    # Loaded, it would be a child that failed.
    (repository / "tiny" / "1" / "model.onnx").write_bytes(b"no graph")
    with pytest.raises(UsageError, match=r"model\.onnx has changed"):
        quick(repository, reference, compare=1 if reference == "tiny:2" else None)


def test_a_checkpoint_of_another_version_is_refused(
    repository: Path, checkpoints: dict[int, CheckpointRequest]
) -> None:
    with pytest.raises(UsageError, match=r"is not what tiny:1 was made from(.|\n)*convnet\.pt then"):
        quick(repository, "tiny:1", eager=checkpoints[2])


def test_code_that_a_manifest_names_is_run_only_where_the_user_names_it_too(
    repository: Path, checkpoints: dict[int, CheckpointRequest]
) -> None:
    with pytest.raises(UsageError, match=r"add --factory tests\.models:ConvNet"):
        quick(repository, "tiny:1", eager=replace(checkpoints[1], factory=None))
    edit_manifest(repository, 1, lambda manifest: manifest["checkpoint"].update(trust_pickle=True))
    with pytest.raises(UsageError, match="add --trust-pickle"):
        quick(repository, "tiny:1", eager=checkpoints[1])


def edit_manifest(repository: Path, number: int, change: Callable[[dict[str, Any]], object]) -> None:
    path = repository / "tiny" / str(number) / "manifest.json"
    manifest = json.loads(path.read_text())
    change(manifest)
    path.write_text(json.dumps(manifest))


def test_a_version_for_a_device_that_is_not_here_is_refused(repository: Path) -> None:
    edit_manifest(repository, 2, lambda manifest: manifest["target"].update(device="cuda"))
    with pytest.raises(MissingError, match="tiny:2 is built for cuda"):
        quick(repository, "tiny:1", compare=2)


def test_versions_that_take_other_inputs_are_not_compared(repository: Path) -> None:
    edit_manifest(repository, 1, lambda manifest: manifest["spec"]["inputs"][0].update(dtype="float16"))
    with pytest.raises(UsageError, match=r"float32(.|\n)*float16"):
        quick(repository, "tiny:2", compare=1)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"sizes": (5,)}, "takes no batch of 5"),
        ({"compare": 1}, "compared with itself"),
        ({"compare": 7}, "has no version 7"),
        ({"max_slowdown": 1.1}, "without a version to compare with"),
    ],
    ids=lambda given: next(iter(given)) if isinstance(given, dict) else "",
)
def test_what_cannot_be_asked_is_refused(repository: Path, given: dict[str, Any], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        quick(repository, "tiny:1", **given)


def decided(verdict: Verdict, *, limit: float | None, lost: bool) -> ExitCode:
    gone = LostContender(contender="onnx v1", doing="batch 1", reason="killed")
    latency = LatencyEvidence(
        judgement=Judgement(verdict=verdict, reason="stated"),
        device="cpu",
        threads=1,
        method="stated",
        confidence=0.95,
        cells=(),
        ratios=(LatencyRatio(contender="onnx v2", base="onnx v1", batch=1, ratio=1.0, low=0.9, high=1.1),),
        starts=(),
        winner=None,
        winner_rule="",
        lost=(gone,) if lost else (),
    )
    evidence = BenchEvidence(
        version="tiny:2",
        digest="0",
        compared="tiny:1",
        compared_digest="1",
        checkpoint=None,
        max_slowdown=limit,
        created="now",
        command=(),
        latency=latency,
    )
    return BenchResult(evidence=evidence, attestation=None).exit_code


@pytest.mark.parametrize(
    ("verdict", "limit", "lost", "code"),
    [
        (Verdict.PASS, None, False, ExitCode.OK),
        (Verdict.PASS, 1.05, False, ExitCode.OK),
        (Verdict.FAIL, 1.05, False, ExitCode.NO),
        (Verdict.UNDECIDED, 1.05, False, ExitCode.NO),
        (Verdict.PASS, None, True, ExitCode.UNFINISHED),
        (Verdict.UNDECIDED, 1.05, True, ExitCode.UNFINISHED),
        (Verdict.FAIL, 1.05, True, ExitCode.NO),
    ],
)
def test_the_verdict_asked_for_decides_and_who_was_lost_where_there_is_none(
    verdict: Verdict, limit: float | None, lost: bool, code: ExitCode
) -> None:
    assert decided(verdict, limit=limit, lost=lost) is code


class Removing(Silent):
    """A clean-up that takes the versions away while they are measured."""

    def __init__(self, *folders: Path) -> None:
        self.folders = folders

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        yield
        for folder in self.folders:
            shutil.rmtree(folder)


def test_figures_of_versions_that_were_removed_meanwhile_are_shown_and_kept_nowhere(repository: Path) -> None:
    request = BenchRequest(repository=repository, reference="tiny:2", compare=1, threads=1, seconds_per_cell=QUICK)
    digest = version_digest(repository / "tiny" / "2")
    result = bench(request, progress=Removing(repository / "tiny" / "1", repository / "tiny" / "2"))
    assert result.evidence.latency.cells
    assert result.evidence.digest == digest
    assert result.attestation is None
    assert "tiny:2 was removed meanwhile" in str(result.not_kept)
    assert result.exit_code is ExitCode.UNFINISHED


def test_figures_that_cannot_be_kept_are_shown_all_the_same(repository: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(path: Path, data: bytes) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", str(path))

    monkeypatch.setattr("deploy.repository.attest.write_new", full)
    arguments = [str(repository), "tiny:2", "--batch", "1", "--seconds-per-cell", str(QUICK), "--threads", "1"]
    result = CliRunner().invoke(command, [*arguments, "--json"])
    assert result.exit_code == ExitCode.UNFINISHED
    assert "keeping the result of bench beside tiny:2" in result.stderr
    printed = json.loads(result.stdout)
    assert "keeping the result of bench beside tiny:2" in printed["error"]["found"], "machines read one object"
    assert (printed["exit_code"], printed["attestation"]) == (ExitCode.UNFINISHED, None)
    assert printed["latency"]["cells"]


def test_the_command_prints_tables_and_says_that_eager_took_no_part(repository: Path) -> None:
    arguments = [str(repository), "tiny:2", "--compare", "1", "--batch", "1", "--seconds-per-cell", str(QUICK)]
    result = CliRunner().invoke(command, [*arguments, "--max-slowdown", "1.05", "--threads", "1"])
    assert result.exit_code == ExitCode.NO, result.stderr
    assert "to onnx v1" in result.stdout
    assert "FAIL" in result.stdout
    assert "kept as " in result.stderr
    assert "winner" not in result.stdout
    assert "eager took no part: no --checkpoint was given" in result.stderr


def test_a_static_version_is_packaged_and_benched_one_row_at_a_time(tmp_path: Path) -> None:
    request = replace(make_request(tmp_path), serve_check=False, max_batch=1)
    assert run(request).exit_code is ExitCode.OK
    latency = quick(request.repository, "tiny", eager=request.checkpoint).evidence.latency
    assert {cell.batch for cell in latency.cells} == {1}
    assert latency.lost == ()
    assert run(replace(request, max_batch=4, new_contract=True)).exit_code is ExitCode.OK
    compared = quick(request.repository, "tiny:1", compare=2).evidence.latency
    assert {cell.batch for cell in compared.cells} == {1}
    edit_manifest(request.repository, 2, lambda manifest: manifest["spec"]["dims"][0].update(minimum=2))
    with pytest.raises(UsageError, match="two versions that take the same inputs, in"):
        quick(request.repository, "tiny:1", compare=2)


def test_the_tables_show_the_ratios_to_either_base_and_who_was_lost_within_80_columns() -> None:
    old, new = "onnx v1", "onnx v2"
    laws = {EAGER: 0.2, CONTROL: 0.2, old: 0.1, control_of(old): 0.1, new: 0.15, "aoti v3": 0.1}
    crash = {"aoti v3": 8}
    contenders = [
        SimulatedContender(name=name, law=partial(mul, seconds), fails_at=crash.get(name))
        for name, seconds in laws.items()
    ]
    plan = LatencyPlan(max_batch=8, threads=1, incumbent=old)
    outcome = Outcome(winner=None, rule="", judgement=Judgement(verdict=Verdict.PASS, reason="stated"))
    stream = io.StringIO()
    Console(file=stream, width=80).print(latency_table(evidence_of(take_figures(contenders, plan), plan, outcome)))
    rows = [line.split() for line in stream.getvalue().splitlines()]
    assert max(map(len, stream.getvalue().splitlines())) <= 80
    assert [row[-3:] for row in rows if row[:2] == ["onnx", "v2"] and row[-3].endswith("x")] == [
        *[["0.75x", "[0.75,", "0.75]"]] * 2,
        *[["1.50x", "[1.50,", "1.50]"]] * 2,
    ]
    assert "Time in multiples of onnx v1's" in stream.getvalue()
    assert "LOST: aoti v3 was lost at batch 8:" in stream.getvalue()


def test_a_factory_without_a_checkpoint_is_refused(repository: Path) -> None:
    result = CliRunner().invoke(command, [str(repository), "tiny", "--factory", "a:b"])
    assert isinstance(result.exception, UsageError)


PROBE = """
import sys
from deploy.cli.main import cli
code = cli.main(sys.argv[1:], standalone_mode=False)
heavy = [name for name in ("torch", "onnx", "onnxruntime", "torchvision") if name in sys.modules]
print(code, heavy, file=sys.stderr)
"""


def test_the_process_of_the_command_imports_neither_torch_nor_onnxruntime_and_prints_one_json_object(
    repository: Path, checkpoints: dict[int, CheckpointRequest]
) -> None:
    asked = checkpoints[1]
    eager = ["--checkpoint", str(asked.path), "--factory", str(asked.factory)]
    arguments = ["bench", str(repository), "tiny:1", "--batch", "1", "--seconds-per-cell", str(QUICK), "--json"]
    call = [sys.executable, "-c", PROBE, *arguments, *eager, "--no-attest", "--threads", "1"]
    result = subprocess.run(call, capture_output=True, text=True, check=True)
    assert result.stderr.splitlines()[-1] == "0 []"
    printed = json.loads(result.stdout)
    assert printed["exit_code"] == 0
    assert {cell["contender"] for cell in printed["latency"]["cells"]} == {EAGER, CONTROL, "onnx v1"}
