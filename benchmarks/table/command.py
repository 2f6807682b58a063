"""The command line of run.py: which models, with which budget, and what is kept when.

Owns the options, resuming, and the writing of the results. Measures through a function it is given, so that a test
needs no model.
"""

import argparse
import json
import os
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.table.assemble import merged, to_table
from benchmarks.table.cold import ROOT
from benchmarks.table.ours import PACKAGE
from benchmarks.table.page import page
from benchmarks.table.place import here, same_ground
from benchmarks.table.plots import draw_plots
from benchmarks.table.records import ModelRecord, Settings, Table
from benchmarks.table.subjects import ALL, FEW, batches_of
from deploy.validate.machine import default_threads

RESULTS, DOCS = ROOT / "benchmarks" / "results", ROOT / "docs"
TABLE_FILE, PAGE_FILE = "table.json", "benchmarks.md"

Measure = Callable[[str, Settings, Path], ModelRecord]


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """What a run does: settings by model, the folder of finished models, and where the results go."""

    settings: dict[str, Settings]
    work: Path
    results: Path
    docs: Path
    command: str


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure what was asked for, or render what is there."""
    parser = argparse.ArgumentParser(description="Speed, memory and error of every route, side by side.")
    parser.add_argument("--full", action="store_true", help=f"all models: {', '.join(ALL)}")
    parser.add_argument("--models", help=f"these models, separated by commas; default: {', '.join(FEW)}")
    parser.add_argument("--batches", default="", help="batch sizes, such as 1,8,32; default: by the model's size")
    parser.add_argument("--seconds", type=float, default=1.5, help="for each route at each batch size")
    parser.add_argument("--threads", type=int, default=default_threads(), help="for everyone")
    parser.add_argument("--without-compile", action="store_true", help="leave torch.compile out, which takes minutes")
    parser.add_argument("--with-peers", action="store_true", help="Model Navigator too, in an environment of its own")
    parser.add_argument("--work", type=Path, help="keep finished models here, so that a killed run goes on")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of table.json")
    parser.add_argument("--docs", type=Path, default=DOCS, help="folder of benchmarks.md and its plots")
    parser.add_argument("--render", action="store_true", help="only write the page again, from table.json")
    given = parser.parse_args(arguments)
    if given.render:
        render(Table.read(given.results / TABLE_FILE), given.docs)
        return
    names = given.models.split(",") if given.models else ALL if given.full else FEW
    if unknown := [name for name in names if name not in ALL]:
        parser.error(f"no model {unknown[0]!r}; there are {', '.join(ALL)}")
    asked = tuple(int(size) for size in given.batches.split(",") if size)
    with tempfile.TemporaryDirectory(prefix="deployctl-table-") as temporary:
        job = Job(
            settings={name: _settings(given, batches_of(name, asked)) for name in names},
            work=given.work or Path(temporary),
            results=given.results,
            docs=given.docs,
            command=_command(given),
        )
        run(job, _measure())


def run(job: Job, measure: Measure) -> Table:
    """Measure each model that is not finished yet; the results are written after each one."""
    job.work.mkdir(parents=True, exist_ok=True)
    found: dict[str, ModelRecord] = {}
    table = None
    for name, settings in job.settings.items():
        kept = job.work / f"{name}.json"
        record = _finished(kept, settings)
        if record is None:
            record = measure(name, settings, job.work / name)
            record.write(kept)
        else:
            print(f"{name}: measured before, on {record.place.date}", file=sys.stderr)
        found[name] = record
        before = _before(job.results / TABLE_FILE)
        table = to_table(merged(found, before.models if before else (), order=ALL), command=job.command)
        job.results.mkdir(parents=True, exist_ok=True)
        (job.results / TABLE_FILE).write_text(json.dumps(table.model_dump(mode="json"), indent=1) + "\n")
        render(table, job.docs)
    assert table is not None, "at least one model is asked for"
    return table


def render(table: Table, docs: Path) -> None:
    """Write the page and its plots."""
    docs.mkdir(parents=True, exist_ok=True)
    draw_plots(table.models, docs)
    (docs / PAGE_FILE).write_text(page(table))


def _finished(kept: Path, settings: Settings) -> ModelRecord | None:
    """The record of a model that a run before had finished here, under the same conditions."""
    if not kept.exists():
        return None
    record = ModelRecord.read(kept)
    return record if record.settings == settings and same_ground(record.place, here()) else None


def _before(path: Path) -> Table | None:
    return Table.read(path) if path.exists() else None


def _settings(given: argparse.Namespace, batches: tuple[int, ...]) -> Settings:
    return Settings(
        batches=batches,
        seconds=given.seconds,
        threads=given.threads,
        package=PACKAGE,
        compiled=not given.without_compile,
        peers=given.with_peers,
        wait_policy=os.environ.get("OMP_WAIT_POLICY"),
    )


def _command(given: argparse.Namespace) -> str:
    said = ["--full"] * given.full + (["--models", given.models] if given.models else [])
    said += ["--batches", given.batches] if given.batches else []
    said += ["--seconds", f"{given.seconds:g}"] if given.seconds != 1.5 else []
    said += ["--without-compile"] * given.without_compile + ["--with-peers"] * given.with_peers
    return " ".join(["python benchmarks/run.py", *said])


def _measure() -> Measure:
    from benchmarks.table.measure import measure_model

    return measure_model
