"""Latency that was measured before for the same compiled code on this machine, carried over to the next fine-tune.

Owns when that is honest, what is kept, and what the evidence says of it; the race is in `latency`. Called by steps.

Kernels do the same work whatever the weights' values are, so two fine-tunes of one graph differ in time by the noise of
the machine. Figures are carried over only where all else is known to be the same: the code by the key of the cache it
came from, how it is run, the inputs, the versions of everything that runs, this machine, and our own way to measure. So
neither where an SLO is asked for, nor for code of the user's own, nor from a run that was noisy or lost somebody.
"""

import os
import platform
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from deploy import __version__
from deploy.cache import Store
from deploy.checkpoint.model import Checkpoint
from deploy.convert.model import Artifact, Program
from deploy.evidence import Verdict
from deploy.files import sha256_bytes, sha256_file
from deploy.latency_evidence import CONTROL, EAGER, CarriedLatency, ContenderStart, LatencyEvidence
from deploy.records import Record
from deploy.validate.contenders import Contender
from deploy.validate.executables import Arrays
from deploy.validate.latency import LatencyPlan, figures_of, judged, measure
from deploy.validate.machine import installed_versions
from deploy.validate.race import Finished, run_race
from deploy.validate.samples import digest_arrays
from deploy.validate.winner import noise_factor

MEASURED_FILE = "measured.json"
# What eager may take of its own time, as a factor between both ends of the interval, for figures to be kept.
_QUIET = 1.2
# A machine changes in ways that nobody is told of.
_OLDEST = timedelta(days=30)
# Code whose every line is in the cache's key; a user's own can change and export the same graph.
_KNOWN = ("inferred", "asked", "config")
_RUNNING = ("torch", "onnxruntime", "numpy", "torchvision", "timm", "transformers")
# Settings of the libraries that compute, and of the allocator they use.
_SETTINGS = ("OMP_", "GOMP_", "KMP_", "MKL_", "DNNL_", "ONEDNN_", "ORT_", "ATEN_", "TORCH", "MALLOC_", "LD_", "GLIBC_")
# The one of an artifact's details that tells what was measured, and decides nothing.
_SAID = "tactic_measured"


class Measured(Record):
    """A race as it was run: seconds per batch size, contender, round and call; what each cost to start; of what.

    `when` is in UTC, `checkpoint` the digest of the one that ran.
    """

    timings: dict[int, dict[str, list[list[float]]]]
    starts: tuple[ContenderStart, ...]
    when: datetime
    name: str
    checkpoint: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Subject:
    """What is measured: the checkpoint, eagerly, and its artifacts, all on the same inputs by batch size."""

    checkpoint: Checkpoint
    program: Program
    artifacts: Sequence[Artifact]
    inputs: Mapping[int, Arrays]


@dataclass(frozen=True, slots=True, kw_only=True)
class Memory:
    """Where a race's figures are kept, and under which key. `work` is an existing folder for temporary files."""

    store: Store
    key: str
    checkpoint: Checkpoint
    work: Path


def latency_key(subject: Subject, plan: LatencyPlan, *, machine: Sequence[str]) -> str | None:
    """The digest of all that figures depend on, the weights' values excepted; None where they are not to be kept.

    They are not where an SLO is asked for, on a GPU or for a target with one, for code of the user's own, and for an
    artifact whose code the cache does not have. `machine` is what `machine.identity` says of the one that measures.
    """
    checkpoint, artifacts = subject.checkpoint, subject.artifacts
    code = {one.format: one.reused or one.kept or "" for one in artifacts}
    if plan.slo_p99_ms is not None or (plan.device, plan.target_device) != ("cpu", "cpu"):
        return None
    if checkpoint.how not in _KNOWN or not all(code.values()):
        return None
    facts = _Facts(
        graph=subject.program.digest,
        spec=subject.program.spec.to_json(),
        model=f"{checkpoint.architecture} {checkpoint.options} {checkpoint.parameters} {checkpoint.dtype} "
        f"{checkpoint.preprocessing.fused}",
        code={str(name): key for name, key in code.items()},
        details={one.format: {name: said for name, said in one.details.items() if name != _SAID} for one in artifacts},
        inputs={batch: digest_arrays(arrays) for batch, arrays in sorted(subject.inputs.items())},
        plan=f"{plan.batches} {plan.threads} {plan.seconds_per_cell} {plan.block_seconds} {plan.seed}",
        versions=installed_versions(_RUNNING) | {"python": platform.python_version(), "deployctl": __version__},
        machine=tuple(machine),
        settings={name: value for name, value in sorted(os.environ.items()) if name.startswith(_SETTINGS)},
        sources=tuple(_own_sources()),
    )
    return sha256_bytes(facts.to_json().encode())


