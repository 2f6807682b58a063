"""The table of benchmarks/run.py: records become figures, aims and a page, and a killed run goes on where it was.

No model runs here: simulated contenders obey a stated law, so that every ratio is known beforehand.
"""

import re
from collections.abc import Mapping
from pathlib import Path

import pytest

from benchmarks import repackaging
from benchmarks.table import sums
from benchmarks.table.aims import aims
from benchmarks.table.cold import run_cold
from benchmarks.table.command import PAGE_FILE, RESULTS, TABLE_FILE, Job, render, run
from benchmarks.table.measure import cells_of, race
from benchmarks.table.page import page
from benchmarks.table.place import here
from benchmarks.table.plots import CONVERSION_PLOT, SPEED_PLOT
from benchmarks.table.records import (
    AOTI,
    COMPILED,
    EAGER,
    NAVIGATOR,
    ORT,
    OUR_AOTI,
    OUR_ORT,
    Accuracy,
    Cold,
    ModelRecord,
    Place,
    Settings,
    Stage,
    Table,
)
from deploy.validate.contenders import SimulatedContender
from deploy.validate.statistics import Estimate
from tests.markdown import ROOT, table

# Milliseconds at batch 1; a batch of 8 takes 6 times as long.
LAW = {EAGER: 12.0, sums.CONTROL: 12.0, COMPILED: 10.0, AOTI: 8.0, ORT: 6.0, OUR_AOTI: 5.0, OUR_ORT: 4.0}
SETTINGS = Settings(batches=(1, 8), seconds=0.5, threads=2, package=("--all-formats",))
PLACE = here()


def cold(who: str, **ends: float) -> Cold:
    """A run of stages one after another, each ending at so many seconds, 1 GB more in each."""
    stages, start = {}, 0.0
    for number, (name, end) in enumerate(ends.items(), start=1):
        stages[name.replace("_", " ")] = Stage(start=start, end=end, peak=number * 10**9)
        start = end
    return Cold(who=who, command="python", seconds=start, peak=len(ends) * 10**9, stages=stages)


def measured(
    name: str, settings: Settings = SETTINGS, *, place: Place = PLACE, law: Mapping[str, float] | None = None
) -> ModelRecord:
    """A model's record, raced by the law with the changes given."""
    laws = {**LAW, **(law or {})}
    contenders = [
        SimulatedContender(name=who, law=lambda batch, ms=ms: ms * (1 if batch == 1 else 6) / 1000)  # type: ignore[misc]
        for who, ms in laws.items()
    ]
    finished = race(contenders, settings)
    return ModelRecord(
        model=name,
        settings=settings,
        place=place,
        cold=(
            cold("by hand", **{"import": 3.0}, build=4.0, export=6.0, aoti=46.0, onnx=56.0),
            cold("torch.compile", build=4.0, first_answer=20.0),
            cold("deployctl", export=7.0, convert_to_onnx=20.0, convert_to_aoti=42.0, measure_latency=70.0),
        ),
        accuracy=(Accuracy(contender=OUR_ORT, verdict="pass", max_multiple=0.8, l2_multiple=0.4, rows=12),),
        cells=tuple(cells_of(finished, settings.confidence)),
        starts=finished.starts,
        lost=finished.lost,
        chosen="onnx",
        artifacts={"onnx": {"opset": "20"}},
    )


def job(folder: Path, *names: str, settings: Settings = SETTINGS) -> Job:
    return Job(
        settings=dict.fromkeys(names, settings),
        work=folder / "work",
        results=folder / "results",
        docs=folder / "docs",
        command="python benchmarks/run.py",
    )


