"""Whether a target can run a version, from what lies on disk: nothing of the version is loaded.

Owns what is held against what: the archive's own metadata or the ONNX header, the torch that compiled, and the forms
of the config. What no Triton accepts is in `lint`. Called by verify and the renderings. Imports
neither torch nor ONNX Runtime.
"""

import json
import platform
import re
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from deploy.convert.model import ARTIFACT_FILES, Format
from deploy.errors import UsageError
from deploy.repository.config import exchanges_bfloat16
from deploy.repository.layout import Version
from deploy.repository.manifest import Manifest
from deploy.repository.onnx_header import OnnxHeader, read_onnx_header
from deploy.repository.protobuf import parse_config, schema
from deploy.targets import CpuIsa, Target, all_targets, same_torch, shortened
from deploy.validate.machine import installed_versions

# The images of Triton that the targets name, and the engine here, are for this platform.
_PLATFORM, _MACHINES = "linux", ("x86_64", "AMD64")
_AVX2_ISAS = ("AVX2", "INVALID_VEC_ISA", "")
_THREADS = "INTRA_OP_THREAD_COUNT"
_ORDINAL = re.compile(r"(INPUT|OUTPUT)__\d+")
# In the compiler's C++: each thread writes its part of a sum to its own place, and how many places there are.
_PLACE = re.compile(r"\b(\w+_arr)\[tid\] = ")
_PLACES = re.compile(r"\b(\w+_arr)\[(\d+)\];")


@dataclass(frozen=True, slots=True, kw_only=True)
class Subject:
    """What was read of a version. `archive` is the AOTInductor archive's metadata, `header` the ONNX model's.

    `torch` is the version that compiled an archive; `cpu_isa` what it was compiled for; `most_threads` how many threads
    its code has room for, None where any number has.
    """

    format: Format
    config: Any
    torch: str | None
    cpu_isa: CpuIsa
    archive: dict[str, str]
    header: OnnxHeader | None
    most_threads: int | None = None


def read_subject(version: Version, manifest: Manifest) -> Subject:
    """What there is to hold against a target. Raises UsageError if the artifact is not what its name says."""
    path = version.folder / ARTIFACT_FILES[manifest.compiled]
    return Subject(
        format=manifest.compiled,
        config=parse_config(version.config.read_text()),
        torch=manifest.artifact.get("torch"),
        cpu_isa=manifest.target.cpu_isa,
        archive=read_archive_metadata(path) if manifest.format == "aoti" else {},
        header=read_onnx_header(path) if manifest.format == "onnx" else None,
        most_threads=read_most_threads(path) if manifest.format == "aoti" else None,
    )


