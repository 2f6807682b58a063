"""How often a verdict is right: live runs against a server whose latency law is known, and simulated ones.

Owns results/slo_verdicts.*. Run from the project's root: `python -m benchmarks.slo_verdicts`; about 15 minutes.

Stated beforehand: with the true p99 at 0.7 and at 1.5 times the bound, at least 95 % of the runs are decided and right
within QUERIES queries and none is wrong; at 0.95 and 1.05 at most 1 % is wrong. The server answers after lognormal
delays, without a queue; what its process and the connection add (measured: the client's p50 less the law's) is said.
"""

import argparse
import json
import statistics
import tempfile
import time
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import slo_low_rates
from deploy.evidence import Verdict
from deploy.progress import Progress
from deploy.report.stages import Stages
from deploy.repository.manifest import Environment
from deploy.slo.decision import Counted, Looks, at_best, design_effect, judge
from deploy.slo.records import Bound, SloEvidence
from deploy.slo.request import SloRequest
from deploy.slo.run import check_slo
from tests.slo.law import Law, closed_loop, served

QUERIES = 4000
RATE = 200.0
# Seconds, so that what server, connection and a shared machine add, a few milliseconds, moves no verdict.
BOUND = Bound(kind="latency", q=0.99, limit=1000.0)
RATIOS = (0.7, 0.95, 1.05, 1.5)
RESULTS = Path(__file__).parent / "results" / "slo_verdicts.json"
TABLE = Path(__file__).parent / "results" / "slo_verdicts.md"
Row = dict[str, Any]


