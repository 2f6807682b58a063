"""What the next fine-tune of an architecture costs to package, against the first.

Owns results/repackaging.*. Run from the project's root on an idle machine: `python -m benchmarks.repackaging`. Each
round of a model: an empty cache, one seeded fine-tune packaged, another of the same architecture packaged, and that one
again without a cache, each by the command `deployctl package` in a new process, with parity, latency and the served
check as by default: so the next one carries over the latency of the first, where that was measured quietly. The
conversion part is the time from the start of the export to the end of the last format.
"""

import argparse
import json
import os
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from deploy.cache import cache_folder
from deploy.repository.manifest import Environment
from deploy.validate.machine import describe_cpus
from tests.fixtures import save_state_dict, seeded_module

RESULTS = Path(__file__).parent / "results"
MODELS = ("resnet50", "vit_b_16")
TURNS = (("first", 0, True), ("next", 1, True), ("next without cache", 1, False))
PARTS = (
    "read the checkpoint", "conversion", "export", "convert to aoti", "convert to onnx", "prove against float64",
    "serve", "whole",
)  # fmt: skip
CARRIED = "latency carried over"
_LINE = re.compile(r"\d\d:\d\d:\d\d  (?P<name>.+?)(?:(?P<begins> \.\.\.)|: done, [\d.]+ s)")
# What the next one may take of the first one's time.
AIMS = {"conversion": 0.05, "whole": 0.25}


def main() -> None:
    """All rounds."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", default=",".join(MODELS), help="torchvision builders")
    parser.add_argument("--n", type=int, default=3, help="rounds of each model")
    parser.add_argument("--without-control", action="store_true", help="leave out the next one without a cache")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder for the two files")
    given = parser.parse_args()
    rows: list[dict[str, Any]] = []
    for model in given.models.split(","):
        rows += measure(model, given.n, TURNS[:2] if given.without_control else TURNS)
        # After each, so that a run that is cut short keeps the models before.
        record = {
            "what": __doc__,
            "command": f"python -m benchmarks.repackaging --models {given.models} --n {given.n}"
            + " --without-control" * given.without_control,
            "date": datetime.now(UTC).isoformat(timespec="seconds"),
            "environment": Environment.here().model_dump(mode="json", exclude={"platform"}),
            "cpus": describe_cpus(),
            "aims": aims(rows),
            "rows": rows,
        }
        given.results.mkdir(parents=True, exist_ok=True)
        given.results.joinpath("repackaging.json").write_text(json.dumps(record, indent=1) + "\n")
        given.results.joinpath("repackaging.md").write_text(table(record))
    print(table(record))


def measure(model: str, rounds: int, turns: Sequence[tuple[str, int, bool]]) -> list[dict[str, Any]]:
    """What each run of each round took."""
    engines = cache_folder("engines")
    found = []
    with tempfile.TemporaryDirectory() as folder:
        for seed in (0, 1):
            save_state_dict(seeded_module(model, seed=seed), Path(folder, f"{seed}.pt"))
        for number in range(rounds):
            work = Path(folder, str(number))
            cache = work / "cache"
            cache.mkdir(parents=True)
            (cache / "engines").symlink_to(engines)
            for turn, seed, cached in turns:
                arguments = [f"{folder}/{seed}.pt", "--arch", model, "--name", model, "--repository", str(work / turn)]
                took = run([*arguments, *([] if cached else ["--no-cache"])], cache)
                found.append({"model": model, "round": number, "turn": turn, **took})
            shutil.rmtree(work)
    return found


def run(arguments: list[str], cache: Path) -> dict[str, float]:
    """Seconds of the conversion part, of every stage and of the whole, of one packaging by the command line."""
    environment = {**os.environ, "DEPLOYCTL_CACHE": str(cache)}
    lines: list[tuple[float, str]] = []
    started = time.monotonic()
    with subprocess.Popen(
        [sys.executable, "-m", "deploy", "package", *arguments],
        stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, env=environment,
    ) as process:  # fmt: skip
        assert process.stderr is not None
        for line in process.stderr:
            lines.append((time.monotonic() - started, line.rstrip()))
            print(line, end="", file=sys.stderr)
    whole = time.monotonic() - started
    assert process.returncode == 0, f"{arguments}: exit code {process.returncode}"
    return {**taken(lines), "whole": whole}


def taken(lines: Iterable[tuple[float, str]]) -> dict[str, float]:
    """Seconds of the conversion part and of every stage, from what the command said and when it said it."""
    began: dict[str, float] = {}
    stages: dict[str, tuple[float, float]] = {}
    carried = False
    for at, line in lines:
        carried = carried or "--measure-again" in line
        if found := _LINE.fullmatch(line):
            if found["begins"]:
                began[found["name"]] = at
            elif found["name"] in began:
                stages[found["name"]] = began[found["name"]], at
    conversion = [span for name, span in stages.items() if name == "export" or name.startswith("convert")]
    took = max(end for _, end in conversion) - min(start for start, _ in conversion)
    seconds = {name: end - start for name, (start, end) in stages.items()}
    # Of a format that lost its served check there is a second one.
    seconds["serve"] = sum(took for name, took in seconds.items() if name.startswith("serve "))
    return {"conversion": took, CARRIED: float(carried), **seconds}


def shares(rows: list[dict[str, Any]], model: str, part: str) -> list[float]:
    """What a part took of the next fine-tune, as a share of the first, round by round."""
    first, after = (
        [row[part] for row in rows if (row["model"], row["turn"]) == (model, turn)] for turn, _, _ in TURNS[:2]
    )
    return [later / before for before, later in zip(first, after, strict=True)]


def aims(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Each aim with its figure: met where every round is within it, missed where none is, open in between."""
    judged = []
    for model in dict.fromkeys(row["model"] for row in rows):
        for part, most in AIMS.items():
            found = shares(rows, model, part)
            verdict = "met" if max(found) <= most else "missed" if min(found) > most else "open"
            judged.append(
                {
                    "name": f"{model}, {part}: next / first", "wanted": f"at most {most:g}", "n": len(found),
                    "value": round(statistics.median(found), 4), "low": round(min(found), 4),
                    "high": round(max(found), 4), "verdict": verdict,
                }
            )  # fmt: skip
    return judged


