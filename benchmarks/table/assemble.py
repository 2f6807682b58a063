"""Records of models put together to one table in the form that benchmarks/README.md asks for.

Owns which records may stand beside each other, and the rows that others read. Called by command.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from benchmarks.table import sums
from benchmarks.table.aims import aims
from benchmarks.table.place import same_ground
from benchmarks.table.records import BY_HAND, NAVIGATOR, OURS, ModelRecord, Settings, Table
from deploy.validate.statistics import Estimate


def merged(
    found: Mapping[str, ModelRecord], before: Sequence[ModelRecord], *, order: Sequence[str]
) -> tuple[ModelRecord, ...]:
    """The models of this run, and those of the table before that were measured on the same ground the same way."""
    newest = list(found.values())[-1]
    kept = {
        record.model: record
        for record in before
        if same_ground(record.place, newest.place) and _common(record.settings) == _common(newest.settings)
    }
    records = {**kept, **found}
    return tuple(records[name] for name in order if name in records)


def to_table(models: Sequence[ModelRecord], *, command: str) -> Table:
    """The whole result."""
    newest = max(models, key=lambda model: model.place.date)
    place = newest.place
    return Table(
        what="speed, memory and error of a model by hand and by deployctl, side by side; cold conversion of both",
        command=command,
        date=place.date,
        commit={"id": place.commit, "changed": any(model.place.changed for model in models)},
        hardware={
            "processor": place.processor,
            "cpus": place.cpus,
            "memory_gb": place.memory_gb,
            "accelerator": None,
        },
        versions=place.versions,
        settings=_common(newest.settings),
        control={model.model: _figures(sums.speedup(model, sums.CONTROL)) for model in models},
        aims=tuple(
            {"name": aim.name, "wanted": aim.wanted, "found": aim.found, "n": aim.n, "verdict": aim.verdict}
            for aim in aims(models)
        ),
        rows=tuple(row for model in models for row in _rows(model)),
        models=tuple(models),
    )


def _common(settings: Settings) -> dict[str, Any]:
    """What all models have alike."""
    return settings.model_dump(mode="json", exclude={"batches", "peers", "compiled"})


def _rows(model: ModelRecord) -> Iterator[dict[str, Any]]:
    """One row per figure that people ask for."""
    for name in (*BY_HAND[1:], *OURS.values(), NAVIGATOR):
        for batch in model.settings.batches:
            cell, found = model.cell(name, batch), sums.speedup(model, name, batch=batch)
            if cell and found:
                yield _row(f"{model.model}, {name} over eager, batch {batch}", "ratio", len(cell.rounds), found)
    best = sums.against_best(model)
    if best:
        base = model.cell(sums.best_by_hand(model) or "", 1)
        name = f"{model.model}, {sums.ours(model)} over {sums.best_by_hand(model)}, batch 1"
        yield _row(name, "ratio", len(base.rounds) if base else 0, best)
    for run in model.cold:
        yield _single(f"{model.model}, {run.who}: wall, cold", "s", run.seconds)
        yield _single(f"{model.model}, {run.who}: peak PSS, cold", "GB", round(run.peak / 1e9, 3))
    ratio = sums.conversion_ratio(model)
    if ratio:
        yield _single(f"{model.model}, conversion of both formats over the script by hand, cold", "ratio", ratio)


def _row(name: str, unit: str, n: int, found: Estimate) -> dict[str, Any]:
    return {"name": name, "unit": unit, "n": n, **_figures(found)}


def _single(name: str, unit: str, value: float) -> dict[str, Any]:
    return {"name": name, "unit": unit, "n": 1, "value": round(value, 4), "low": None, "high": None}


def _figures(found: Estimate | None) -> dict[str, Any]:
    if found is None:
        return {"value": None, "low": None, "high": None}
    return {"value": round(found.value, 4), "low": round(found.low, 4), "high": round(found.high, 4)}
