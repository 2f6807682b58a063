"""Model Navigator's route, with defaults, in an environment of its own: see benchmarks/table/peers.py.

`python -m benchmarks.by_hand.model_navigator optimize NETWORK WEIGHTS FOLDER MAX_BATCH` writes `FOLDER/model.nav`;
`... serve FOLDER INPUTS.npz THREADS` answers one JSON line for each line of its input: `[BATCH, CALLS]`, to be timed,
or `"NAME"`, to run on the arrays of `FOLDER/NAME.npz` and write what comes of them to `FOLDER/NAME-out.npz`.
"""

import json
import resource
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

PACKAGE = "model.nav"
SAMPLES = 10


def optimize(name: str, weights: Path, folder: Path, max_batch: int) -> None:
    """Export, convert, check and profile, as its quick start does."""
    print("stage import", flush=True)
    import model_navigator as nav
    import torch

    from benchmarks.by_hand.network import build, example, stage

    stage("build")
    module = build(name, weights)
    torch.manual_seed(0)
    rows = [tuple(tensor[:1] for tensor in example(name)) for _ in range(SAMPLES)]
    stage("optimize")
    package = nav.torch.optimize(
        model=module,
        dataloader=[row if len(row) > 1 else row[0] for row in rows],
        target_device=nav.DeviceKind.CPU,
        optimization_profile=nav.OptimizationProfile(max_batch_size=max_batch),
        workspace=folder / "workspace",
    )
    stage("save")
    nav.package.save(package, folder / PACKAGE, override=True)


def serve(folder: Path, inputs: Path, threads: int) -> None:
    """Time the runner that it calls its best, until the input ends."""
    base = peak_memory()
    import model_navigator as nav
    import torch

    torch.set_num_threads(threads)
    started = time.perf_counter()
    package = nav.package.load(folder / PACKAGE, folder / "served")
    runner = package.get_runner(include_source=False, device="cpu")
    runner.activate()
    say({"load_seconds": time.perf_counter() - started, "runner": runner.name()})
    names = list(package.status.input_metadata)
    with np.load(inputs, allow_pickle=False) as archive:
        arrays = {key: archive[key] for key in archive.files}
    for line in sys.stdin:
        order = json.loads(line)
        if isinstance(order, str):
            with np.load(folder / f"{order}.npz", allow_pickle=False) as archive:
                found = runner.infer({name: archive[str(index)] for index, name in enumerate(names)})
            outputs = {str(index): np.asarray(array) for index, array in enumerate(found.values())}
            # Its older NumPy takes every keyword for an array, `allow_pickle` too.
            np.savez(folder / f"{order}-out.npz", **outputs)  # type: ignore[arg-type]
            say({})
            continue
        batch, calls = order
        feed = {name: arrays[f"{batch}/{index}"] for index, name in enumerate(names)}
        seconds = []
        for _ in range(calls):
            started = time.perf_counter()
            runner.infer(feed)
            seconds.append(time.perf_counter() - started)
        say({"seconds": seconds, "base": base, "peak": peak_memory()})


def say(answer: dict[str, Any]) -> None:
    """One answer on a line of its own, told apart from what libraries print."""
    print("answer " + json.dumps(answer), flush=True)


def peak_memory() -> int:
    """The peak resident set of this process, in bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


if __name__ == "__main__":
    if sys.argv[1] == "optimize":
        optimize(sys.argv[2], Path(sys.argv[3]), Path(sys.argv[4]), int(sys.argv[5]))
    else:
        serve(Path(sys.argv[2]), Path(sys.argv[3]), int(sys.argv[4]))
