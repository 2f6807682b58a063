"""Which tactic is taken, from stated ratios; and a search on a real artifact: proven, raced, remembered."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import onnx
import pytest

from deploy.cache import Store
from deploy.convert.model import Artifact, Device, Format, Precision, Program
from deploy.convert.onnx import export_onnx
from deploy.convert.ort_session import LEVEL, options_in
from deploy.convert.run import Conversion
from deploy.convert.tactics import DEFAULT, Effort, Tactic, default_tactic, described
from deploy.evidence import Judgement, Verdict
from deploy.latency_evidence import LatencyRatio, control_of
from deploy.progress import Silent
from deploy.targets import LOCAL_CPU, Target, find_target
from deploy.validate.behaviour import check_behaviour
from deploy.validate.choices import CHOICE_FILE, Choice, pick
from deploy.validate.fastest import FastestPlan, choice_key, find_fastest, no_tactics
from deploy.validate.run import Proof
from tests.validate.models import seeded_tiny
from tests.validate.rig import Rig, convert, image_rig

CONTROL = control_of(DEFAULT)
NAMES = [DEFAULT, "a", "b"]
WRONG, FAILING = "wrong", "failing"


def ratio(contender: str, low: float, high: float, *, batch: int = 1) -> LatencyRatio:
    return LatencyRatio(contender=contender, base=DEFAULT, batch=batch, ratio=(low + high) / 2, low=low, high=high)


QUIET = ratio(CONTROL, 0.99, 1.02)


@pytest.mark.parametrize(
    ("ratios", "taken", "kept"),
    [
        ([QUIET, ratio("a", 0.8, 0.9), ratio("b", 0.7, 0.85)], "b", True),
        ([QUIET, ratio("a", 0.9, 0.985)], DEFAULT, True),
        ([QUIET, ratio("a", 0.9, 0.975)], "a", True),
        ([QUIET, ratio("a", 1.1, 1.2)], DEFAULT, True),
        (
            [QUIET, ratio("a", 0.7, 0.8), ratio(CONTROL, 0.9, 1.1, batch=8), ratio("a", 1.2, 1.3, batch=8)],
            DEFAULT,
            True,
        ),
        ([QUIET, ratio("a", 0.7, 0.8), ratio(CONTROL, 0.9, 1.1, batch=8), ratio("a", 1.0, 1.3, batch=8)], "a", True),
        ([ratio(CONTROL, 0.85, 1.1), ratio("a", 0.3, 0.4)], "a", False),
        ([ratio(CONTROL, 0.6, 1.2), ratio("a", 0.1, 0.2)], DEFAULT, False),
        ([ratio("a", 0.1, 0.2)], DEFAULT, False),
    ],
)
def test_an_alternative_wins_beyond_the_noise_only(ratios: list[LatencyRatio], taken: str, kept: bool) -> None:
    best, said, sure = pick(ratios, NAMES)

    assert (best, sure) == (taken, kept)
    assert said


@pytest.fixture(scope="module")
def rig(tmp_path_factory: pytest.TempPathFactory) -> Rig:
    return image_rig(seeded_tiny(), "tiny", tmp_path_factory.mktemp("fastest"))


@pytest.fixture(scope="module")
def artifact(rig: Rig) -> Artifact:
    made = convert(rig.program, "onnx", rig.folder / "default")
    return replace(made, details={**made.details, "precision": "fp32"})


def listed(format_: Format, effort: Effort, device: Device) -> tuple[Tactic, ...]:
    return (
        Tactic(format=format_, name="no layout", options={LEVEL: "1"}),
        Tactic(format=format_, name=WRONG, options={"graph": WRONG}),
        Tactic(format=format_, name=FAILING, options={"graph": FAILING}),
    )


def converter(
    program: Program, *, target: Target, folder: Path, store: Store | None = None, tactic: Tactic | None = None
) -> Artifact:
    """One that changes a weight, or fails, as its tactic says."""
    assert tactic is not None
    if tactic.name == FAILING:
        raise RuntimeError("this tactic breaks the compiler")
    made = export_onnx(program, target=target, folder=folder)
    model = onnx.load(made.path)
    weight = next(one for one in model.graph.initializer if len(one.dims) == 4)
    array = onnx.numpy_helper.to_array(weight) * 1.01
    weight.CopyFrom(onnx.numpy_helper.from_array(array.astype("float32"), weight.name))
    onnx.save(model, made.path)
    return replace(made, details={**made.details, **described(tactic)})


def given(rig: Rig, artifact: Artifact) -> tuple[Conversion, Proof]:
    behaviour = check_behaviour(rig.checkpoint, None, rig.program.spec, lambda inputs: [])
    proof = Proof(evidence={"onnx": rig.judge(artifact)}, behaviour=behaviour, baseline=rig.baseline)
    return Conversion(program=rig.program, artifacts={"onnx": artifact}, failures={}), proof


def plan(folder: Path) -> FastestPlan:
    return FastestPlan(
        effort="normal",
        target=find_target(LOCAL_CPU),
        threads=1,
        folder=folder / "tactics",
        logs=folder,
        store=Store(folder=folder / "store"),
        seconds_per_cell=0.05,
        alternatives=listed,
        converters=lambda precision: {"onnx": converter},
    )


def test_what_is_wrong_or_fails_is_dropped_by_name(rig: Rig, artifact: Artifact, tmp_path: Path) -> None:
    found = find_fastest(rig.checkpoint, *given(rig, artifact), plan(tmp_path), Silent())

    said = "\n".join(found.said)
    assert f"tactic '{WRONG}' is dropped, its numbers are wrong" in said
    assert f"tactic '{FAILING}' is left out" in said and "breaks the compiler" in said
    taken = found.conversion.artifacts["onnx"]
    assert taken.details["tactic"] in (DEFAULT, "no layout")
    assert taken.details["tactic_measured"] in said
    assert found.proof.evidence["onnx"].judgement.passed
    kept = Store(folder=tmp_path / "store").entries()
    assert len(kept) <= 1 and all(taken.details["tactic"] in entry.about for entry in kept)


@pytest.mark.parametrize("name", [DEFAULT, "no layout", WRONG])
def test_a_choice_of_before_is_taken_once_it_is_proven(rig: Rig, artifact: Artifact, tmp_path: Path, name: str) -> None:
    conversion, proof = given(rig, artifact)
    asked = plan(tmp_path)
    key = choice_key(rig.checkpoint, conversion, artifact, asked)
    tactic = next((one for one in listed("onnx", "normal", "cpu") if one.name == name), default_tactic("onnx"))
    (tmp_path / "entry").mkdir()
    Choice(tactic=tactic, measured="0.50x").write(tmp_path / "entry" / CHOICE_FILE)
    assert asked.store is not None
    asked.store.keep(key, tmp_path / "entry", about="planted")

    found = find_fastest(rig.checkpoint, conversion, proof, asked, Silent())

    wrong = name == WRONG
    assert found.conversion.artifacts["onnx"].details["tactic"] == (DEFAULT if wrong else name)
    assert ("did not hold here" if wrong else "as measured before: 0.50x") in found.said[-1]
    assert len(asked.store.entries()) == (0 if wrong else 1)


def test_another_processor_graph_or_list_is_another_choice(rig: Rig, artifact: Artifact, tmp_path: Path) -> None:
    conversion, _ = given(rig, artifact)
    asked = plan(tmp_path)
    renamed = rig.checkpoint.model_copy(update={"name": "other", "digest": "0" * 64})
    keys = [
        choice_key(rig.checkpoint, conversion, artifact, asked),
        choice_key(rig.checkpoint, replace(conversion, program=replace(rig.program, digest="0")), artifact, asked),
        choice_key(rig.checkpoint, conversion, artifact, replace(asked, threads=2)),
        choice_key(rig.checkpoint, conversion, artifact, replace(asked, alternatives=lambda *_: ())),
        choice_key(rig.checkpoint, conversion, artifact, replace(asked, target=find_target("26.08-cpu"))),
    ]
    assert len(set(keys)) == len(keys)
    assert choice_key(renamed, conversion, artifact, asked) == keys[0]


def test_a_low_effort_and_a_default_that_failed_change_nothing(rig: Rig, artifact: Artifact, tmp_path: Path) -> None:
    conversion, proof = given(rig, artifact)
    low = replace(plan(tmp_path), effort="low")
    found = find_fastest(rig.checkpoint, conversion, proof, low, Silent())
    assert found.conversion.artifacts == conversion.artifacts and found.said == ()

    wrong = Judgement(verdict=Verdict.FAIL, reason="its numbers are wrong")
    proof.evidence["onnx"] = proof.evidence["onnx"].model_copy(update={"judgement": wrong})
    found = find_fastest(rig.checkpoint, conversion, proof, plan(tmp_path), Silent())
    assert found.conversion.artifacts == conversion.artifacts and found.said == ()


def test_an_artifact_is_made_and_raced_in_its_own_precision(rig: Rig, artifact: Artifact, tmp_path: Path) -> None:
    conversion, proof = given(rig, artifact)
    asked: list[Precision] = []

    def converters(precision: Precision) -> dict[Format, Callable[..., Artifact]]:
        asked.append(precision)
        return {"onnx": converter}

    half = replace(artifact, details={**artifact.details, "precision": "fp16"})
    halves = replace(conversion, artifacts={"onnx": half})
    find_fastest(rig.checkpoint, halves, proof, replace(plan(tmp_path), converters=converters), Silent())
    assert set(asked) == {"fp16"}

    int8 = replace(conversion, artifacts={"onnx": replace(artifact, details={"precision": "int8"})})
    found = find_fastest(rig.checkpoint, int8, proof, plan(tmp_path / "int8"), Silent())
    assert found.conversion == int8
    assert found.said == ("onnx: no tactic is tried: there are none for int8",)


def test_nothing_is_looked_for_away_from_the_target_or_in_int8() -> None:
    here, gpu = find_target(LOCAL_CPU), find_target("26.08-cuda-sm90")
    assert no_tactics(here, "cpu", "fp32") == no_tactics(here, "cpu", "bf16") == no_tactics(gpu, "cuda", "fp16") == ""
    assert no_tactics(gpu, "cpu", "fp32") == "the target runs on cuda, this run has cpu"
    assert no_tactics(here, "cpu", "int8") == "there are none for int8"


def test_an_artifact_opened_otherwise_is_the_same_file(rig: Rig, artifact: Artifact) -> None:
    tactic = Tactic(format="onnx", name="no layout", options={LEVEL: "1"})
    assert tactic.at_run_time
    assert not Tactic(format="onnx", name="x", options={"graph": "fused"}).at_run_time
    assert not Tactic(format="onnx", name=DEFAULT).at_run_time
    assert options_in({**artifact.details, **tactic.options}) == {LEVEL: "1"}