def table(record: dict[str, Any]) -> str:
    """The medians as Markdown, and the next as a share of the first."""
    lines = [
        "# Packaging the next fine-tune of the same architecture",
        "",
        f"{record['date']}, {record['cpus']}, torch {record['environment']['torch']}.",
        "Medians in seconds, with the lowest and the highest. How: `benchmarks/repackaging.py`.",
        "",
        "| model | part | first | next | next without cache | next / first | n |",
        "| --- | --- | ---: | ---: | ---: | ---: | ---: |",
    ]
    for model in dict.fromkeys(row["model"] for row in record["rows"]):
        for part in PARTS:
            taken = {
                turn: [row[part] for row in record["rows"] if row["model"] == model and row["turn"] == turn]
                for turn, _, _ in TURNS
            }
            found = shares(record["rows"], model, part)
            cells = [spread(taken[turn], 1) if taken[turn] else "—" for turn, _, _ in TURNS]
            lines.append(f"| {model} | {part} | {' | '.join(cells)} | {spread(found, 3)} | {len(found)} |")
    after = [row for row in record["rows"] if row["turn"] == TURNS[1][0]]
    carried = sum(int(row[CARRIED]) for row in after)
    lines += ["", f"Latency was carried over in {carried} of {len(after)} next ones, and measured in all other runs."]
    lines += ["", "| aim | wanted | found | n | |", "| --- | --- | --- | ---: | --- |"]
    lines += [
        f"| {aim['name']} | {aim['wanted']} | {aim['value']:.3f} [{aim['low']:.3f}, {aim['high']:.3f}] | {aim['n']} "
        f"| {aim['verdict']} |"
        for aim in record["aims"]
    ]
    return "\n".join(lines) + "\n"


def spread(values: list[float], digits: int) -> str:
    """The median with the lowest and the highest."""
    low, high = min(values), max(values)
    return f"{statistics.median(values):.{digits}f} [{low:.{digits}f}, {high:.{digits}f}]"


if __name__ == "__main__":
    main()
