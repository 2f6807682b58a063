"""Samples of serving_overhead.py as figures with intervals, as judged aims, and as a table for people.

Owns the arithmetic and the words; measures nothing.
"""

import subprocess
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from benchmarks.serving_overhead_contenders import CONTROL, IN_PROCESS, OURS, PACKAGED
from benchmarks.serving_overhead_peers import PEERS, UNBATCHED
from benchmarks.serving_overhead_rounds import Cell, Plan, Sample
from deploy.validate.machine import cpu_model, default_threads, describe_cpus, installed_versions
from deploy.validate.statistics import Estimate, paired_ratio, percentile

CONFIDENCE = 0.95
BEYOND_MS = 2.0
SHARES = {"resnet18": 0.95, "mobilenet_v3_small": 0.65}
BUSY = 16
NOISE = 0.1

_HEADS = (
    "contender", "clients", "batch", "n", "p50 ms", "p99 ms", "images/s", "share", "client CPU ms",
    "server CPU ms", "MB",
)  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """What was measured on one model. `batches`: what ours reached in a pilot, which the control is run at."""

    samples: dict[Cell, list[Sample]]
    batches: dict[Cell, int]
    memory: dict[str, int]


def record(measured: dict[str, Measured], plan: Plan, about: dict[str, Any]) -> dict[str, Any]:
    """The whole result, in the form of benchmarks/README.md."""
    rows = [row for model, found in measured.items() for row in model_rows(model, found)]
    control = {model: _control(found) for model, found in measured.items()}
    return {
        "what": "what serving costs beyond calling ONNX Runtime in one's own process, on one machine, client included",
        "command": about["command"],
        "date": about["date"],
        "commit": _commit(),
        "hardware": {
            "processor": cpu_model(),
            "cpus": describe_cpus(),
            "memory_gb": round(psutil.virtual_memory().total / 1e9, 1),
            "accelerator": None,
        },
        "versions": {
            **installed_versions(("onnxruntime", "numpy", "torch")),
            "engine": about["engine"],
            "peers": about["peers"],
        },
        "settings": {
            "threads": default_threads(),
            "rounds": plan.rounds,
            "seconds_per_block": plan.seconds,
            "concurrencies": plan.concurrencies,
            "seed": plan.seed,
            "input": "one seeded float32 image per request, 1x3x224x224, 602 kB",
            "confidence": CONFIDENCE,
        },
        "control": control,
        "aims": [aim for model, found in measured.items() for aim in aims(model, found)],
        "rows": rows,
    }


def _control(found: Measured) -> dict[str, Any]:
    """The process against its twin, and whether so quiet a run is fit to be kept."""
    ratio = _ratio(found, (CONTROL, 1), (IN_PROCESS, 1), _p50)
    return {**_plain(ratio), "fit": ratio is not None and ratio.low >= 1 - NOISE and ratio.high <= 1 + NOISE}


def model_rows(model: str, found: Measured) -> list[dict[str, Any]]:
    """The figures of every cell, and of ours against the others."""
    rows = []
    for cell, samples in sorted(found.samples.items()):
        name = f"{model}, {_cell_name(cell)}"
        latencies = [sample.latencies for sample in samples]
        count = sum(map(len, latencies))
        rows.append(_row(f"{name}: p50", "ms", count, percentile(latencies, 0.5, CONFIDENCE)))
        rows.append(_row(f"{name}: p99", "ms", count, percentile(latencies, 0.99, CONFIDENCE)))
        for what, unit, pick in _PER_BLOCK:
            values = [[pick(sample)] for sample in samples]
            rows.append(_row(f"{name}: {what}", unit, len(values), percentile(values, 0.5, CONFIDENCE)))
    for name, size in memory_rows(found):
        rows.append({"name": f"{model}, {name}", "unit": "MB", "n": 1, "value": size, "low": None, "high": None})
    for cell in (cell for cell in found.samples if cell[0] in OURS):
        control = (IN_PROCESS, found.batches[cell])
        name = f"{model}, {_cell_name(cell)} / {_cell_name(control)}: throughput"
        rows.append(_row(name, "ratio", _rounds(found), _ratio(found, cell, control, _throughput)))
    return rows


def memory_rows(found: Measured) -> list[tuple[str, float]]:
    """Megabytes of each process tree at the end (PSS); ours serves both protocols."""
    return [(f"{name}: memory (PSS)", round(size / 1e6, 1)) for name, size in found.memory.items() if name != CONTROL]


