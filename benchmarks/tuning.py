"""Whether the search behind `deployctl tune` finds what an exhaustive grid finds, in a fifth of the trials.

Owns results/tuning.*. Run from the project's root, on an idle machine, in pieces of at most 15 minutes:
`python -m benchmarks.tuning package`, `... grid MODEL`, `... search MODEL`, `... rounds MODEL` for each model, then
`... table`; `rounds` may be repeated for a narrower interval.

Grid: every cell of GRID once, in a seeded order, by the value function of the search (`deploy.tune.value`), hopeless
cells ended early; then the TOP best are measured again, all from the same rate and to the end, and that value counts.
Search: TRIALS trials on the same cells, on a server of its own. Both bests are measured in turns then, ROUNDS times,
and ROUNDS more by each `rounds`; a t interval on the logarithm of the ratio. Replay: the measured grid answers Optuna
and random search without repeats, over SEEDS seeds at TRIALS trials.
"""

import argparse
import json
import math
import random
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from benchmarks.tuning_table import table
from deploy.checkpoint.model import CheckpointRequest
from deploy.package import package
from deploy.progress import Progress
from deploy.report.stages import Stages
from deploy.repository.find import find_version
from deploy.repository.layout import Version
from deploy.repository.manifest import Environment
from deploy.repository.protobuf import parse_config
from deploy.request import PackageRequest, Resources
from deploy.serve.engines import find_engine
from deploy.slo.records import Bound
from deploy.slo.tune_records import Knob, Setting, TuneTrial
from deploy.targets import find_target
from deploy.tune.bed import Bed, BedPlan, SettingRefused
from deploy.tune.knobs import all_settings, first_settings, only, own_setting
from deploy.tune.search import Search, SearchPlan
from deploy.tune.trials import Budget, Trials, best_of
from deploy.tune.value import Goal, measure
from deploy.validate.machine import default_threads, describe_cpus
from tests.fixtures import save_state_dict, seeded_module

RESULTS = Path(__file__).parent / "results"
TRIALS, ROUNDS, SEEDS, TOP = 12, 5, 20, 6
PROBE_SECONDS = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """A model at a size that is quick here, and the bound it is tuned for in milliseconds."""

    name: str
    side: int
    bound_ms: float


CASES = {
    case.name: case
    for case in (
        Case(name="mobilenet_v3_small", side=224, bound_ms=50.0),
        Case(name="squeezenet1_1", side=160, bound_ms=50.0),
    )
}
GRID = (
    Knob(name="instances", values=(1, 2, 4)),
    Knob(name="threads", values=(1, 2)),
    Knob(name="batch_limit", values=(1, 2, 4, 8)),
    Knob(name="delay_us", values=(0, 2500, 10000)),
)


def main() -> None:
    """One piece of the whole."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("piece", choices=["package", "grid", "search", "rounds", "table"])
    parser.add_argument("model", nargs="?", choices=sorted(CASES))
    parser.add_argument("--work", type=Path, required=True, help="where versions and measurements lie between pieces")
    given = parser.parse_args()
    given.work.mkdir(parents=True, exist_ok=True)
    if given.piece == "table":
        write_results(given.work)
        return
    with Stages() as progress:
        if given.piece == "package":
            for case in CASES.values():
                with progress.stage(f"package {case.name}"):
                    packaged(case, given.work)
            return
        pieces = {"grid": run_grid, "search": run_search, "rounds": run_rounds}
        pieces[given.piece](CASES[given.model], given.work, progress)


def packaged(case: Case, work: Path) -> Version:
    """The seeded model as a version, by the main job itself."""
    repository = work / "repository"
    if not (repository / case.name).exists():
        module = seeded_module(case.name, num_classes=10, size=case.side)
        shape = (3, case.side, case.side)
        checkpoint = save_state_dict(module, work / f"{case.name}.pt")
        request = PackageRequest(
            checkpoint=CheckpointRequest(path=checkpoint, arch=case.name, input_shapes=(shape,)),
            repository=repository,
            target=find_target("local-cpu"),
            name=case.name,
            formats=("onnx",),
            by_name=True,
            serve_check=False,
            resources=Resources(seconds_per_cell=0.2),
        )
        assert package(request).outcome.judgement.passed
    return find_version(repository, case.name)


def open_bed(case: Case, work: Path) -> Bed:
    """A server of its own for the model."""
    bound = Bound(kind="latency", q=0.99, limit=case.bound_ms)
    version = packaged(case, work)
    return Bed(BedPlan(version=version, engine=find_engine("local"), bound=bound, probe_seconds=PROBE_SECONDS))


def own(case: Case, work: Path) -> Setting:
    """The version's own setting, in the terms of the grid."""
    return only(own_setting(parse_config(packaged(case, work).config.read_text())), GRID)


