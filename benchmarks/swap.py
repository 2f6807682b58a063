"""Are requests lost or answered wrongly while the promoted version of a served model is swapped under load?

Owns results/swap.json and results/swap.md. Run from the project's root: `python -m benchmarks.swap`; some ten minutes.

A real tritonserver serves a repository with two versions of a classifier whose answers differ for every row.
Closed-loop clients ask it over gRPC and HTTP, one row at a time and without naming a version, while the version is
promoted and rolled back many times. Every answer is compared with what the version that the answer names computes. In
explicit mode each promotion is followed by one load call, in poll mode by nothing. Then the same load meets what an
operator must not do.

Stated beforehand: no request fails and no answer is wrong in either mode, and in explicit mode no request that is sent
after the load call has returned is answered by the version before.
"""

import argparse
import json
import os
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.swap_load import Tally, asking
from benchmarks.swap_mistakes import HARMLESS, MISTAKES, Deed
from benchmarks.swap_world import World, served_world
from deploy.progress import Progress
from deploy.report.stages import Stages
from deploy.repository.layout import promoted_version
from deploy.repository.manifest import Environment
from deploy.repository.promotion import promote, rollback
from deploy.serve.client import PROTOCOLS, Client
from deploy.serve.engines import find_engine
from deploy.serve.server import ModelControl

MODES: tuple[ModelControl, ...] = ("explicit", "poll")
RESULTS = Path(__file__).parent / "results" / "swap.json"
TABLE = Path(__file__).parent / "results" / "swap.md"
_PATIENCE = 60.0
_BACKENDS = {"local": ", python-based backends in place of the C++ ones", "native": ""}


@dataclass(frozen=True, slots=True, kw_only=True)
class Swap:
    """One change of the promoted version: how, to which, when it began, and when the server was known to be through.

    `through` is when the load call returned in explicit mode, when the new version was ready in poll mode.
    """

    action: str
    version: int
    began: float
    through: float


@dataclass(slots=True, kw_only=True)
class Run:
    """All swaps of one server, and what its clients met."""

    mode: ModelControl
    swaps: list[Swap] = field(default_factory=list)
    tallies: Sequence[Tally] = ()

    def late(self, tally: Tally) -> int:
        """Requests sent after a swap was through, and before the next began, that another version answered."""
        ends = [swap.began for swap in self.swaps[1:]] + [np.inf]
        pairs = zip(self.swaps, ends, strict=True)
        return sum(tally.late(swap.version, swap.through, end) for swap, end in pairs)


def swap_under_load(world: World, *, swaps: int, pause: float, clients: int) -> Run:
    """Promote and roll back in turn while clients ask."""
    run = Run(mode=world.mode)
    addresses = {protocol: world.address(protocol) for protocol in PROTOCOLS}
    with asking(addresses, world.question, clients=clients) as tallies, Client("grpc", world.address("grpc")) as client:
        run.tallies = tallies
        time.sleep(pause)
        for _ in range(swaps):
            run.swaps.append(_swap(world, client))
            time.sleep(pause)
    return run


def _swap(world: World, client: Client) -> Swap:
    repository, name = world.repository, world.question.model
    began = time.monotonic()
    action = "promote" if promoted_version(repository / name) == 1 else "rollback"
    result = promote(repository, name, 2) if action == "promote" else rollback(repository, name)
    if world.mode == "explicit":
        client.load(name)
    else:
        until = began + _PATIENCE
        while not world.ready(client, result.version.number) or world.ready(client, result.previous or 0):
            assert time.monotonic() < until, f"the server did not take up {result.version}"
            time.sleep(0.02)
    return Swap(action=action, version=result.version.number, began=began, through=time.monotonic())


