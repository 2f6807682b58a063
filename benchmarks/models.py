"""From a bare state_dict to served parity, model by model: how far each artifact is from float64, and how fast.

Owns the table docs/models.md and its JSON. Run from the project's root: `python -m benchmarks.models [MODEL ...]`.
"""

import argparse
import json
import tempfile
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from deploy.checkpoint.model import CheckpointRequest
from deploy.package import package
from deploy.report.stages import Stages
from deploy.repository.manifest import Environment
from deploy.request import PackageRequest, PackageResult
from deploy.targets import find_target
from tests.fixtures import save_state_dict, seeded_module

MODELS = (
    "resnet18", "mobilenet_v3_small", "efficientnet_b0", "vit_b_16", "swin_t", "convnext_tiny", "densenet121",
    "regnet_y_400mf",
)  # fmt: skip
RESULTS = Path(__file__).parent / "results" / "models.json"
TABLE = Path(__file__).parents[1] / "docs" / "models.md"


def main() -> None:
    """Package each model, keep one row per format, write the JSON and the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("models", nargs="*", default=MODELS)
    chosen = parser.parse_args().models
    known = json.loads(RESULTS.read_text())["rows"] if RESULTS.exists() else []
    rows = [row for row in known if row["model"] not in chosen]
    with Stages() as progress:
        for name in chosen:
            with tempfile.TemporaryDirectory() as folder, progress.stage(f"all of {name}"):
                rows += rows_of(name, package(request(name, Path(folder)), progress=progress))
            write(sorted(rows, key=lambda row: (MODELS.index(row["model"]), row["format"])))


def request(name: str, folder: Path) -> PackageRequest:
    """Both formats of a seeded, calibrated model, at the builder's own input size."""
    checkpoint = save_state_dict(seeded_module(name), folder / "weights.pt")
    return PackageRequest(
        checkpoint=CheckpointRequest(path=checkpoint),
        repository=folder / "repository",
        target=find_target("local-cpu"),
        name=name,
        all_formats=True,
    )


def rows_of(name: str, result: PackageResult) -> list[dict[str, Any]]:
    """One row per format: parity, latency against eager at batch 1, what was served, what it cost."""
    assert result.latency is not None
    ratios = {ratio.contender: ratio for ratio in result.latency.ratios if ratio.base == "eager" and ratio.batch == 1}
    served = {evidence.backend.split()[0]: evidence for evidence in result.outcome.served}
    rows = []
    for parity in result.parity:
        answers = served.get("pytorch" if parity.format == "aoti" else "onnxruntime")
        ratio, made = ratios[parity.format], result.conversion.artifacts["aoti" if parity.format == "aoti" else "onnx"]
        rows.append(
            {
                "model": name,
                "architecture": result.checkpoint.architecture,
                "how": result.checkpoint.how,
                "format": parity.format,
                "parity": parity.judgement.verdict.value,
                "max_multiple": max(output.max_multiple for output in parity.outputs),
                "l2_multiple": max(output.l2_multiple for output in parity.outputs),
                "rows": parity.rows,
                "decisions": sum(output.decisions_compared for output in parity.outputs),
                "ratio_to_eager": ratio.ratio,
                "ratio_low": ratio.low,
                "ratio_high": ratio.high,
                "control": [ratios["eager (A/A)"].low, ratios["eager (A/A)"].high],
                "served": answers.judgement.verdict.value if answers else None,
                "served_rows": sum(check.rows for check in answers.checks) if answers else 0,
                "convert_seconds": made.seconds,
                "peak_memory": made.peak_memory,
            }
        )
    return rows


def write(rows: list[dict[str, Any]]) -> None:
    """The JSON, and the table made from it."""
    environment = Environment.here()
    date = datetime.now(UTC).date().isoformat()
    RESULTS.parent.mkdir(exist_ok=True)
    record = {
        "date": date,
        "command": "python -m benchmarks.models",
        "environment": environment.model_dump(mode="json"),
        "rows": rows,
    }
    RESULTS.write_text(json.dumps(record, indent=2) + "\n")
    TABLE.write_text(table(rows, environment, date))


def table(rows: list[dict[str, Any]], environment: Environment, date: str) -> str:
    """The rows as Markdown."""
    lines = [
        "# From a bare state_dict to served parity",
        "",
        "Each model: seeded weights with a normal head and calibrated statistics (`tests/fixtures.py`), saved as a",
        "bare `state_dict`, identified from the weights, converted, proven, measured at the builder's input size, and",
        "served by a real tritonserver. Errors are multiples of eager's own error against float64; the limits are 10",
        "(max) and 5 (L2). The ratio is p50 over eager's at batch 1, interleaved, with its 95 % interval.",
        "",
        f"Made by `python -m benchmarks.models` on {date}: {environment.cpu}, {environment.cores} cores, torch "
        f"{environment.torch}, ONNX Runtime {environment.onnxruntime}, Python {environment.python}.",
        "Speed has changed since where the [changelog](../CHANGELOG.md) says so: [benchmarks.md](benchmarks.md) has",
        "fewer models, measured more often.",
        "",
        "| model | format | parity | max | L2 | rows | ratio to eager | A/A control | served | rows | convert s |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    lines += [
        f"| {row['model']} | {row['format']} | {row['parity']} | {row['max_multiple']:.2f} | {row['l2_multiple']:.2f} "
        f"| {row['rows']} | {row['ratio_to_eager']:.2f} [{row['ratio_low']:.2f}, {row['ratio_high']:.2f}] "
        f"| [{row['control'][0]:.2f}, {row['control'][1]:.2f}] | {row['served']} | {row['served_rows']} "
        f"| {row['convert_seconds']:.0f} |"
        for row in rows
    ]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