def measure_and_keep(contenders: Sequence[Contender], plan: LatencyPlan, memory: Memory | None) -> LatencyEvidence:
    """What `measure` gives; a race that was quiet and lost nobody is kept for the next fine-tune."""
    if memory is None:
        return measure(contenders, plan)
    finished = run_race(contenders, plan)
    evidence = judged(figures_of(finished, plan), plan)
    if _is_quiet(evidence, plan):
        _keep(finished, memory)
    return evidence


def recall(memory: Memory, plan: LatencyPlan, names: Sequence[str]) -> LatencyEvidence | None:
    """The evidence from figures that were kept under the key, judged anew by this plan; None if there are none.

    `names` are the formats that would be measured. The evidence says whose figures these are, and since when.
    """
    found = _read(memory)
    if found is None:
        return None
    wanted = {EAGER, CONTROL, *names}
    whole = set(found.timings) == set(plan.batches) and all(set(one) == wanted for one in found.timings.values())
    if not whole or not timedelta() <= datetime.now(UTC) - found.when <= _OLDEST:
        memory.store.drop(memory.key)
        return None
    evidence = judged(figures_of(Finished(timings=found.timings, starts=found.starts, lost=()), plan), plan)
    carried = CarriedLatency(
        measured=found.when.isoformat(timespec="seconds"), name=found.name, checkpoint=found.checkpoint, key=memory.key
    )
    judgement = evidence.judgement.model_copy(update={"reason": f"{evidence.judgement.reason}; {carried}"})
    return evidence.model_copy(
        update={"judgement": judgement, "carried": carried, "method": f"{carried}. Then: {evidence.method}"}
    )


class _Facts(Record):
    """What figures depend on."""

    graph: str
    spec: str
    model: str
    code: dict[str, str]
    details: dict[str, dict[str, str]]
    inputs: dict[int, str]
    plan: str
    versions: dict[str, str]
    machine: tuple[str, ...]
    settings: dict[str, str]
    sources: tuple[str, ...]


def _own_sources() -> Iterator[str]:
    """The digests of what measures: another way of ours gives other figures."""
    here = Path(__file__).parent
    names = ("carried", "contenders", "executables", "race", "statistics")
    for path in (*(here / f"{name}.py" for name in names), here.parent / "processes.py"):
        yield f"{path.name} {sha256_file(path)}"


def _is_quiet(evidence: LatencyEvidence, plan: LatencyPlan) -> bool:
    """Whether nothing was in doubt, and eager took its own time at every batch size."""
    noise = [noise_factor(evidence.ratios, batch) for batch in plan.batches]
    return evidence.judgement.verdict is Verdict.PASS and not evidence.lost and max(noise) <= _QUIET


def _keep(finished: Finished, memory: Memory) -> None:
    checkpoint = memory.checkpoint
    measured = Measured(
        timings=finished.timings, starts=finished.starts, when=datetime.now(UTC), name=checkpoint.name,
        checkpoint=checkpoint.digest,
    )  # fmt: skip
    with tempfile.TemporaryDirectory(dir=memory.work) as folder:
        measured.write(Path(folder) / MEASURED_FILE)
        memory.store.drop(memory.key)  # of before, which was to be measured again
        memory.store.keep(memory.key, Path(folder), about=f"latency of {checkpoint.architecture} on this machine")


def _read(memory: Memory) -> Measured | None:
    with tempfile.TemporaryDirectory(dir=memory.work) as folder:
        entry = Path(folder) / "entry"
        return Measured.read(entry / MEASURED_FILE) if memory.store.take(memory.key, entry) else None
