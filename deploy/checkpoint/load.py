"""A checkpoint on disk becomes a Checkpoint value, and that value becomes a module that can run.

Owns the order of the steps; each step's work and refusals are in the other files of this room.
Called by `inspect` in its own process, and by package's children. Imports torch on use only.
"""

import re
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

from deploy.checkpoint.formats import read_stored
from deploy.checkpoint.inputs import check_no_words
from deploy.checkpoint.library import understand_library
from deploy.checkpoint.model import Checkpoint, CheckpointRequest
from deploy.checkpoint.preprocess import settle
from deploy.checkpoint.pretrained_folder import is_pretrained_folder
from deploy.checkpoint.sniff import recognise
from deploy.checkpoint.tensors import check_finite, check_usable, dtype_name, main_dtype
from deploy.checkpoint.timm_models import TIMM, build_timm
from deploy.checkpoint.training import training_facts
from deploy.checkpoint.understand import FACTORY, Contents, Understood, understand_factory
from deploy.checkpoint.weights import find_weights, left_out_notes, unwrap
from deploy.checkpoint.zoo import find_architecture
from deploy.errors import UsageError
from deploy.files import sha256_path, size_of
from deploy.spec import TensorSpec

if TYPE_CHECKING:
    from torch import Tensor, nn

# ONNX Runtime has no bfloat16 kernels on a CPU, Triton's PyTorch backend exchanges none, and numpy has no such dtype.
COMPUTED_IN = {"bfloat16": "float32"}

_SUFFIXES = re.compile(r"(\.(pt|pth|ckpt|bin|safetensors|tar))+$", re.IGNORECASE)


def read_checkpoint(request: CheckpointRequest) -> Checkpoint:
    """Everything there is to know about the checkpoint, its weights proven whole and finite.

    1. Tell what the file is.
    2. Find the weights in it.
    3. Find their architecture, input and preprocessing; settle what was asked of the latter.
    4. Check every value.
    5. Put down what was found.

    Raises UsageError where one of these cannot be done.
    """
    if request.arch and request.factory:
        raise UsageError("--arch and --factory were both given", expected="one of them")
    if is_pretrained_folder(request.path):
        from deploy.checkpoint.pretrained import read_pretrained

        check_no_words(request, why="the folder's config.json says what the network takes")
        return read_pretrained(request, request.path, name=model_name(request.path))
    # 1. Refused before anything large is read; then the digest is taken while torch is imported.
    recognise(request.path)
    with ThreadPoolExecutor(max_workers=1) as pool:
        digest = pool.submit(sha256_path, request.path)
        # 2.
        contents = _read_contents(request)
        # 3.
        understood = understand_factory(request, contents) if request.factory else understand_library(request, contents)
        understood = settle(understood, request.preprocessing)
        # 4.
        check_finite(understood.tensors)
        # 5.
        return _put_down(request, contents, understood, digest.result())


def build_module(checkpoint: Checkpoint, dtype: str | None = None, *, as_in_training: bool = False) -> "nn.Module":
    """The module with the checkpoint's weights, in eval mode, without gradients.

    Its tensors are the memory-mapped file's own unless `dtype` (such as `float64`) converts the floating ones; those of
    a dtype in `COMPUTED_IN` always are. Fused preprocessing is part of it: in the operations that are exported, or
    `as_in_training`, by torchvision's own transforms. Raises UsageError if the file is no longer what the Checkpoint
    says.
    """
    import torch

    from deploy.checkpoint.build import assign_weights, build_architecture
    from deploy.checkpoint.factory import call_factory
    from deploy.checkpoint.servable import servable

    if checkpoint.how == "config":
        from deploy.checkpoint.pretrained import build_pretrained

        module = build_pretrained(checkpoint)
        return module.to(getattr(torch, dtype)) if dtype else module
    stored = read_stored(checkpoint.path, trust_pickle=checkpoint.trust_pickle)
    tensors = unwrap(find_weights(stored.content, checkpoint.weights).tensors, checkpoint.removed_prefixes)
    if checkpoint.how == "factory":
        reference = checkpoint.architecture.removeprefix(FACTORY)
        module = call_factory(reference, checkpoint.options, filled=tensors)
    elif checkpoint.architecture.startswith(TIMM):
        module = build_timm(checkpoint.architecture, checkpoint.options, filled=tensors)
    else:
        entry = find_architecture(checkpoint.architecture)
        module = build_architecture(entry, checkpoint.options)
        tensors = {name: tensor for name, tensor in tensors.items() if name not in entry.auxiliary}
    module = assign_weights(module, tensors)
    if checkpoint.how != "factory":
        module = servable(module)
    if checkpoint.preprocessing.fused:
        from deploy.checkpoint.fusing import as_trained, fuse

        module = (as_trained if as_in_training else fuse)(module, checkpoint.preprocessing)
    dtype = dtype or COMPUTED_IN.get(checkpoint.dtype)
    return module.to(getattr(torch, dtype)) if dtype else module


def model_name(path: Path) -> str:
    """The stem of the file as a valid model directory name: `runs/model best.pth.tar` gives `model_best`."""
    stem = _SUFFIXES.sub("", path.resolve().name if path.is_dir() else path.name)
    return re.sub(r"[^A-Za-z0-9_.-]+", "_", stem).strip("._-") or "model"


def _read_contents(request: CheckpointRequest) -> Contents:
    stored = read_stored(request.path, trust_pickle=request.trust_pickle)
    found = find_weights(stored.content, request.weights)
    check_usable(found.tensors)
    facts = training_facts(stored.content, stored.metadata)
    return Contents(stored=stored, found=found, facts=facts, dtype=main_dtype(found.tensors))


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
        size=size_of(request.path),
        classes=classes,
        num_classes=understood.num_classes,
        preprocessing=understood.preprocessing,
        found_under=found.under,
        weights=found.choice,
        removed_prefixes=understood.removed,
        trust_pickle=request.trust_pickle,
        notes=(
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