def test_a_cold_run_is_cut_into_its_stages(tmp_path: Path) -> None:
    talk = "print('stage export'); import time; time.sleep(0.3); print('stage onnx')"
    by_hand = run_cold("by hand", ["-uc", talk], tmp_path / "a")
    assert list(by_hand.stages) == ["export", "onnx"]
    assert by_hand.stages["export"].seconds >= 0.2  # times are rounded
    assert by_hand.stages["onnx"].end == pytest.approx(by_hand.seconds, abs=0.01)
    ours = "\n".join(
        f"10:00:0{second}  {text}"
        for second, text in enumerate(
            ["export ...", "export: done, 0.0 s", "convert to aoti ...", "a note", "convert to onnx ...",
             "convert to onnx: done, 2.0 s", "convert to aoti: done, 3.1 s", "measure latency: failed, 3.1 s"]
        )
    )  # fmt: skip
    found = run_cold("deployctl", ["-c", f"import sys; print({ours!r}, file=sys.stderr)"], tmp_path / "b")
    assert sorted(found.stages) == ["convert to aoti", "convert to onnx", "export"]
    with pytest.raises(RuntimeError, match="no such file"):
        run_cold("by hand", ["-c", "raise SystemExit('no such file')"], tmp_path / "c")


def test_every_ratio_is_the_one_of_the_law() -> None:
    model = measured("resnet18")
    found = sums.speedup(model, OUR_ORT)
    assert found is not None and found.value == pytest.approx(3.0)
    assert sums.best_by_hand(model) == ORT and sums.ours(model) == OUR_ORT
    best = sums.against_best(model)
    assert best is not None and best.value == pytest.approx(1.5)
    assert sums.standing(model) == "above"
    formats = sums.aoti_time_over_ort(model)
    assert formats is not None and formats.value == pytest.approx(1.25)
    assert sums.conversion_ratio(model) == pytest.approx(42.0 / 56.0)
    by_hand = sums.hand_conversion(model)
    assert by_hand is not None
    assert (sums.hand_seconds(by_hand, AOTI), sums.hand_seconds(by_hand, ORT)) == (46.0, 16.0)


@pytest.mark.parametrize(
    ("onnx", "control", "said"),
    [(4.0, 12.0, "above"), (7.0, 12.0, "below"), (5.5, 14.0, "level"), (4.0, 30.0, "too noisy")],
)
def test_what_noise_can_explain_is_no_difference(onnx: float, control: float, said: str) -> None:
    model = measured("resnet18", law={OUR_ORT: onnx, OUR_AOTI: 9.0, sums.CONTROL: control})
    assert sums.standing(model) == said


def test_a_geometric_mean_is_of_the_models_and_narrower_than_each() -> None:
    wide = [Estimate(value=value, low=value / 1.1, high=value * 1.1) for value in (1.0, 4.0)]
    found = sums.geometric_mean(wide)
    assert found is not None
    assert found.value == pytest.approx(2.0)
    assert 2.0 / 1.1 < found.low < 2.0 < found.high < 2.0 * 1.1
    assert sums.geometric_mean([None]) is None


@pytest.mark.parametrize(("onnx", "verdict"), [(4.0, "met"), (6.0, "missed")])
def test_an_aim_can_be_missed(onnx: float, verdict: str) -> None:
    models = [measured(name, law={OUR_ORT: onnx}) for name in ("resnet18", "vit_b_16", "swin_t")]
    judged = {aim.name: aim.verdict for aim in aims(models)}
    assert judged["ours over eager, batch 1, geometric mean"] == verdict
    assert judged["models on which ours is clearly above the best route by hand"] == verdict


def test_the_conversion_aim_is_missed_where_ours_takes_longer() -> None:
    slow = measured("resnet18").model_copy(
        update={"cold": (cold("by hand", export=6.0, aoti=30.0, onnx=40.0), measured("resnet18").cold[-1])}
    )
    judged = {aim.name: aim.verdict for aim in aims([slow])}
    assert judged["conversion to both formats, cold, default effort, over the script by hand"] == "missed"


def test_the_search_for_faster_artifacts_is_no_part_of_the_conversion_that_is_compared(tmp_path: Path) -> None:
    low = measured("resnet18")
    ends = {"export": 7.0, "convert_to_onnx": 20.0, "convert_to_aoti": 42.0, "find_the_fastest_aoti": 90.0}
    normal = low.model_copy(
        update={"cold": (*low.cold[:2], cold("deployctl", **ends, find_the_fastest_onnx=100.0, measure_latency=130.0))}
    )
    assert sums.conversion_ratio(normal) == sums.conversion_ratio(low)
    assert (sums.searched(low), sums.searched(normal)) == (0.0, 58.0)
    for model, said in ((low, False), (normal, True)):
        folder = tmp_path / str(said)
        run(job(folder, "resnet18"), lambda *_, model=model: model)
        text = (folder / "docs" / PAGE_FILE).read_text()
        assert ("130.0 s, 6.00 GB, 58.0 s of it the search" in text, "--effort normal" in text) == (said, said)