def main() -> None:
    """Run everything, write the JSON and the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--swaps", type=int, default=40, help="in each mode")
    parser.add_argument("--clients", type=int, default=2, help="of each protocol")
    parser.add_argument("--pause", type=float, default=1.0, help="seconds of load between two swaps")
    given = parser.parse_args()
    engine = find_engine(None)
    rows: list[dict[str, Any]] = []
    with Stages() as progress, tempfile.TemporaryDirectory(prefix="swap-") as folder:
        for mode in MODES:
            with (
                progress.stage(f"{given.swaps} swaps in {mode} mode"),
                served_world(Path(folder, mode), mode, engine) as world,
            ):
                run = swap_under_load(world, swaps=given.swaps, pause=given.pause, clients=given.clients)
            rows += [row(run, tally) for tally in run.tallies]
        found = {"harmless": HARMLESS, "mistakes": MISTAKES}
        deeds = {kind: [measure(one, Path(folder), progress) for one in all_] for kind, all_ in found.items()}
    record = {
        "what": __doc__,
        "command": f"python -m benchmarks.swap --swaps {given.swaps} --clients {given.clients} --pause {given.pause:g}",
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "environment": Environment.here().model_dump(mode="json", exclude={"platform"}),
        "server": f"tritonserver {engine.server_version} ({engine.kind} engine{_BACKENDS[engine.kind]})",
        "cpus": len(os.sched_getaffinity(0)),
        "rows": rows,
        **deeds,
    }
    RESULTS.write_text(json.dumps(record, indent=2) + "\n")
    TABLE.write_text(table(record))
    print(TABLE.read_text())


def measure(deed: Deed, folder: Path, progress: Progress, *, clients: int = 2) -> dict[str, Any]:
    """What the load met while something was done to the repository of a server of its own."""
    with (
        progress.stage(f"{deed.mode}: {deed.what}"),
        served_world(folder / deed.name, deed.mode, find_engine(None)) as world,
    ):
        return deed.measure(world, clients=clients)


def row(run: Run, tally: Tally) -> dict[str, Any]:
    """What the clients of one protocol met in one mode."""
    times = [one.done - one.sent for one in tally.answers if one.version is not None]
    first = [tally.first_from(swap.version, swap.began) for swap in run.swaps]
    seen = [seconds for seconds in first if seconds is not None]
    return {
        "mode": run.mode,
        "protocol": tally.protocol,
        "swaps": len(run.swaps),
        "rollbacks": sum(swap.action == "rollback" for swap in run.swaps),
        "sent": tally.sent,
        "failed": tally.failed,
        "wrong": tally.wrong,
        "late": run.late(tally),
        "by_version": {str(version): count for version, count in tally.by_version.items()},
        "errors": tally.errors,
        "latency_ms": {"p50": 1000 * float(np.median(times)), "max": 1000 * max(times)},
        "first_new_answer_s": {"median": float(np.median(seen)), "max": max(seen)} if seen else None,
        "failure_rate_below": 3.0 / tally.sent if not tally.failed + tally.wrong else None,
    }


def table(record: dict[str, Any]) -> str:
    """The results as Markdown."""
    lines = [
        "# Swapping versions under load",
        "",
        f"`{record['command']}`, {record['date']}, {record['server']}, {record['environment']['cpu']} with "
        f"{record['cpus']} CPUs, onnxruntime {record['environment']['onnxruntime']}.",
        "",
        "Late: sent after the swap was through, answered by the version before. First: seconds from the promotion to "
        "the first answer of the new version. The last column is the rule of three: with none in n, the true share of "
        "failed or wrong answers lies below 3/n at 95 %.",
        "",
        "| mode | protocol | swaps (rollbacks) | sent | failed | wrong | late | by version 1 / 2 | "
        "first, median (max) s | p50 (max) ms | share below |",
        "| --- | --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
        *(_line(one) for one in record["rows"]),
        "",
        "## What may be done",
        "",
        "The same load, each deed once and on a server of its own.",
        "",
        *_deeds(record["harmless"]),
        "",
        "## What must not be done",
        "",
        "The same.",
        "",
        *_deeds(record["mistakes"]),
    ]
    return "\n".join(lines) + "\n"


def _deeds(found: Sequence[dict[str, Any]]) -> list[str]:
    head = (
        "| mode | what was done | sent | failed | wrong | what followed |",
        "| --- | --- | ---: | ---: | ---: | --- |",
    )
    return [*head, *map(_deed, found)]


def _deed(one: dict[str, Any]) -> str:
    counts = " | ".join(f"{one[name]:,}" for name in ("sent", "failed", "wrong"))
    return f"| {one['mode']} | {one['what']} | {counts} | {one['then']} |"


def _line(one: dict[str, Any]) -> str:
    versions = " / ".join(f"{one['by_version'].get(str(number), 0):,}" for number in (1, 2))
    first, latency = one["first_new_answer_s"], one["latency_ms"]
    below = "-" if one["failure_rate_below"] is None else f"{one['failure_rate_below']:.1e}"
    return (
        f"| {one['mode']} | {one['protocol']} | {one['swaps']} ({one['rollbacks']}) | {one['sent']:,} | "
        f"{one['failed']} | {one['wrong']} | {one['late']} | {versions} | {first['median']:.2f} ({first['max']:.2f}) | "
        f"{latency['p50']:.2f} ({latency['max']:.0f}) | {below} |"
    )


if __name__ == "__main__":
    main()
