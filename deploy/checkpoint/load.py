"""A checkpoint on disk becomes a Checkpoint value, and that value becomes a module that can run.

Owns the order of the steps; each step's work and refusals are in the other files of this room.
Called by `inspect` in its own process, and by package's children. Imports torch on use only.
"""

import re
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from deploy.checkpoint.adapters import (
    adapters_inside,
    digest_of,
    is_adapter,
    merge,
    read_adapter,
    require_base,
    require_merged,
)
from deploy.checkpoint.detectors import require_one_stage
from deploy.checkpoint.formats import read_stored
from deploy.checkpoint.identify import UnknownArchitectureError
from deploy.checkpoint.inputs import UNKNOWN
from deploy.checkpoint.library import understand_library
from deploy.checkpoint.model import Checkpoint, CheckpointRequest
from deploy.checkpoint.preprocess import settle
from deploy.checkpoint.pretrained_folder import (
    CONFIG,
    NAMED_OTHERWISE,
    file_of_folder,
    is_pretrained_folder,
    lacks_config,
)
from deploy.checkpoint.program import PROGRAM, load_exported, program_module, read_program
from deploy.checkpoint.signature import range_notes, with_values
from deploy.checkpoint.sniff import Kind, recognise
from deploy.checkpoint.tensors import check_finite, check_usable, check_variances, dtype_name, main_dtype
from deploy.checkpoint.timm_build import build_timm
from deploy.checkpoint.timm_entries import TIMM
from deploy.checkpoint.timm_training import beside, hub_folder
from deploy.checkpoint.training import training_facts
from deploy.checkpoint.understand import FACTORY, Contents, MisfitError, Understood, understand_factory
from deploy.checkpoint.weights import find_weights, left_out_notes, unwrap
from deploy.checkpoint.zoo import find_architecture
from deploy.errors import UsageError, with_fix
from deploy.files import sha256_path, size_of
from deploy.spec import TensorSpec

if TYPE_CHECKING:
    from torch import Tensor, nn

# ONNX Runtime has no bfloat16 kernels on a CPU, Triton's PyTorch backend exchanges none, and numpy has no such dtype.
COMPUTED_IN = {"bfloat16": "float32"}

_SUFFIXES = re.compile(r"(\.(pt|pt2|pth|ckpt|bin|safetensors|tar))+$", re.IGNORECASE)


def read_checkpoint(request: CheckpointRequest) -> Checkpoint:
    """Everything there is to know about the checkpoint, its weights proven whole and finite.

    1. Tell what the file is.
    2. Find the weights in it.
    3. Find their architecture, input and preprocessing.
    4. Check every value.
    5. Put down what was found, and what was asked of the preprocessing.

    Raises UsageError where one of these cannot be done.
    """
    for option, value in (("--arch", request.arch), ("--head", request.head)):
        if value and request.factory:
            raise UsageError(f"{option} and --factory were both given", expected="one of them")
    if (file := hub_folder(request.path)) is not None:
        checkpoint = read_checkpoint(replace(request, path=file))
        return checkpoint.model_copy(update={"name": model_name(request.path)})
    base = require_base(request.path, request.base) if _is_of_peft(request) else None
    if is_pretrained_folder(base or request.path) and not _has_weights_alone(request):
        from deploy.checkpoint.pretrained import read_pretrained

        return settle(read_pretrained(request, name=model_name(request.path)), request.preprocessing)
    # 1. Refused before anything large is read; then the digest is taken while torch is imported.
    kind = recognise(base or request.path)
    if kind is Kind.PROGRAM and base is None:
        return _read_program(request)
    with ThreadPoolExecutor(max_workers=1) as pool:
        digest = pool.submit(digest_of, request.path, base) if base else pool.submit(sha256_path, request.path)
        # 2.
        contents = _read_contents(request)
        # 3.
        understood = _understand(request, contents)
        # 4.
        check_finite(understood.tensors, masks=understood.buffers)
        check_variances(understood.tensors)
        # 5.
        return settle(_put_down(request, contents, understood, digest.result()), request.preprocessing)


def read_to_package(request: CheckpointRequest) -> Checkpoint:
    """The same of a checkpoint that is to be packaged. Raises UsageError for what is known and never packaged, too."""
    checkpoint = read_checkpoint(request)
    require_one_stage(checkpoint)
    return checkpoint


def _has_weights_alone(request: CheckpointRequest) -> bool:
    """Whether of such a folder only the weights count: nothing in it says which network, or the factory does."""
    return request.base is None and (bool(request.factory) or not (request.path / CONFIG).is_file())


