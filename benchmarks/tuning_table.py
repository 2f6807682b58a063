"""The table of the tuning benchmark: what `tuning` measured, as Markdown.

Owns the layout only. Called by tuning.
"""

import statistics
from typing import Any

from deploy.slo.tune_records import Setting


def table(record: dict[str, Any]) -> str:
    """The figures as Markdown."""
    lines = [
        "# A search against an exhaustive grid",
        "",
        f"{record['date']}, {record['cpus']}, client and server on one machine, probes of {record['probe_seconds']} s.",
        f"{record['trials']} trials; values are requests per second within the bound. How: `benchmarks/tuning.py`.",
        "",
        "| model, input, bound | cells | own config | grid's best | search's best | found / best (95 %, n) |"
        " grid s | search s |",
        "| --- | ---: | ---: | --- | --- | --- | ---: | ---: |",
    ]
    for model in record["models"]:
        ratio, search = model["ratio"], model["search"]
        scores = {str(Setting.model_validate(row["setting"])): row["score"] for row in model["grid"]}
        best, found = Setting.model_validate(search["grid_best"]), Setting.model_validate(search["found"])
        said = "the same cell" if ratio is None else "{ratio:.3f} ({low:.3f} to {high:.3f}, {n})".format(**ratio)
        lines.append(
            f"| {model['model']}, 3x{model['side']}x{model['side']}, {model['p99_ms']:g} ms | {model['cells']} |"
            f" {model['own_rate']:.0f} | {best}: {scores[str(best)]:.0f} | {found}: {scores[str(found)]:.0f} | {said} |"
            f" {model['grid_seconds']:.0f} | {model['search_seconds']:.0f} |"
        )
    lines += [
        "",
        f"Replay of the measured grid at {record['trials']} trials, {record['seeds']} seeds: best found over best.",
        "",
        "| model | Optuna: mean, worst | random: mean, worst (exact mean) | corners then random: mean | Optuna better /"
        " equal / worse than random |",
        "| --- | --- | --- | --- | --- |",
    ]
    for model in record["models"]:
        by_seed = model["replay"]["by_seed"]
        ours, chance, corners = by_seed["optuna"], by_seed["random"], by_seed["corners then random"]
        better = sum(a > b for a, b in zip(ours, chance, strict=True))
        equal = sum(a == b for a, b in zip(ours, chance, strict=True))
        lines.append(
            f"| {model['model']} | {statistics.mean(ours):.3f}, {min(ours):.3f} | {statistics.mean(chance):.3f},"
            f" {min(chance):.3f} ({model['replay']['random_expected']:.3f}) | {statistics.mean(corners):.3f} |"
            f" {better} / {equal} / {record['seeds'] - better - equal} |"
        )
    return "\n".join(lines) + "\n"