def read_archive_metadata(path: Path) -> dict[str, str]:
    """What an AOTInductor archive says of itself: device, platform, machine, ISA, compute capability.

    Read out of the zip without running any of it. Raises UsageError if the file is no such archive.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            name = next((name for name in archive.namelist() if name.endswith("wrapper_metadata.json")), None)
            found = json.loads(archive.read(name)) if name else None
    except (OSError, zipfile.BadZipFile, ValueError) as error:
        raise UsageError(
            f"{path} is no AOTInductor archive: {error}",
            expected="what deployctl packaged",
            fix="restore the version from where it was published",
        ) from error
    if not isinstance(found, dict):
        raise UsageError(
            f"{path} holds no metadata",
            expected="an archive that AOTInductor wrote",
            fix="restore the version from where it was published",
        )
    return {str(key): str(value) for key, value in found.items()}


def read_most_threads(path: Path) -> int | None:
    """With how many threads an archive's code for the CPU may run at most, by its sources; None where with any number.

    Before `deploy.convert.threads` came, a sum that threads share had room for those of the compiling machine. Torch
    2.13 starts as many as there are where it runs, and writes beyond that room; older releases start no more than fit.
    """
    with zipfile.ZipFile(path) as archive:
        sources = [archive.read(name).decode() for name in archive.namelist() if name.endswith(".cpp")]
    rooms = [
        int(places)
        for text in sources
        if "omp parallel num_threads(" not in text and (shared := set(_PLACE.findall(text)))
        for name, places in _PLACES.findall(text)
        if name in shared
    ]
    return min(rooms, default=None)


def preflight(subject: Subject, target: Target) -> list[str]:
    """Why the target cannot run it, one sentence each with what was found and what the target wants; empty if it can.

    After the reasons stands which targets can, those nearest to the one asked about first.
    """
    found = list(_misfits(subject, target))
    if not found:
        return []
    able = [other for other in all_targets().values() if not any(_misfits(subject, other))]
    names = [other.name for other in sorted(able, key=partial(_distance, target))]
    return [*found, f"targets that can run it: {shortened(names) or 'none that is known'}"]


def _distance(target: Target, other: Target) -> tuple[bool, int]:
    """How far another target is from one: the same device first, then the releases by their distance in time."""
    months = [12 * int(one.triton[:2]) + int(one.triton[3:]) if one.triton else 0 for one in (target, other)]
    return other.device != target.device, abs(months[0] - months[1])


def _misfits(subject: Subject, target: Target) -> Iterator[str]:
    if subject.format != "torchscript":  # nothing of it is compiled for one target
        yield from _onnx_misfits(subject.header, target) if subject.header else _archive_misfits(subject, target)
    yield from config_misfits(subject.config, target)


def _onnx_misfits(header: OnnxHeader, target: Target) -> Iterator[str]:
    ceilings = (("opset", header.opset, target.opset), ("IR version", header.ir_version, target.ir_version))
    for name, found, ceiling in ceilings:
        if found > ceiling:
            yield f"the model has {name} {found}, and the ONNX Runtime of {target.name} loads up to {ceiling}"


def _archive_misfits(subject: Subject, target: Target) -> Iterator[str]:
    if not target.aoti.loads:
        yield f"it is an AOTInductor archive, and {target.name} loads none"
        return
    yield from _torch_misfits(subject, target)
    facts = subject.archive
    device = facts.get("AOTI_DEVICE_KEY", "")
    if device != target.device:
        yield f"the archive is compiled for {device or 'an unnamed device'}, and {target.name} has {target.device}"
    elif target.device == "cuda":
        yield from _capability_misfits(facts.get("AOTI_COMPUTE_CAPABILITY", ""), target)
    else:
        yield from _cpu_misfits(subject, target)
        yield from _thread_misfits(subject, target)


def _torch_misfits(subject: Subject, target: Target) -> Iterator[str]:
    """Machine code against one build of torch is not known to run on another; a target without a release has ours."""
    runs = installed_versions(["torch"]).get("torch") if target.triton is None else target.torch
    if runs is None and target.triton is not None:
        yield f"it was compiled by torch {subject.torch}, and which torch {target.name} runs is not known"
    elif runs is not None and not same_torch(subject.torch or "", runs):
        yield f"it was compiled by torch {subject.torch}, and {target.name} runs torch {runs}"


def _capability_misfits(found: str, target: Target) -> Iterator[str]:
    if re.sub(r"\D", "", found) != str(target.sm):
        here = target.sm or "no known GPU"
        yield f"its kernels are for compute capability {found or 'unknown'}, and {target.name} has {here}"


def _cpu_misfits(subject: Subject, target: Target) -> Iterator[str]:
    system, machine = subject.archive.get("AOTI_PLATFORM"), subject.archive.get("AOTI_MACHINE")
    if system not in (None, _PLATFORM):
        yield f"the archive is compiled for {system}, and {target.name} is {_PLATFORM}"
    wanted = (platform.machine(),) if target.triton is None else _MACHINES
    if machine is not None and machine not in wanted:
        yield f"the archive is compiled for {machine}, and {target.name} is {wanted[0]}"
    isa = subject.archive.get("AOTI_CPU_ISA", "")
    if target.cpu_isa == "avx2" and (subject.cpu_isa != "avx2" or isa.upper() not in _AVX2_ISAS):
        what = isa if subject.cpu_isa == "avx2" else f"the building machine's own CPU ({isa or 'unnamed'})"
        yield f"its machine code is for {what}, and {target.name} is only sure to have AVX2"


def _thread_misfits(subject: Subject, target: Target) -> Iterator[str]:
    """Code that writes beyond its room on a target that starts more threads; some read no number from the config."""
    if subject.most_threads is None:
        return
    heeded = target.triton is None or target.aoti.parameters
    wanted = subject.config.parameters[_THREADS].string_value if _THREADS in subject.config.parameters else ""
    threads = int(wanted) if heeded and wanted.isdecimal() and int(wanted) > 0 else None
    if threads is None or threads > subject.most_threads:
        started = f"starts {threads}, as its config says" if threads else "starts as many as its processor has cores"
        yield (
            f"its code was compiled by an earlier deployctl, crashes with more than {subject.most_threads} threads, "
            f"and {target.name} {started}: package the checkpoint again"
        )


def config_misfits(config: Any, target: Target) -> Iterator[str]:
    """Why a target would not serve a ModelConfig message as it should, one sentence each."""
    kinds = schema().ModelInstanceGroup
    aoti = config.platform == "torch_aoti"
    if aoti and config.max_batch_size > 0 and not target.aoti.batches:
        yield f"its max_batch_size is {config.max_batch_size}, and {target.name} merges archives' requests wrongly"
    for group in config.instance_group:
        if group.kind == kinds.KIND_GPU and target.device == "cpu":
            yield f"its instances are KIND_GPU, and {target.name} has no GPU"
        if group.kind == kinds.KIND_CPU and target.device == "cuda":
            yield f"its instances are KIND_CPU, so that {target.name} would leave the GPU idle"
    # The engine here reads an adapted config, in which there are none.
    if config.HasField("model_metrics") and target.latency_histograms is False and target.triton is not None:
        yield f"its config has model_metrics, which {target.name} has not"
    yield from _tensor_misfits(config, target)


def _tensor_misfits(config: Any, target: Target) -> Iterator[str]:
    aoti = config.platform == "torch_aoti"
    for tensor in (*config.input, *config.output):
        if aoti and not target.aoti.call_names and not _ORDINAL.fullmatch(tensor.name):
            yield f"tensor {tensor.name} goes by its place in the call, and {target.name} knows ordinals only"
        if tensor.data_type == schema().TYPE_BF16 and not exchanges_bfloat16("aoti" if aoti else "onnx", target):
            yield f"tensor {tensor.name} is BF16, which {target.name} cannot exchange"
