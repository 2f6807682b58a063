"""What serving costs beyond calling ONNX Runtime in one's own process: our local engine, BentoML and LitServe.

Owns the table results/serving_overhead.md and its JSON. Run from the project's root:
`python -m benchmarks.serving_overhead`; the machine has to be idle.
"""

import argparse
import json
import math
import tempfile
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

import numpy as np

from benchmarks.serving_overhead_contenders import CONTROL, IN_PROCESS, OURS, Subject, open_contenders
from benchmarks.serving_overhead_peers import environment, installed
from benchmarks.serving_overhead_rounds import (
    Cell,
    Contender,
    Plan,
    Sample,
    pause,
    resume,
    run_block,
    run_rounds,
)
from benchmarks.serving_overhead_table import Measured, record, table
from deploy.checkpoint.model import CheckpointRequest
from deploy.package import package
from deploy.processes import tree_memory
from deploy.repository.find import find_version, read_manifest
from deploy.repository.layout import Version
from deploy.request import PackageRequest, Resources
from deploy.serve.engines import find_engine
from deploy.targets import find_target
from deploy.validate.machine import default_threads
from tests.fixtures import save_state_dict, seeded_module

RESULTS = Path(__file__).parent / "results"
MODELS = ("resnet18", "mobilenet_v3_small")
CLASSES = 1000
# Answers may differ by rounding, since a batch is summed in another order.
TOLERANCE = 1e-3


def main() -> None:
    """Package, measure, write and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", default=",".join(MODELS), help="torchvision builders")
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--seconds", type=float, default=0.9, help="of each block")
    parser.add_argument("--without-peers", action="store_true", help="leave BentoML and LitServe out")
    parser.add_argument("--work", type=Path, help="keep the versions and the peers' environment here between runs")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder for the two files")
    chosen = parser.parse_args()
    plan = Plan(rounds=chosen.rounds, seconds=chosen.seconds)
    with tempfile.TemporaryDirectory(prefix="serving-overhead-") as name:
        work = chosen.work or Path(name)
        peers = None if chosen.without_peers else environment(work / "peers")
        versions = {model: packaged(model, work) for model in chosen.models.split(",")}
        started = datetime.now(UTC).isoformat(timespec="seconds")
        measured = {}
        for model, version in versions.items():
            folder = Path(name, model)
            measured[model] = measure(subject(version, peers, folder), plan)
        releases = installed(peers) if peers else []
    command = f"python -m benchmarks.serving_overhead --models {chosen.models}"
    command += f" --rounds {plan.rounds} --seconds {plan.seconds:g}" + " --without-peers" * chosen.without_peers
    engine = f"tritonserver {find_engine('local').server_version}, python-based backends"
    about = {"command": command, "date": started, "peers": releases, "engine": engine}
    found = record(measured, plan, about)
    chosen.results.mkdir(parents=True, exist_ok=True)
    (chosen.results / "serving_overhead.json").write_text(json.dumps(found, indent=1) + "\n")
    (chosen.results / "serving_overhead.md").write_text(table(found))
    print(table(found))


def packaged(model: str, work: Path) -> Version:
    """The seeded model as a version, by the main job itself: converted, proven and served before it is published."""
    repository = work / "repository"
    if not (repository / model).exists():
        work.mkdir(parents=True, exist_ok=True)
        checkpoint = save_state_dict(seeded_module(model, num_classes=CLASSES), work / f"{model}.pt")
        request = PackageRequest(
            checkpoint=CheckpointRequest(path=checkpoint),
            repository=repository,
            target=find_target("local-cpu"),
            name=model,
            formats=("onnx",),
            by_name=True,
            resources=Resources(seconds_per_cell=0.5),
        )
        package(request)
    return find_version(repository, model)


def subject(version: Version, peers: Path | None, folder: Path) -> Subject:
    """The version with a seeded image of its own shape, and the threads it was packaged with."""
    spec = read_manifest(version).spec
    image = np.random.default_rng(0).normal(size=spec.inputs[0].concrete(batch=1)).astype(np.float32)
    return Subject(
        version=version,
        threads=default_threads(),
        max_batch=spec.max_batch,
        image=image,
        outputs=math.prod(spec.outputs[0].concrete(batch=1)),
        peers=peers,
        folder=folder,
    )


def measure(subject: Subject, plan: Plan) -> Measured:
    """All contenders on one model. Raises RuntimeError if one of them answers otherwise than the process itself."""
    with open_contenders(subject) as contenders:
        batches = _warm(contenders, plan)
        _check_answers(contenders)
        control = tuple(sorted({1, *batches.values()}))
        cells: list[Cell] = [(one.name, size) for one in contenders if one.parallel for size in plan.concurrencies]
        cells += [(IN_PROCESS, batch) for batch in control] + [(CONTROL, 1)]
        samples = run_rounds(contenders, cells, plan, lambda text: print(f"{subject.version.name}: {text}", flush=True))
        _check_answers(contenders)
        memory = {one.name: tree_memory(one.pid) for one in contenders}
    return Measured(samples=samples, batches=batches, memory=memory)


def _warm(contenders: Sequence[Contender], plan: Plan) -> dict[Cell, int]:
    """Run each cell once; the batch that each cell of ours reached."""
    batches: dict[Cell, int] = {}
    for one in contenders:
        for size in plan.concurrencies if one.parallel else (1,):
            sample: Sample = run_block(one, size, plan.seconds)
            if one.name in OURS:
                batches[one.name, size] = max(1, round(sample.batch))
    return batches


def _check_answers(contenders: Sequence[Contender]) -> None:
    expected = None
    for one in sorted(contenders, key=lambda one: one.parallel):
        resume(one.pid)
        found = one.answer().reshape(-1)
        pause(one.pid)
        expected = found if expected is None else expected
        if found.shape != expected.shape or not np.allclose(found, expected, rtol=TOLERANCE, atol=TOLERANCE):
            raise RuntimeError(f"{one.name} answers {found[:5]}, the process itself {expected[:5]}")


if __name__ == "__main__":
    main()