def aims(model: str, found: Measured) -> list[dict[str, Any]]:
    """Each aim with its figure: met where the whole interval is on the right side, missed where it is on the other."""
    judged = []
    for name in (name for name in OURS if (name, 1) in found.samples):
        if name in PACKAGED:
            beyond = _difference(found, (name, 1), (IN_PROCESS, 1))
            judged.append(_aim(f"{model}, {name}: p50 at concurrency 1 beyond in-process, ms", beyond, most=BEYOND_MS))
        busy = (name, BUSY)
        if busy in found.samples:
            share = _ratio(found, busy, (IN_PROCESS, found.batches[busy]), _throughput)
            text = f"{model}, {name}: throughput at concurrency {BUSY} / in-process at the same batch"
            judged.append(_aim(text, share, least=SHARES.get(model, 0.0)))
    for name, peer in product(PACKAGED, PEERS):
        for size in sorted(size for other, size in found.samples if other == peer):
            text = f"{model}, {name} / {peer} at concurrency {size}"
            if _better(found, peer, size, _throughput):
                faster = _ratio(found, (name, size), (peer, size), _throughput)
                judged.append(_aim(f"{text}: throughput", faster, least=1.0))
            if _better(found, peer, size, lambda sample: [-_median(sample)]):
                sooner = _ratio(found, (name, size), (peer, size), _p50)
                judged.append(_aim(f"{text}: p50", sooner, most=1.0))
    return judged


def table(found: dict[str, Any]) -> str:
    """The record as Markdown."""
    rows = {row["name"]: row for row in found["rows"]}
    lines = [
        "# What serving costs",
        "",
        *_explained(found["settings"]),
        "",
        f"Made by `{found['command']}` on {found['date'][:10]}: {found['hardware']['cpus']}, "
        + f"ONNX Runtime {found['versions']['onnxruntime']}, {found['versions']['engine']}, "
        + f"{', '.join(_peer_releases(found['versions']['peers']) or ['without peers'])}.",
    ]
    for model in found["control"]:
        lines += ["", f"## {model}", "", *_model_table(model, rows), "", _control_line(found["control"][model])]
    lines += ["", "## Aims", "", "| aim | wanted | found | |", "| --- | --- | --- | --- |"]
    lines += [f"| {aim['name']} | {aim['wanted']} | {_cell(aim)} | {aim['verdict']} |" for aim in found["aims"]]
    return "\n".join(lines) + "\n"


def _explained(settings: dict[str, Any]) -> list[str]:
    rounds, seconds = settings["rounds"], settings["seconds_per_block"]
    return [
        "In-process ONNX Runtime, the local engine over gRPC and HTTP, BentoML and LitServe on the same ONNX file,",
        f"each with {settings['threads']} threads for the model (deployctl tuned: that many instances with one thread,",
        f"as `deployctl tune` finds where throughput counts), in one run: blocks of {seconds:g} s in random order",
        f"over {rounds} rounds, whoever is not measured stopped. Each client sends its next request, 602 kB of raw",
        "float32, when it has the answer to the last. The clients share the machine with the server; their CPU time",
        "is apart. In brackets: 95 % intervals; a dash where none exists at that n. The share is of in-process",
        "throughput at the batch that the server reached, by its own counters. Memory is the whole process tree's",
        "(PSS); one server answers gRPC and HTTP, another the tuned ones. An aim is met, or missed, where its whole",
        "interval is; in a comparison, the peer's better variant stands, batched or not.",
    ]


def _model_table(model: str, rows: dict[str, dict[str, Any]]) -> list[str]:
    lines = [f"| {' | '.join(_HEADS)} |", "| --- " * len(_HEADS) + "|"]
    names = [name.removesuffix(": p50") for name in rows if name.startswith(f"{model}, ") and name.endswith(": p50")]
    order = (IN_PROCESS, CONTROL, *OURS, *PEERS)
    names.sort(key=lambda name: order.index(name.split(", ")[1]))
    for name in names:
        contender, _, size = name.removeprefix(f"{model}, ").rpartition(", ")
        share = next((row for key, row in rows.items() if key.startswith(f"{name} / ")), None)
        memory = rows.get(f"{model}, {contender}: memory (PSS)")
        columns = [
            contender,
            size.removeprefix("concurrency ") if "concurrency" in size else "none",
            f"{rows[f'{name}: batch']['value'] or 0:.2f}",
            str(rows[f"{name}: p50"]["n"]),
            *(_cell(rows[f"{name}: {what}"]) for what in ("p50", "p99", "throughput")),
            _cell(share) if share else "",
            *(f"{rows[f'{name}: {what} CPU']['value'] or 0:.2f}" for what in ("client", "server")),
            f"{memory['value']:.0f}" if memory else "",
        ]
        lines.append(f"| {' | '.join(columns)} |")
    return lines


