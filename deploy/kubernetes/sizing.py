"""What a pod needs, from what was measured of the version: start-up time, memory, processors, scratch space.

Owns the factors and their reasons. Reads evidence and configs; knows nothing of manifests. Called by plan.
"""

import math
from dataclasses import dataclass

from deploy.containers.served import ServedModel
from deploy.evidence import ServedEvidence
from deploy.latency_evidence import LatencyEvidence
from deploy.repository.protobuf import parse_config
from deploy.targets import Target

MEBI = 1024 * 1024
GIBI = 1024 * MEBI

# A cold node reads the model from the network and may be throttled meanwhile; a start is killed only far beyond that.
_START_FACTOR = 10
_LEAST_START = 60
_UNKNOWN_START = 600
# Memory that is missing kills the server; a half more than it ever took is cheap beside that.
_MEMORY_FACTOR = 1.5
_LEAST_MEMORY = GIBI
# Weights, the runtime's own copy of them, and room for activations.
_UNMEASURED_COPIES = 4
# A process with a CUDA context, cuDNN and cuBLAS loaded, before any model.
_CUDA_MEMORY = 3 * GIBI
_SHARED_MEMORY = 64 * MEBI
_LEAST_TMP = 64 * MEBI
_STEP = 64 * MEBI


@dataclass(frozen=True, slots=True, kw_only=True)
class Sizes:
    """Seconds and bytes. `cpus` are processors that computing keeps busy; `basis` says where each number is from."""

    start_seconds: int
    memory: int
    cpus: int
    shared_memory: int
    tmp: int
    models: int
    basis: tuple[str, ...]


def sizes(
    model: ServedModel,
    target: Target,
    *,
    served: ServedEvidence | None,
    latency: LatencyEvidence | None,
    pulled: bool = False,
) -> Sizes:
    """The sizes of one pod that serves exactly this version; one whose version is `pulled` has it in /tmp meanwhile."""
    start, start_basis = _start(served)
    instances = max(1, sum(group.count for group in parse_config(model.config).instance_group))
    models = sum(file.size for file in model.files)
    memory, memory_basis = _memory(model, target, served, instances)
    tmp = _LEAST_TMP + 2 * instances * model.unpacked_megabytes * MEBI + (models if pulled else 0)
    cpus, cpu_basis = _cpus(model, instances, latency)
    return Sizes(
        start_seconds=start,
        memory=_rounded(memory + _SHARED_MEMORY),
        cpus=cpus,
        shared_memory=_SHARED_MEMORY,
        tmp=_rounded(tmp),
        models=_rounded(2 * models),
        basis=(start_basis, memory_basis, cpu_basis),
    )


def quantity(count: int) -> str:
    """Bytes as Kubernetes writes them."""
    return f"{count // GIBI}Gi" if count % GIBI == 0 else f"{math.ceil(count / MEBI)}Mi"


def _start(served: ServedEvidence | None) -> tuple[int, str]:
    if served is None:
        return _UNKNOWN_START, f"start-up: never measured, so {_UNKNOWN_START} s"
    seconds = max(_LEAST_START, math.ceil(served.ready_seconds * _START_FACTOR))
    measured = f"ready with its warm-up in {served.ready_seconds:.1f} s when it was proven, {served.mode}"
    return seconds, f"start-up: {measured}; {_START_FACTOR} times that and at least {_LEAST_START} s: {seconds} s"


def _memory(model: ServedModel, target: Target, served: ServedEvidence | None, instances: int) -> tuple[int, str]:
    weights = sum(file.size for file in model.files)
    device = _CUDA_MEMORY if target.device == "cuda" else 0
    extra = f", and {quantity(device)} for CUDA" if device else ""
    if served is None or not served.peak_memory:
        found = _UNMEASURED_COPIES * instances * weights
        text = f"memory: never measured; {_UNMEASURED_COPIES} times the files per instance{extra}"
    else:
        found = math.ceil(_MEMORY_FACTOR * served.peak_memory)
        peak = math.ceil(served.peak_memory / MEBI)
        text = f"memory: {peak}Mi at most while it was proven, {served.mode}; {_MEMORY_FACTOR:g} times that{extra}"
    return max(_LEAST_MEMORY, found) + device, f"{text}; at least {quantity(_LEAST_MEMORY + device)}"


def _cpus(model: ServedModel, instances: int, latency: LatencyEvidence | None) -> tuple[int, str]:
    """The threads that the config gives to one operator, for each instance: fewer processors, and they wait."""
    parameters = parse_config(model.config).parameters
    within = [parameters[name].string_value for name in parameters if name.lower() == "intra_op_thread_count"]
    threads = int(within[0]) if within and within[0].isdigit() else (latency.threads if latency else 1)
    return max(1, threads * instances), f"processors: {threads} threads in each of {instances} instances"


def _rounded(count: int) -> int:
    return math.ceil(count / _STEP) * _STEP
