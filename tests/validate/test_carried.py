"""Latency of before: kept from a quiet race only, carried over for the same code on the same machine only, and said."""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pytest

from deploy.cache import Store
from deploy.checkpoint.model import Checkpoint, Preprocessing
from deploy.convert.model import Artifact, Format, Program
from deploy.evidence import Verdict
from deploy.latency_evidence import CONTROL, EAGER, LatencyEvidence
from deploy.validate.carried import MEASURED_FILE, Measured, Memory, Subject, latency_key, measure_and_keep, recall
from deploy.validate.contenders import SimulatedContender
from deploy.validate.latency import LatencyPlan
from tests.repository.samples import SPEC

CHECKPOINT = Checkpoint(
    path=Path("tuned.pt"), digest="d" * 64, format="torch", name="tuned", architecture="torchvision/resnet18",
    how="inferred", options={}, inputs=SPEC.inputs, dtype="float32", parameters=8, size=32, classes=None,
    num_classes=None, preprocessing=Preprocessing(source="unknown"), found_under=None, weights=None,
    removed_prefixes=(), trust_pickle=False,
)  # fmt: skip
MILLISECONDS = {EAGER: 10.0, CONTROL: 10.0, "aoti": 9.0, "onnx": 6.0}
MACHINE = ("a processor", "a name")
FORMATS = ("aoti", "onnx")
PLAN = LatencyPlan(max_batch=8, threads=2)


@dataclass
class Noise:
    """Some, so that no two runs are alike."""

    random: Random = field(default_factory=Random)

    def __call__(self) -> float:
        return self.random.uniform(0.99, 1.01)


def contender(name: str, milliseconds: float, *, fails_at: int | None = None) -> SimulatedContender:
    return SimulatedContender(
        name=name, law=lambda batch: batch * milliseconds / 1000, noise=Noise(), fails_at=fails_at
    )


def race(memory: Memory, plan: LatencyPlan = PLAN, *, lost: str = "", **other: float) -> LatencyEvidence:
    laws = {**MILLISECONDS, **other}
    contenders = [contender(name, law, fails_at=8 if name == lost else None) for name, law in laws.items()]
    return measure_and_keep(contenders, plan, memory)


@pytest.fixture
def memory(tmp_path: Path) -> Memory:
    return Memory(store=Store(folder=tmp_path / "store"), key="ab" * 32, checkpoint=CHECKPOINT, work=tmp_path)


def test_a_quiet_race_is_carried_over_and_the_evidence_says_so(memory: Memory) -> None:
    measured = race(memory)

    carried = recall(memory, PLAN, FORMATS)

    assert measured.carried is None
    assert carried is not None and carried.carried is not None
    assert (carried.cells, carried.ratios, carried.starts) == (measured.cells, measured.ratios, measured.starts)
    assert (
        (carried.winner, carried.winner_rule)
        == (measured.winner, measured.winner_rule)
        == ("onnx", carried.winner_rule)
    )
    assert carried.carried.checkpoint == memory.checkpoint.digest
    assert carried.judgement.verdict is Verdict.PASS
    for text in (carried.judgement.reason, carried.method):
        assert "carried over, not measured in this run" in text and memory.checkpoint.digest[:12] in text


def test_an_incumbent_of_later_is_judged_by_the_figures_of_before(memory: Memory) -> None:
    race(memory)
    carried = recall(memory, replace(PLAN, incumbent="aoti"), FORMATS)
    assert carried is not None
    assert [(one.contender, one.batch) for one in carried.ratios if one.base == "aoti"] == [("onnx", 1), ("onnx", 8)]
    assert carried.winner == "onnx" and "beyond chance and noise" in carried.winner_rule


@pytest.mark.parametrize(
    ("what", "case"),
    [
        ("noise", {CONTROL: 12.5}),
        ("so much noise that nobody wins", {CONTROL: 20.0}),
        ("a contender that was lost", {"lost": "aoti"}),
    ],
)
def test_a_noisy_race_or_one_that_lost_somebody_is_not_kept(what: str, case: dict[str, Any], memory: Memory) -> None:
    evidence = race(memory, **case)
    assert evidence.cells, what
    assert memory.store.entries() == ()
    assert recall(memory, PLAN, FORMATS) is None


def test_measuring_again_replaces_what_was_kept(memory: Memory) -> None:
    race(memory)
    again = race(memory, onnx=5.0)
    carried = recall(memory, PLAN, FORMATS)
    assert carried is not None and carried.cells == again.cells


@pytest.mark.parametrize("age", [timedelta(days=31), -timedelta(days=1)], ids=["old", "of the future"])
def test_figures_of_another_time_are_measured_again(age: timedelta, memory: Memory, tmp_path: Path) -> None:
    race(memory)
    assert memory.store.take(memory.key, tmp_path / "entry")
    kept = Measured.read(tmp_path / "entry" / MEASURED_FILE)
    kept.model_copy(update={"when": datetime.now(UTC) - age}).write(tmp_path / "entry" / MEASURED_FILE)
    memory.store.drop(memory.key)
    memory.store.keep(memory.key, tmp_path / "entry", about="planted")

    assert recall(memory, PLAN, FORMATS) is None
    assert memory.store.entries() == ()