def _is_of_peft(request: CheckpointRequest) -> bool:
    """Whether it is an adapter, or is to be one: by its base, or by what lies in the folder and nothing beside it."""
    path = request.path
    alone = not is_pretrained_folder(path) and not (path / ".metadata").exists()
    return is_adapter(path) or request.base is not None or (alone and bool(adapters_inside(path)))


def build_module(
    checkpoint: Checkpoint, dtype: str | None = None, *, as_in_training: bool = False, lazily: bool = False,
    like: "nn.Module | None" = None,
) -> "nn.Module":  # fmt: skip
    """The module with the checkpoint's weights, in eval mode, without gradients.

    Its tensors are the memory-mapped file's own unless `dtype` (such as `float64`) converts the floating ones; those of
    a dtype in `COMPUTED_IN` always are. Fused preprocessing is part of it: in the operations that are exported, or
    `as_in_training`, by torchvision's own transforms. `lazily`: large parameters are converted whenever they are read
    (`lazy`), a program's excepted. `like`: a module built before, which gives its own tensors where they have the same
    names and values, so that two take the memory of one. Raises UsageError if the file is no longer what the
    Checkpoint says.
    """
    from deploy.checkpoint.servable import servable

    if checkpoint.how == "program":
        return program_module(load_exported(checkpoint.path, trust_pickle=checkpoint.trust_pickle), dtype)
    if checkpoint.how == "config":
        from deploy.checkpoint.pretrained import build_pretrained

        module = build_pretrained(checkpoint)
    else:
        module = _build_from_file(checkpoint)
        dtype = dtype or COMPUTED_IN.get(checkpoint.dtype)
    if dtype:
        module = _converted(module, dtype, lazily=lazily, like=like)
    if checkpoint.how not in ("config", "factory"):
        module = servable(module)
    if checkpoint.preprocessing.fused:
        from deploy.checkpoint.fusing import as_trained, fuse

        return (as_trained if as_in_training else fuse)(module, checkpoint.preprocessing)
    return module


def _converted(module: "nn.Module", dtype: str, *, lazily: bool, like: "nn.Module | None") -> "nn.Module":
    import torch

    from deploy.checkpoint.lazy import convert_parameters, widen

    wanted = getattr(torch, dtype)
    return widen(module, wanted) if lazily else convert_parameters(module, wanted, like=like)


def _build_from_file(checkpoint: Checkpoint) -> "nn.Module":
    from deploy.checkpoint.build import assign_weights, build_architecture
    from deploy.checkpoint.factory import call_factory

    stored = read_stored(checkpoint.base or checkpoint.path, trust_pickle=checkpoint.trust_pickle)
    tensors = find_weights(stored.content, checkpoint.weights, whole=checkpoint.how == "factory").tensors
    if checkpoint.base:
        tensors = merge(tensors, read_adapter(checkpoint.path))
    tensors = unwrap(tensors, checkpoint.removed_prefixes)
    if checkpoint.how == "factory":
        reference = checkpoint.architecture.removeprefix(FACTORY)
        module = call_factory(reference, checkpoint.options, filled=tensors)
    elif checkpoint.architecture.startswith(TIMM):
        module = build_timm(checkpoint.architecture, checkpoint.options, filled=tensors)
    else:
        entry = find_architecture(checkpoint.architecture)
        module = build_architecture(entry, checkpoint.options)
        tensors = {name: tensor for name, tensor in tensors.items() if name not in entry.auxiliary}
    return assign_weights(module, tensors)


def model_name(path: Path) -> str:
    """The stem of the file as a valid model directory name: `runs/model best.pth.tar` gives `model_best`."""
    stem = _SUFFIXES.sub("", path.resolve().name if path.is_dir() else path.name)
    return re.sub(r"[^A-Za-z0-9_.-]+", "_", stem).strip("._-") or "model"


def _read_contents(request: CheckpointRequest) -> Contents:
    path = request.base or request.path
    stored = read_stored(path, trust_pickle=request.trust_pickle)
    stored = replace(stored, metadata={**beside(path), **stored.metadata})
    found = find_weights(stored.content, request.weights, whole=request.factory is not None)
    if request.base:
        note = f"a LoRA adapter merged into {request.base.name}, whose sha256 is {sha256_path(request.base)}"
        found = replace(found, tensors=merge(found.tensors, read_adapter(request.path)), notes=(*found.notes, note))
    check_usable(found.tensors)
    facts = training_facts(stored.content, stored.metadata)
    return Contents(stored=stored, found=found, facts=facts, dtype=main_dtype(found.tensors))


