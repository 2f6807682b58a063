"""Lint rules on inputs, outputs and warm-up samples.

Owns what core and the two backends demand of names, dtypes and shapes. Called by `lint` only.
"""

import re
from collections.abc import Iterator
from math import prod
from typing import Any

from deploy.repository.findings import Finding
from deploy.repository.protobuf import schema

# pytorch_backend/src/libtorch_utils.cc; TYPE_STRING passes validation there and fails at the first request.
_TORCH_TYPES = {
    "TYPE_BOOL", "TYPE_UINT8", "TYPE_INT8", "TYPE_INT16", "TYPE_INT32", "TYPE_INT64", "TYPE_FP16", "TYPE_FP32",
    "TYPE_FP64",
}  # fmt: skip
_KEY = r"\[[^\s\"\[\]]+\]"
_AOTI_INPUT = re.compile(rf"INPUT__(\d+)|ARGS\[\d+\]({_KEY})*")
_AOTI_OUTPUT = re.compile(rf"OUTPUT__(\d+)|RESULT({_KEY})*")


def check_tensors(config: Any) -> Iterator[Finding]:
    """Each tensor has a name, a dtype and sizes of at least 1 (or -1)."""
    tensorrt = config.platform == "tensorrt_plan"
    for side, tensors in (("input", config.input), ("output", config.output)):
        for position, tensor in enumerate(tensors):
            name = tensor.name or f"{side} {position}"
            if not tensor.name:
                yield "tensor-name", f"{name} has no name"
            if tensor.data_type == schema().TYPE_INVALID:
                yield "data-type", f"{name} has no data_type"
            if not tensor.dims:
                yield "dims", f"{name} has no dims"
            if any(size < 1 and size != -1 for size in tensor.dims):
                yield "dims", f"{name} has dims {list(tensor.dims)}; each must be at least 1, or -1"
            if (tensor.is_shape_tensor or tensor.is_non_linear_format_io) and not tensorrt:
                yield "tensor-kind", f"{name} is a shape tensor or non-linear, which only TensorRT knows"
    for tensor in config.input:
        if tensor.format and len(tensor.dims) != 3:
            yield "format", f"{tensor.name} has an image format and {len(tensor.dims)} dims; it needs 3"


def check_reshapes(config: Any) -> Iterator[Finding]:
    """A reshape keeps the number of elements between the unknown sizes, and is not empty without batching."""
    for tensor in (*config.input, *config.output):
        if not tensor.HasField("reshape"):
            continue
        shape = list(tensor.reshape.shape)
        if not shape and config.max_batch_size == 0:
            yield "reshape", f"{tensor.name} has an empty reshape, which needs a max_batch_size above 0"
        if _chunks(list(tensor.dims)) != _chunks(shape):
            yield "reshape", f"{tensor.name} cannot go from {list(tensor.dims)} to {shape}"


def check_dtypes(config: Any) -> Iterator[Finding]:
    """The PyTorch backend knows nine dtypes."""
    if config.backend != "pytorch":
        return
    for tensor in (*config.input, *config.output):
        name = schema().DataType.Name(tensor.data_type)
        if tensor.data_type != schema().TYPE_INVALID and name not in _TORCH_TYPES:
            yield "torch-dtype", f"{tensor.name} is {name}, which the PyTorch backend cannot exchange"


def check_aoti_names(config: Any) -> Iterator[Finding]:
    """An AOTInductor archive's tensors go by ordinal (`INPUT__0`) or by their place in the call (`ARGS[0]`)."""
    if config.platform != "torch_aoti":
        return
    if not config.output:
        yield "aoti-name", "the model has no output"
    for tensor in config.input:
        if tensor.name.startswith("KWARGS"):
            yield "aoti-name", f"input {tensor.name!r} is passed by keyword, which Triton 26.05 resolves wrongly"
        elif not _AOTI_INPUT.fullmatch(tensor.name):
            yield "aoti-name", f"input {tensor.name!r} is neither INPUT__<i> nor ARGS[<i>]"
    for tensor in config.output:
        if not _AOTI_OUTPUT.fullmatch(tensor.name):
            yield "aoti-name", f"output {tensor.name!r} is neither OUTPUT__<i> nor RESULT"
    matches = [_AOTI_INPUT.fullmatch(tensor.name) for tensor in config.input]
    ordinals = [int(match[1]) for match in matches if match and match[1]]
    if len(ordinals) == len(matches) and sorted(ordinals) != list(range(len(ordinals))):
        yield "aoti-name", f"the inputs are numbered {sorted(ordinals)}; each input of the archive must be listed once"


def check_onnx_tensors(config: Any) -> Iterator[Finding]:
    """ONNX Runtime's backend takes no optional input in a batch, and ragged ones of shape [-1] only."""
    if config.backend != "onnxruntime":
        return
    for tensor in config.input:
        if tensor.optional and config.max_batch_size > 0:
            yield "onnx-optional", f"input {tensor.name!r} is optional in a model that batches"
        if tensor.allow_ragged_batch and list(tensor.dims) != [-1]:
            yield "onnx-ragged", f"input {tensor.name!r} is ragged and has dims {list(tensor.dims)}; it needs [-1]"


def check_warmup(config: Any) -> Iterator[Finding]:
    """A warm-up sample gives each input once, with its dtype and sizes that are all known."""
    declared = {tensor.name: tensor for tensor in config.input}
    for warmup in config.model_warmup:
        missing = {name for name, tensor in declared.items() if not tensor.optional} - set(warmup.inputs)
        if missing:
            yield "warmup", f"warm-up {warmup.name!r} lacks {', '.join(sorted(missing))}"
        if warmup.batch_size > max(1, config.max_batch_size):
            yield "warmup", f"warm-up {warmup.name!r} has batch size {warmup.batch_size}, more than the model takes"
        for name, entry in warmup.inputs.items():
            tensor = declared.get(name)
            if tensor is None:
                yield "warmup", f"warm-up {warmup.name!r} gives {name!r}, which is no input"
            elif entry.data_type != tensor.data_type:
                yield "warmup", f"warm-up {warmup.name!r} gives {name} another dtype than the model has"
            if any(size < 1 for size in entry.dims):
                yield "warmup", f"warm-up {warmup.name!r} gives {name} dims {list(entry.dims)}; all must be known"
            elif tensor is not None and not _fits(list(entry.dims), list(tensor.dims)):
                yield "warmup", f"warm-up {warmup.name!r} gives {name} dims {list(entry.dims)}, which do not fit"


def _chunks(dims: list[int]) -> list[int]:
    """The element counts of the runs between unknown sizes, which a reshape must keep."""
    runs: list[list[int]] = [[]]
    for size in dims:
        if size == -1:
            runs.append([])
        else:
            runs[-1].append(size)
    return [prod(run) for run in runs]


def _fits(dims: list[int], declared: list[int]) -> bool:
    return len(dims) == len(declared) and all(b in (-1, a) for a, b in zip(dims, declared, strict=True))