def run_grid(case: Case, work: Path, progress: Progress) -> None:
    """Every cell once, then the best ones again. What is in the file already is not measured again."""
    cells = list(all_settings(GRID))
    random.Random(7).shuffle(cells)
    cells.sort(key=lambda setting: setting != own(case, work))
    path = work / f"{case.name}.grid.jsonl"
    with open_bed(case, work) as bed:
        for number, setting in enumerate(cells):
            rows = read_rows(path)
            if any(row["setting"] == dumped(setting) for row in rows):
                continue
            best = max((row["rate"] for row in rows if row["rate"]), default=None)
            with progress.stage(f"cell {number + 1}/{len(cells)}: {setting}, best {best}"):
                add_row(path, cell_row(bed, case, setting, best=best, start=None) | {"pass": 1})
        first = [row for row in read_rows(path) if row["pass"] == 1]
        top = max(row["rate"] or 0.0 for row in first)
        again = sorted(first, key=lambda row: -row["score"])[:TOP]
        for number, row in enumerate(again):
            setting = Setting.model_validate(row["setting"])
            if any(one["pass"] == 2 and one["setting"] == row["setting"] for one in read_rows(path)):
                continue
            with progress.stage(f"again {number + 1}/{len(again)}: {setting}"):
                add_row(path, cell_row(bed, case, setting, best=None, start=0.9 * top) | {"pass": 2})


def cell_row(bed: Bed, case: Case, setting: Setting, *, best: float | None, start: float | None) -> dict[str, Any]:
    """One measurement of one cell."""
    begun = time.monotonic()
    try:
        bed.load(setting)
    except SettingRefused as error:
        return {"setting": dumped(setting), "rate": None, "score": 0.0, "refused": error.found}
    first = start or best or 0.7 * bed.pace()
    value = measure(bed.probe, Goal(start=first, best=best, limit_ms=case.bound_ms))
    return {
        "setting": dumped(setting),
        "rate": value.rate,
        "score": value.score,
        "ended_early": value.ended_early,
        "client_limited": value.client_limited,
        "probes": len(value.probes),
        "seconds": time.monotonic() - begun,
    }


def run_search(case: Case, work: Path, progress: Progress) -> None:
    """The search on the same cells, then its best beside the grid's best, in turns."""
    scores = grid_scores(work, case)
    with open_bed(case, work) as bed:
        with Search(search_plan(own(case, work), seed=0), None) as search:
            Trials(search=search, bed=bed, limit_ms=case.bound_ms).run(Budget(trials=TRIALS), progress)
            trials = search.trials
        found = best_of(trials)
        assert found is not None
        grid_best = max(scores, key=lambda setting: scores[setting])
        pairs = [] if grid_best == found.setting else in_turns(bed, case, found.setting, grid_best, progress)
    record = {
        "trials": [trial.model_dump(mode="json", exclude={"probes"}) for trial in trials],
        "found": dumped(found.setting),
        "grid_best": dumped(grid_best),
        "pairs": pairs,
    }
    (work / f"{case.name}.search.json").write_text(json.dumps(record, indent=1))


def run_rounds(case: Case, work: Path, progress: Progress) -> None:
    """More rounds of the two bests, on another server."""
    path = work / f"{case.name}.search.json"
    record = json.loads(path.read_text())
    found, best = (Setting.model_validate(record[name]) for name in ("found", "grid_best"))
    if found != best:
        with open_bed(case, work) as bed:
            record["pairs"] += in_turns(bed, case, found, best, progress)
        path.write_text(json.dumps(record, indent=1))


def in_turns(bed: Bed, case: Case, found: Setting, best: Setting, progress: Progress) -> list[list[float]]:
    """The sustained rates of the search's best and the grid's best, round by round, each first in turn."""
    bed.load(best)
    start = 0.7 * bed.pace()
    pairs = []
    for number in range(ROUNDS):
        rates = {}
        for setting in (found, best) if number % 2 else (best, found):
            with progress.stage(f"round {number + 1}/{ROUNDS}: {setting}"):
                bed.load(setting)
                value = measure(bed.probe, Goal(start=start, best=None, limit_ms=case.bound_ms))
                rates[setting] = value.score
                start = 0.9 * (value.rate or start)
        pairs.append([rates[found], rates[best]])
    return pairs


def search_plan(own_one: Setting, *, seed: int) -> SearchPlan:
    """The plan that `deployctl tune` makes, on the cells of the grid."""
    first = first_settings(own_one, GRID, cores=default_threads())
    return SearchPlan(knobs=GRID, first=first, key={"grid": "benchmark"}, seed=seed)