def _understand(request: CheckpointRequest, contents: Contents) -> Understood:
    try:
        return understand_factory(request, contents) if request.factory else understand_library(request, contents)
    except UsageError as error:
        require_merged(request.path, contents.found.tensors)
        if is_pretrained_folder(request.path) and isinstance(error, UnknownArchitectureError):
            raise lacks_config(request.path) from error
        if isinstance(error, UnknownArchitectureError) and (of_folder := file_of_folder(request.path)):
            raise of_folder from error
        if is_pretrained_folder(request.path) and isinstance(error, MisfitError):
            raise with_fix(error, NAMED_OTHERWISE) from error
        raise


def _read_program(request: CheckpointRequest) -> Checkpoint:
    """The Checkpoint of an exported program. Raises UsageError if the request says what the program itself says."""
    given = {
        "--arch": request.arch,
        "--head": request.head,
        "--factory": request.factory,
        "--input-shape": request.inputs,
        "--dynamic": request.dynamic,
        "--weights": request.weights,
        "--fuse-preprocess": request.preprocessing.fuse,
        "preprocessing": request.preprocessing.said,
    }
    said = next((option for option, value in given.items() if value), None)
    if said:
        raise UsageError(
            f"{said} was given with a torch.export program, {request.path}",
            expected="nothing of the kind: a program brings its own graph, shapes and weights",
            fix=f"leave out {said}",
        )
    program = read_program(request.path, trust_pickle=request.trust_pickle)
    check_usable(program.tensors)
    check_finite(program.tensors, masks=set(program.tensors).difference(program.exported.graph_signature.parameters))
    dtype = main_dtype(program.tensors)
    if dtype in COMPUTED_IN:
        raise UsageError(
            f"{request.path} is a program that computes in {dtype}",
            expected="float32 or float16: the runtimes exchange and compute no bfloat16 on a CPU",
            fix="export model.float(): a program's own graph is not changed",
        )
    inputs = with_values(program.inputs, request.values)
    return Checkpoint(
        path=request.path.absolute(),
        digest=sha256_path(request.path),
        format="program",
        name=model_name(request.path),
        architecture=PROGRAM + program.name,
        how="program",
        options=program.options,
        inputs=inputs,
        dims=program.dims,
        dtype=dtype,
        parameters=sum(parameter.numel() for parameter in program.exported.parameters()),
        size=size_of(request.path),
        classes=None,
        num_classes=None,
        preprocessing=UNKNOWN,
        found_under=None,
        weights=None,
        removed_prefixes=(),
        trust_pickle=request.trust_pickle,
        notes=(*program.notes, *range_notes(inputs)),
    )


def _put_down(request: CheckpointRequest, contents: Contents, understood: Understood, digest: str) -> Checkpoint:
    found, dtype = contents.found, contents.dtype
    classes, notes = _checked_classes(contents.facts.classes, understood.num_classes)
    return Checkpoint(
        path=request.path.absolute(),
        digest=digest,
        format=contents.stored.format,
        name=model_name(request.path),
        architecture=understood.architecture,
        how=understood.how,
        options=understood.options,
        inputs=tuple(_exchanged(tensor) for tensor in understood.inputs),
        dims=understood.dims,
        absent=understood.absent,
        decisions=understood.decisions,
        dtype=dtype,
        parameters=understood.parameters,
        size=size_of(request.path) + (size_of(request.base) if request.base else 0),
        base=request.base.absolute() if request.base else None,
        classes=classes,
        num_classes=understood.num_classes,
        preprocessing=understood.preprocessing,
        found_under=found.under,
        weights=found.choice,
        removed_prefixes=understood.removed,
        trust_pickle=request.trust_pickle,
        notes=(
            *contents.stored.notes,
            *found.notes,
            *left_out_notes(found.tensors, understood.removed),
            *_dtype_notes(understood.tensors, dtype),
            *understood.notes,
            *notes,
        ),
    )


def _checked_classes(
    classes: tuple[str, ...] | None, number: int | None
) -> tuple[tuple[str, ...] | None, tuple[str, ...]]:
    if classes is None or number is None or len(classes) == number:
        return classes, ()
    return None, (f"the file names {len(classes)} classes and the head has {number}: the names were left out",)


def _dtype_notes(tensors: Mapping[str, "Tensor"], dtype: str) -> tuple[str, ...]:
    others = sorted({dtype_name(t) for t in tensors.values() if t.is_floating_point()} - {dtype})
    mixed = (f"weights of mixed dtypes: mostly {dtype}, some {', '.join(others)}",) if others else ()
    if dtype not in COMPUTED_IN:
        return mixed
    wider = COMPUTED_IN[dtype]
    return (*mixed, f"the weights are {dtype}: computed and exchanged in {wider}, which holds each of their values")


def _exchanged(tensor: TensorSpec) -> TensorSpec:
    return tensor.model_copy(update={"dtype": COMPUTED_IN.get(tensor.dtype, tensor.dtype)})