@pytest.mark.parametrize(
    ("plan", "formats"),
    [(PLAN, ("onnx",)), (PLAN, (*FORMATS, "other")), (replace(PLAN, max_batch=4), FORMATS)],
    ids=["fewer formats", "more formats", "another batch"],
)
def test_figures_of_another_field_are_not_taken(plan: LatencyPlan, formats: tuple[str, ...], memory: Memory) -> None:
    race(memory)
    assert recall(memory, plan, formats) is None


def artifact(name: Format, *, key: str | None = None, **details: str) -> Artifact:
    return Artifact(
        format=name, folder=Path(), files=("model",), seconds=0.0, peak_memory=0,
        details={"precision": "fp32", **details}, reused=f"key of {name}" if key is None else key or None,
    )  # fmt: skip


def subject() -> Subject:
    program = Program(path=Path(), spec=SPEC, digest="graph", seconds=0.0, peak_memory=0)
    inputs = {batch: [np.ones((batch, 3, 4, 4), np.float32)] for batch in (1, 8)}
    return Subject(
        checkpoint=CHECKPOINT, program=program, artifacts=(artifact("aoti"), artifact("onnx")), inputs=inputs
    )


def key(one: Subject, plan: LatencyPlan = PLAN, machine: tuple[str, ...] = MACHINE) -> str | None:
    return latency_key(one, plan, machine=machine)


Change = Callable[[Subject], Subject]

OTHERS: dict[str, Change] = {
    "graph": lambda one: replace(one, program=replace(one.program, digest="other")),
    "spec": lambda one: replace(
        one, program=replace(one.program, spec=SPEC.model_copy(update={"outputs": SPEC.outputs[:0]}))
    ),
    "compiled code": lambda one: replace(one, artifacts=(one.artifacts[0], artifact("onnx", key="other"))),
    "session options": lambda one: replace(one, artifacts=(one.artifacts[0], artifact("onnx", enable_mem_arena="0"))),
    "precision": lambda one: replace(one, artifacts=(one.artifacts[0], artifact("onnx", precision="int8"))),
    "formats": lambda one: replace(one, artifacts=one.artifacts[1:]),
    "inputs": lambda one: replace(one, inputs={**one.inputs, 1: [np.zeros((1, 3, 4, 4), np.float32)]}),
    "architecture": lambda one: replace(
        one, checkpoint=one.checkpoint.model_copy(update={"architecture": "torchvision/other"})
    ),
}


@pytest.mark.parametrize("change", OTHERS.values(), ids=OTHERS)
def test_another_subject_is_another_measurement(change: Change) -> None:
    assert key(subject()) == key(subject()) != None  # noqa: E711 - all three
    assert key(change(subject())) not in (key(subject()), None)


@pytest.mark.parametrize(
    "plan",
    [replace(PLAN, threads=1), replace(PLAN, max_batch=4), replace(PLAN, seconds_per_cell=5.0), replace(PLAN, seed=1)],
)
def test_another_way_to_measure_is_another_measurement(plan: LatencyPlan) -> None:
    assert key(subject(), plan) not in (key(subject()), None)


def test_another_machine_or_environment_is_another_measurement(monkeypatch: pytest.MonkeyPatch) -> None:
    here = key(subject())
    elsewhere = key(subject(), machine=("a processor", "another name"))
    monkeypatch.setenv("OMP_WAIT_POLICY", "something else")
    set_otherwise = key(subject())
    assert None not in (here, elsewhere, set_otherwise)
    assert len({here, elsewhere, set_otherwise}) == 3


def test_other_weights_and_another_name_are_not() -> None:
    other = subject()
    renamed = other.checkpoint.model_copy(update={"digest": "f" * 64, "name": "renamed", "path": Path("elsewhere.pt")})
    rebuilt = replace(other.artifacts[1], reused=None, kept="key of onnx")
    assert key(replace(other, checkpoint=renamed, artifacts=(other.artifacts[0], rebuilt))) == key(subject())


def of_the_users_own(one: Subject) -> Subject:
    return replace(one, checkpoint=one.checkpoint.model_copy(update={"how": "factory"}))


def without_kept_code(one: Subject) -> Subject:
    return replace(one, artifacts=(one.artifacts[0], artifact("onnx", key="")))


@pytest.mark.parametrize("change", [of_the_users_own, without_kept_code])
def test_some_are_never_carried_over(change: Change) -> None:
    assert key(change(subject())) is None


@pytest.mark.parametrize(
    "plan", [replace(PLAN, slo_p99_ms=50.0), replace(PLAN, device="cuda"), replace(PLAN, target_device="cuda")]
)
def test_an_slo_and_a_gpu_are_always_measured(plan: LatencyPlan) -> None:
    assert key(subject(), plan) is None