def grid_scores(work: Path, case: Case) -> dict[Setting, float]:
    """The value of every cell: the second measurement where there is one."""
    rows = sorted(read_rows(work / f"{case.name}.grid.jsonl"), key=lambda row: row["pass"])
    return {Setting.model_validate(row["setting"]): row["score"] for row in rows}


def replay(scores: dict[Setting, float], own_one: Setting) -> dict[str, Any]:
    """The best value after TRIALS trials over the grid's best, by seed: Optuna, random, and the corners then random."""
    top = max(scores.values())
    first = list(first_settings(own_one, GRID, cores=default_threads()))

    def optuna(seed: int) -> list[Setting]:
        with Search(search_plan(own_one, seed=seed), None) as search:
            for _ in range(TRIALS):
                asked = search.ask()
                score = scores[asked.setting]
                search.tell(asked, trial_of(asked.number, asked.setting, score))
            return [trial.setting for trial in search.trials]

    def chance(seed: int) -> list[Setting]:
        return random.Random(seed).sample(sorted(scores, key=str), TRIALS)

    def corners(seed: int) -> list[Setting]:
        others = [setting for setting in sorted(scores, key=str) if setting not in first]
        return [*first, *random.Random(seed).sample(others, TRIALS - len(first))]

    ways: dict[str, Callable[[int], list[Setting]]] = {
        "optuna": optuna,
        "random": chance,
        "corners then random": corners,
    }
    found = {
        name: [max(scores[setting] for setting in way(seed)) / top for seed in range(SEEDS)]
        for name, way in ways.items()
    }
    return {"by_seed": found, "random_expected": expected_best(sorted(scores.values()), TRIALS) / top}


def trial_of(number: int, setting: Setting, score: float) -> TuneTrial:
    """A trial as the replayed grid answers it."""
    return TuneTrial(
        number=number, setting=setting, status="measured", rate=score or None, score=score, reason="", seconds=0.0
    )


def expected_best(values: Sequence[float], draws: int) -> float:
    """The exact mean of the largest of so many draws without repeats, from values in ascending order."""
    total = math.comb(len(values), draws)
    return sum(value * math.comb(rank, draws - 1) / total for rank, value in enumerate(values))


def ratio_of(pairs: Sequence[Sequence[float]]) -> dict[str, float] | None:
    """The geometric mean of found over best, with its 95 % t interval; None where both are one setting."""
    if not pairs:
        return None
    from scipy.stats import t

    logs = [math.log(found / best) for found, best in pairs]
    middle = statistics.mean(logs)
    half = t.ppf(0.975, len(logs) - 1) * statistics.stdev(logs) / math.sqrt(len(logs))
    return {"ratio": math.exp(middle), "low": math.exp(middle - half), "high": math.exp(middle + half), "n": len(logs)}


def write_results(work: Path) -> None:
    """The JSON and the table, from what the pieces left."""
    models = [model_record(case, work) for case in CASES.values() if (work / f"{case.name}.search.json").exists()]
    record = {
        "what": __doc__,
        "command": "python -m benchmarks.tuning package|grid MODEL|search MODEL|table --work DIR",
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "environment": Environment.here().model_dump(mode="json", exclude={"platform"}),
        "cpus": describe_cpus(),
        "probe_seconds": PROBE_SECONDS,
        "grid": [knob.model_dump(mode="json") for knob in GRID],
        "trials": TRIALS,
        "seeds": SEEDS,
        "models": models,
    }
    RESULTS.joinpath("tuning.json").write_text(json.dumps(record, indent=1) + "\n")
    RESULTS.joinpath("tuning.md").write_text(table(record))
    print(table(record))


def model_record(case: Case, work: Path) -> dict[str, Any]:
    """All that was measured of one model, and what follows from it."""
    rows = read_rows(work / f"{case.name}.grid.jsonl")
    searched = json.loads((work / f"{case.name}.search.json").read_text())
    scores = grid_scores(work, case)
    return {
        "model": case.name,
        "side": case.side,
        "p99_ms": case.bound_ms,
        "cells": len(scores),
        "own": dumped(own(case, work)),
        "own_rate": scores[own(case, work)],
        "grid_seconds": sum(row.get("seconds", 0.0) for row in rows),
        "search_seconds": sum(trial["seconds"] for trial in searched["trials"]),
        "ratio": ratio_of(searched["pairs"]),
        "replay": replay(scores, own(case, work)),
        "grid": rows,
        "search": searched,
    }


def dumped(setting: Setting) -> dict[str, Any]:
    """A setting as it stands in the files."""
    return setting.model_dump(mode="json", exclude_none=True)


def read_rows(path: Path) -> list[dict[str, Any]]:
    """The measurements so far."""
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def add_row(path: Path, row: dict[str, Any]) -> None:
    """Keep one measurement."""
    with path.open("a") as stream:
        stream.write(json.dumps(row) + "\n")


if __name__ == "__main__":
    main()