@pytest.mark.parametrize(("seconds", "verdict"), [(400.0, "met"), (300.0, "missed")])
def test_model_navigator_is_held_against_the_stages_that_it_has_too(
    seconds: float, verdict: str, tmp_path: Path
) -> None:
    """Conversions run beside each other, and neither the reading of the checkpoint nor the search is one of its own."""
    stages = {
        "read the checkpoint": Stage(start=1.0, end=5.0, peak=1),
        "export": Stage(start=5.0, end=7.0, peak=1),
        "convert to onnx": Stage(start=7.0, end=12.0, peak=1),
        "convert to aoti": Stage(start=7.0, end=27.0, peak=1),
        "prove against float64": Stage(start=27.0, end=40.0, peak=1),
        "find the fastest aoti": Stage(start=40.0, end=90.0, peak=1),
        "measure latency": Stage(start=90.0, end=120.0, peak=1),
    }
    ours = Cold(who="deployctl", command="python", seconds=121.0, peak=1, stages=stages)
    theirs = cold(NAVIGATOR, build=10.0, optimize=10.0 + seconds)
    model = measured("resnet18").model_copy(update={"cold": (ours, theirs)})
    assert sums.same_stages(model) == 65.0
    judged = {aim.name: aim.verdict for aim in aims([model])}
    assert judged["Model Navigator's optimize() over the same stages of ours"] == verdict
    run(job(tmp_path, "resnet18"), lambda *_: model)
    text = (tmp_path / "docs" / PAGE_FILE).read_text()
    assert f"{10 + seconds:.1f} s, 2.00 GB, {seconds:.1f} s of it optimize(); ours 65.0 s" in text


def test_a_lost_route_has_dashes_and_its_reason(tmp_path: Path) -> None:
    contenders = [SimulatedContender(name=name, law=lambda _: 0.01) for name in LAW if name != AOTI]
    contenders.append(SimulatedContender(name=AOTI, law=lambda _: 0.01, fails_at=8))
    finished = race(contenders, SETTINGS)
    model = measured("resnet18").model_copy(update={"cells": tuple(cells_of(finished, 0.95)), "lost": finished.lost})
    assert sums.speedup(model, AOTI, batch=8) is None
    run(job(tmp_path, "resnet18"), lambda *_: model)
    assert "AOTInductor by hand was lost at batch 8" in (tmp_path / "docs" / PAGE_FILE).read_text()


def test_a_killed_run_goes_on_where_it_was(tmp_path: Path) -> None:
    asked: list[str] = []

    def measure(name: str, settings: Settings, work: Path) -> ModelRecord:
        asked.append(name)
        if asked == ["resnet18", "vit_b_16"]:
            raise KeyboardInterrupt
        return measured(name, settings)

    with pytest.raises(KeyboardInterrupt):
        run(job(tmp_path, "resnet18", "vit_b_16"), measure)
    written = Table.read(tmp_path / "results" / TABLE_FILE)
    assert [model.model for model in written.models] == ["resnet18"], "what had ended is there already"
    finished = run(job(tmp_path, "resnet18", "vit_b_16"), measure)
    assert asked == ["resnet18", "vit_b_16", "vit_b_16"]
    assert [model.model for model in finished.models] == ["resnet18", "vit_b_16"]


def test_what_was_measured_otherwise_is_measured_again_and_stands_in_no_table_with_the_rest(tmp_path: Path) -> None:
    asked: list[str] = []

    def measure(name: str, settings: Settings, work: Path) -> ModelRecord:
        asked.append(name)
        return measured(name, settings)

    run(job(tmp_path, "resnet18", "vit_b_16"), measure)
    other = SETTINGS.model_copy(update={"threads": 1})
    found = run(job(tmp_path, "vit_b_16", settings=other), measure)
    assert asked == ["resnet18", "vit_b_16", "vit_b_16"]
    assert [model.model for model in found.models] == ["vit_b_16"]
    elsewhere = PLACE.model_copy(update={"processor": "another"})
    found = run(job(tmp_path / "b", "resnet18"), lambda *_: measured("resnet18", place=elsewhere))
    assert [model.model for model in run(job(tmp_path / "b", "swin_t"), measure).models] == ["swin_t"]