def main() -> None:
    """Run everything, write the JSON and the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=10, help="live runs at each ratio")
    parser.add_argument("--simulated", type=int, default=1000, help="simulated runs at each ratio")
    parser.add_argument("--low-rates", type=int, default=1000, help="simulated runs of each server at each low rate")
    parser.add_argument("--only-simulated", action="store_true", help="make the simulated parts anew, keep the rest")
    given = parser.parse_args()
    if given.only_simulated:
        _write(json.loads(RESULTS.read_text()) | _all_simulated(given))
        return
    with tempfile.TemporaryDirectory() as folder, Stages() as progress:
        request = make_request(Path(folder, "samples.npz"))
        # In turn, so that a busy minute of the machine meets every ratio alike.
        found = [(ratio, live(request, ratio, seed, progress)) for seed in range(given.runs) for ratio in RATIOS]
        rows = [live_row(ratio, [one for at, one in found if at == ratio]) for ratio in RATIOS]
        with progress.stage("simulated runs"):
            simulations = _all_simulated(given)
        stalls = stalled(request, progress)
    record = {
        "what": __doc__,
        "command": f"python -m benchmarks.slo_verdicts --runs {given.runs} --simulated {given.simulated}",
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "environment": Environment.here().model_dump(mode="json", exclude={"platform"}),
        "queries_at_most": QUERIES,
        "live": rows,
        "stalls": stalls,
        **simulations,
    }
    _write(record)


def _all_simulated(given: argparse.Namespace) -> Row:
    """What takes no server, and says itself when it was made."""
    return {
        "simulated": [simulated_row(ratio, given.simulated) for ratio in RATIOS],
        "low_rates": slo_low_rates.rows(given.low_rates),
        "simulated_by": f"python -m benchmarks.slo_verdicts --only-simulated --simulated {given.simulated} "
        f"--low-rates {given.low_rates}",
        "simulated_on": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def _write(record: Row) -> None:
    RESULTS.write_text(json.dumps(record, indent=2) + "\n")
    TABLE.write_text(table(record))
    print(TABLE.read_text())


def make_request(samples: Path) -> SloRequest:
    """A run of at most QUERIES queries whose length is not bounded from below: what is judged is the rule."""
    np.savez(samples, allow_pickle=False, INPUT__0=np.zeros((4, 4), np.float32))
    return SloRequest(
        reference="law",
        url="",
        bounds=(BOUND,),
        rate=RATE,
        samples=samples,
        seconds=QUERIES / RATE,
        min_seconds=0.0,
        warm_up_seconds=1.0,
    )


def live(request: SloRequest, ratio: float, seed: int, progress: Progress) -> SloEvidence:
    """One run against a server of its own whose p99 is `ratio` times the bound."""
    law = Law(p99=ratio * BOUND.limit / 1000, seed=1000 * seed + round(100 * ratio))
    with served(law) as (url, _), progress.stage(f"live, p99 at {ratio:g} of the bound, seed {seed}"):
        return check_slo(replace(request, url=url, seed=seed))


def live_row(ratio: float, found: list[SloEvidence]) -> Row:
    """What became of the live runs at one ratio. An invalid run is neither right nor wrong, and it is counted."""
    verdicts = [one.judgement.verdict if one.invalid is None else None for one in found]
    law = Law(p99=ratio * BOUND.limit / 1000)
    p50 = [one.quantiles[0].value for one in found]
    return {
        **counted(ratio, verdicts),
        "queries_median": statistics.median(one.queries for one in found),
        "queries_most": max(one.queries for one in found),
        "added_ms": statistics.median(p50) - law.median * 1000,
        "lag_p99_ms": statistics.median(one.client.lag_p99 for one in found),
        "client_cpu_ms_per_query": statistics.median(
            1000 * one.client.cpu_seconds / (one.queries + one.warm_up_queries) for one in found
        ),
    }


def counted(ratio: float, verdicts: list[Verdict | None]) -> Row:
    """How many were right, wrong, undecided and invalid."""
    right = Verdict.PASS if ratio < 1 else Verdict.FAIL
    wrong = Verdict.FAIL if ratio < 1 else Verdict.PASS
    return {
        "ratio": ratio,
        "runs": len(verdicts),
        "right": verdicts.count(right),
        "wrong": verdicts.count(wrong),
        "undecided": verdicts.count(Verdict.UNDECIDED),
        "invalid": verdicts.count(None),
    }


def simulated_row(ratio: float, runs: int) -> Row:
    """The rule alone, with every look of a run, on independent queries."""
    generator = np.random.default_rng(round(ratio * 100))
    share = Law(p99=ratio).share_over(1.0)
    found = [simulated(share, generator) for _ in range(runs)]
    return {
        **counted(ratio, [verdict for verdict, _ in found]),
        "queries_median": statistics.median(count for _, count in found),
        "queries_most": max(count for _, count in found),
    }


def simulated(share: float, generator: np.random.Generator) -> tuple[Verdict | None, int]:
    """The verdict of one simulated run, and how many queries it took."""
    over = generator.random(QUERIES) < share
    seconds = np.cumsum(generator.exponential(1 / RATE, QUERIES))
    looks = Looks(QUERIES)
    for count in looks.counts:
        past = seconds[:count], over[:count]
        seen = Counted(
            n=count,
            over=int(over[:count].sum()),
            design_effect=design_effect(*past),
            at_best=at_best(*past, left=QUERIES - count, rate=RATE),
        )
        error = looks.share(count)
        verdict = judge(BOUND, seen, pass_error=error, fail_error=error, confidence=0.99).judgement.verdict
        if verdict is not Verdict.UNDECIDED:
            return verdict, count
    return Verdict.UNDECIDED, QUERIES


def stalled(request: SloRequest, progress: Progress) -> Row:
    """One second in twenty is stalled: what a closed loop sees, and what this tool says of it."""
    law = Law(p99=0.015, period=20.0, stall=1.0)
    bound = Bound(kind="latency", q=0.99, limit=50.0)
    with served(law) as (url, _):
        with progress.stage("a closed loop meets the stalls"):
            closed = closed_loop(url, seconds=60.0)
        with progress.stage("open-loop load meets the stalls"):
            began = time.monotonic()
            found = check_slo(replace(request, url=url, bounds=(bound,), seconds=120.0, min_seconds=30.0))
    return {
        "bound_ms": bound.limit,
        "closed_loop_queries": len(closed),
        "closed_loop_p99_ms": float(np.quantile(closed, 0.99)) * 1000,
        "closed_loop_over": sum(one * 1000 > bound.limit for one in closed),
        "open_loop_queries": found.queries,
        "open_loop_p99_ms": found.quantiles[3].value,
        "open_loop_over": found.bounds[0].over,
        "verdict": found.judgement.verdict,
        "invalid": found.invalid,
        "design_effect": found.bounds[0].design_effect,
        "seconds": time.monotonic() - began,
    }


def table(record: Row) -> str:
    """The results as Markdown."""
    environment, stalls = record["environment"], record["stalls"]
    lines = [
        "# How often a verdict is right",
        "",
        f"Made by `{record['command']}` on {record['date'][:10]}: {environment['cpu']}, {environment['cores']} cores, "
        f"Python {environment['python']}, client and server on the same machine.",
        f"Stated beforehand: at most {QUERIES} queries a run at {RATE:g}/s, {BOUND.wanted}, confidence 99 %.",
        "",
        "| runs | true p99 / bound | n | right | wrong | undecided | invalid | queries, median | most |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for kind in ("live", "simulated"):
        lines += [
            f"| {kind} | {row['ratio']:g} | {row['runs']} | {row['right']} | {row['wrong']} | {row['undecided']} | "
            f"{row['invalid']} | {row['queries_median']:.0f} | {row['queries_most']} |"
            for row in record["live" if kind == "live" else "simulated"]
        ]
    added = [row["added_ms"] for row in record["live"]]
    cpu = [row["client_cpu_ms_per_query"] for row in record["live"]]
    lines += [
        "",
        f"What server and connection add to the law at p50: {min(added):.2f} to {max(added):.2f} ms; the client spends "
        f"{min(cpu):.2f} to {max(cpu):.2f} ms of processor time on a query.",
        "",
        f"A server that stalls one second in twenty, p99 <= {stalls['bound_ms']:g} ms: one client in a closed loop "
        f"measures a p99 of {stalls['closed_loop_p99_ms']:.1f} ms ({stalls['closed_loop_over']} of "
        f"{stalls['closed_loop_queries']} over the bound: a pass). Open-loop load measures "
        f"{stalls['open_loop_p99_ms']:.0f} ms ({stalls['open_loop_over']} of {stalls['open_loop_queries']} over it): "
        f"**{stalls['verdict']}**, after {stalls['seconds']:.0f} s.",
        "",
        *slo_low_rates.table(record["low_rates"]),
        f"What is simulated was made by `{record['simulated_by']}` on {record['simulated_on'][:10]}.",
        "",
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    main()