def _control_line(control: dict[str, Any]) -> str:
    said = f"In-process against itself in a second process (A/A), p50: {_cell(control)}"
    return f"{said}." if control["fit"] else f"{said}: **too noisy a run to be kept**, see benchmarks/README.md."


def _peer_releases(releases: Sequence[str]) -> list[str]:
    return [text.replace("==", " ") for text in releases if text.startswith(("bentoml=", "litserve="))]


def _cell(row: dict[str, Any]) -> str:
    if row["value"] is None:
        return "—"
    digits = 1 if abs(row["value"]) >= 100 else 2
    return f"{row['value']:.{digits}f} [{row['low']:.{digits}f}, {row['high']:.{digits}f}]"


def _cell_name(cell: Cell) -> str:
    name, size = cell
    return f"{name}, {'batch' if name in (IN_PROCESS, CONTROL) else 'concurrency'} {size}"


def _throughput(sample: Sample) -> list[float]:
    return [sample.throughput]


def _p50(sample: Sample) -> Sequence[float]:
    return sample.latencies


_PER_BLOCK: tuple[tuple[str, str, Callable[[Sample], float]], ...] = (
    ("throughput", "images/s", lambda sample: sample.throughput),
    ("batch", "images", lambda sample: sample.batch),
    ("client CPU", "ms per request", lambda sample: sample.client_cpu),
    ("server CPU", "ms per request", lambda sample: sample.server_cpu),
)


def _ratio(found: Measured, ours: Cell, base: Cell, pick: Callable[[Sample], Sequence[float]]) -> Estimate | None:
    mine, theirs = ([pick(sample) for sample in found.samples[cell]] for cell in (ours, base))
    return paired_ratio(mine, theirs, CONFIDENCE)


def _better(found: Measured, peer: str, size: int, pick: Callable[[Sample], Sequence[float]]) -> bool:
    """Whether this is the better one of the peer's two: ours is compared with that one."""
    product_name = peer.removesuffix(UNBATCHED)
    twins = [name for name in (product_name, product_name + UNBATCHED) if (name, size) in found.samples]
    values = {name: float(np.median([pick(sample)[0] for sample in found.samples[name, size]])) for name in twins}
    return max(values, key=lambda name: values[name]) == peer


def _median(sample: Sample) -> float:
    return float(np.median(sample.latencies))


def _difference(found: Measured, ours: Cell, base: Cell) -> Estimate | None:
    """The median over rounds of the difference of the two medians, as `paired_ratio` has it for ratios."""
    medians = [[_median(sample) for sample in found.samples[cell]] for cell in (ours, base)]
    return percentile([[mine - theirs] for mine, theirs in zip(*medians, strict=True)], 0.5, CONFIDENCE)


def _aim(name: str, found: Estimate | None, *, least: float | None = None, most: float | None = None) -> dict[str, Any]:
    """One aim; `low` and `high` are the interval's ends."""
    wanted = f"at least {least:g}" if least is not None else f"at most {most:g}"
    if found is None:
        verdict = "undecided"
    else:
        inside = [value >= least if least is not None else value <= (most or 0.0) for value in (found.low, found.high)]
        verdict = "met" if all(inside) else "undecided" if any(inside) else "missed"
    return {"name": name, "wanted": wanted, **_plain(found), "verdict": verdict}


def _row(name: str, unit: str, n: int, found: Estimate | None) -> dict[str, Any]:
    return {"name": name, "unit": unit, "n": n, **_plain(found)}


def _plain(found: Estimate | None) -> dict[str, float | None]:
    ends = ("value", "low", "high")
    return {end: round(getattr(found, end), 4) if found else None for end in ends}


def _rounds(found: Measured) -> int:
    return len(next(iter(found.samples.values())))


def _commit() -> dict[str, Any]:
    def git(*arguments: str) -> str:
        here = Path(__file__).parent
        return subprocess.run(["git", *arguments], capture_output=True, text=True, check=True, cwd=here).stdout.strip()

    return {"id": git("rev-parse", "HEAD"), "changed": bool(git("status", "--porcelain"))}