def test_the_page_holds_every_figure_and_is_the_same_from_the_file(tmp_path: Path) -> None:
    run(job(tmp_path, "resnet18", "vit_b_16"), lambda name, *_: measured(name))
    text = (tmp_path / "docs" / PAGE_FILE).read_text()
    plots = {name: (tmp_path / "docs" / name).read_bytes() for name in (SPEED_PLOT, CONVERSION_PLOT)}
    found = Table.read(tmp_path / "results" / TABLE_FILE)
    render(found, tmp_path / "again")
    assert (tmp_path / "again" / PAGE_FILE).read_text() == text
    assert {name: (tmp_path / "again" / name).read_bytes() for name in plots} == plots
    rows = {row[0]: row for row in table(tmp_path / "docs" / PAGE_FILE, "Speed at batch 1")}
    assert set(rows) == {"resnet18", "vit_b_16", "geometric mean"}
    assert rows["resnet18"][-4:] == [ORT, OUR_ORT, "1.50 [1.50, 1.50]", "above"]
    assert "0.80" in text and "0.40" in text, "the error stands beside each"


def test_the_page_says_which_run_a_model_is_of_where_there_were_several(tmp_path: Path) -> None:
    run(job(tmp_path, "resnet18"), lambda name, *_: measured(name))
    alone = (tmp_path / "docs" / PAGE_FILE).read_text()
    later = PLACE.model_copy(update={"commit": "0123456789"})
    run(job(tmp_path, "vit_b_16", "swin_t"), lambda name, *_: measured(name, place=later))
    assert "several runs" not in alone
    text = " ".join((tmp_path / "docs" / PAGE_FILE).read_text().split())
    assert f"at {PLACE.commit[:7]} resnet18; at 0123456 vit_b_16, swin_t" in text


def test_what_is_written_by_hand_owes_us_nothing() -> None:
    scripts = [*(ROOT / "benchmarks" / "by_hand").glob("*.py")]
    assert len(scripts) > 5
    assert [path.name for path in scripts if re.search(r"^\s*(from|import) deploy", path.read_text(), re.M)] == []


def test_the_page_in_docs_is_that_of_the_measured_table() -> None:
    assert (ROOT / "docs" / PAGE_FILE).read_text() == page(Table.read(RESULTS / TABLE_FILE))


def test_the_stages_of_a_packaging_are_read_from_what_it_says() -> None:
    said = ["read the checkpoint ...", "read the checkpoint: done, 2.0 s", "export ...", "export: done, 1.0 s"]
    said += ["convert to aoti ...", "convert to onnx ...", "convert to onnx: done, 1 s", "convert to aoti: done, 3.0 s"]
    said += ["serve onnx in a real Triton ...", "serve onnx in a real Triton: done, 1.0 s"]
    lines = [(float(at), f"10:00:{at:02}  {text}") for at, text in enumerate(said)]
    found = repackaging.taken(lines)
    assert (found["read the checkpoint"], found["conversion"], found["serve"]) == (1.0, 5.0, 1.0)
    assert found[repackaging.CARRIED] == 0.0
    note = "10:00:11  latency is carried over from m; --measure-again measures this one"
    assert repackaging.taken([*lines, (11.0, note)])[repackaging.CARRIED] == 1.0


@pytest.mark.parametrize(("seconds", "verdict"), [((4.0, 4.5), "met"), ((4.0, 6.0), "open"), ((6.0, 7.0), "missed")])
def test_the_next_fine_tune_is_judged_by_every_round(seconds: tuple[float, float], verdict: str) -> None:
    rows = [
        {"model": "resnet50", "round": number, "turn": turn, **dict.fromkeys(repackaging.PARTS, took)}
        for number, after in enumerate(seconds)
        for turn, took in (("first", 100.0), ("next", after), ("next without cache", 100.0))
    ]
    judged = {aim["name"]: aim["verdict"] for aim in repackaging.aims(rows)}
    assert judged == {"resnet50, conversion: next / first": verdict, "resnet50, whole: next / first": "met"}
