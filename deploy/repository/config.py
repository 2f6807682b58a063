"""A version's `config.pbtxt`, built as a ModelConfig message and never from a template.

Owns what we ask of Triton: backend, tensors, batching, instances, threads, labels and warm-up. What Triton rejects is
in `lint`. Called by package, and by whatever publishes a version with another config.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from deploy.convert.building import not_loaded
from deploy.convert.model import ARTIFACT_FILES, Format
from deploy.convert.ort_session import CUDA, LEVEL, TENSORRT, is_for_accelerator, told
from deploy.convert.providers import EXACT
from deploy.errors import UsageError
from deploy.files import sha256_bytes
from deploy.repository.histograms import set_latency_buckets
from deploy.repository.layout import LABELS_FILE
from deploy.repository.protobuf import TRITON_TYPES, format_config, parse_config, schema
from deploy.spec import BATCH, Spec, TensorSpec, wire_input, wire_output
from deploy.targets import Target, targets_like

_BACKENDS: dict[Format, tuple[str, str]] = {
    "onnx": ("onnxruntime", ""),
    "aoti": ("pytorch", "torch_aoti"),
    "torchscript": ("pytorch", "pytorch_libtorch"),
}
_THREADS: dict[Format, tuple[str, str]] = {
    "onnx": ("intra_op_thread_count", "inter_op_thread_count"),
    "aoti": ("INTRA_OP_THREAD_COUNT", "INTER_OP_THREAD_COUNT"),
    "torchscript": ("INTRA_OP_THREAD_COUNT", "INTER_OP_THREAD_COUNT"),
}
_WARM_ON_GPU = 32  # batch sizes up to which each is warmed there; each may take some tenths of a second


@dataclass(frozen=True, slots=True, kw_only=True)
class WarmupTensor:
    """One input of a real sample, a batch of 1 of the spec's shape, as the bytes Triton reads from a file."""

    wire: str
    dtype: str
    shape: tuple[int, ...]
    data: bytes

    @property
    def digest(self) -> str:
        """The SHA-256 of the bytes, which is the name of the file below `<model>/warmup/`."""
        return sha256_bytes(self.data)


@dataclass(frozen=True, slots=True, kw_only=True)
class ConfigPlan:
    """What a config is built from. `threads` is for one operator; `classes` are in the order of the output.

    `slo_p99_ms` sets the buckets of the latency histogram, where the target has one. `options` are those of the ONNX
    Runtime session, by their names in the config.
    """

    name: str
    version: int
    format: Format
    spec: Spec
    target: Target
    threads: int
    classes: tuple[str, ...] | None = None
    warmup: tuple[WarmupTensor, ...] = ()
    slo_p99_ms: float | None = None
    options: Mapping[str, str] = field(default_factory=dict)


def build_config(plan: ConfigPlan) -> str:
    """The text of the config that serves exactly `plan.version`.

    Raises UsageError if the target cannot load the format, or Triton has no word for a dtype, a shape or the labels.
    """
    check_format(plan.format, plan.target)
    for tensor in (*plan.spec.inputs, *plan.spec.outputs):
        _check_dtype(tensor, plan)
    config = schema().ModelConfig()
    config.name = plan.name
    config.backend, config.platform = _BACKENDS[plan.format]
    # Triton 26.03 would look for model.pt: the name is never left to the server.
    config.default_model_filename = ARTIFACT_FILES[plan.format]
    config.version_policy.specific.versions.append(plan.version)
    _set_tensors(config, plan)
    _set_labels(config, plan)
    _set_instances(config, plan)
    _set_parameters(config, plan)
    _set_warmup(config, plan)
    if plan.target.latency_histograms:
        set_latency_buckets(config, bound_ms=plan.slo_p99_ms)
    return format_config(config)


def warmup_tensors(spec: Spec, rows: Sequence[np.ndarray]) -> tuple[WarmupTensor, ...]:
    """One real sample as warm-up: `rows` holds an array per input, each a batch of 1."""
    spec.check_inputs(rows)
    return tuple(
        WarmupTensor(wire=wire_input(index), dtype=tensor.dtype, shape=row.shape, data=row.tobytes())
        for index, (tensor, row) in enumerate(zip(spec.inputs, rows, strict=True))
    )


def batches(plan: ConfigPlan) -> bool:
    """Whether Triton may merge requests: each tensor has the dynamic batch first, and there only."""
    batch = plan.spec.batch
    if batch is None or batch.minimum > 1 or (plan.format == "aoti" and not plan.target.aoti.batches):
        return False
    tensors = (*plan.spec.inputs, *plan.spec.outputs)
    return all(tensor.shape[:1] == (BATCH,) and BATCH not in tensor.shape[1:] for tensor in tensors)


def renumbered(text: str, version: int) -> str:
    """The same config for another version number, which it holds in its policy and in the path of its labels."""
    config = parse_config(text)
    config.version_policy.specific.versions[:] = [version]
    for output in config.output:
        if output.label_filename:
            output.label_filename = f"{version}/{LABELS_FILE}"
    return format_config(config)


def check_format(format_: Format, target: Target) -> None:
    """Raises UsageError if the target's Triton cannot load the format, naming the targets that can."""
    if format_ == "aoti" and not target.aoti.loads:
        raise not_loaded(target)


def _check_dtype(tensor: TensorSpec, plan: ConfigPlan) -> None:
    if tensor.dtype != "bfloat16" or exchanges_bfloat16(plan.format, plan.target):
        return
    able = targets_like(plan.target, lambda other: exchanges_bfloat16(plan.format, other))
    raise UsageError(
        f"tensor {tensor.name!r} is bfloat16, which target {plan.target.name} cannot exchange with clients",
        expected=f"float32 or float16 inputs and outputs, or one of the targets {able}",
        fix="wrap the model so that it casts at its edges",
    )


def exchanges_bfloat16(format_: Format, target: Target) -> bool:
    """Whether the target's backend for the format takes and gives bfloat16 tensors, as far as is known."""
    if format_ == "torchscript":
        return False  # pytorch_backend/src/libtorch_utils.cc
    return target.aoti.bfloat16 if format_ == "aoti" else bool(target.onnx_bfloat16)


def _set_tensors(config: Any, plan: ConfigPlan) -> None:
    batched = batches(plan)
    for index, tensor in enumerate(plan.spec.inputs):
        _fill(config.input.add(), wire_input(index), tensor, batched=batched)
    for index, tensor in enumerate(plan.spec.outputs):
        _fill(config.output.add(), wire_output(index), tensor, batched=batched)
    if batched:
        config.max_batch_size = plan.spec.max_batch
        config.dynamic_batching.SetInParent()


def _fill(entry: Any, wire: str, tensor: TensorSpec, *, batched: bool) -> None:
    shape = tensor.shape[1:] if batched else tensor.shape
    dims = [-1 if isinstance(size, str) else size for size in shape]
    if not dims and not batched:
        raise UsageError(
            f"tensor {tensor.name!r} is a scalar, which Triton cannot serve",
            expected="at least one dimension",
            fix="let the model give it a dimension of size 1",
        )
    if not dims:
        # Triton wants a dimension per tensor: clients see [batch, 1], the model [batch].
        entry.reshape.SetInParent()
    entry.name = wire
    entry.data_type = schema().DataType.Value(TRITON_TYPES[tensor.dtype])
    entry.dims.extend(dims or [1])


def _set_labels(config: Any, plan: ConfigPlan) -> None:
    if plan.classes is None:
        return
    for entry, tensor in zip(config.output, plan.spec.outputs, strict=True):
        axis = tensor.decision_axis
        if axis is not None and tensor.shape[axis] == len(plan.classes):
            entry.label_filename = f"{plan.version}/{LABELS_FILE}"
            return
    outputs = ", ".join(f"{tensor.name} {list(tensor.shape)}" for tensor in plan.spec.outputs)
    raise UsageError(
        f"there are {len(plan.classes)} labels, and no output that decides between so many",
        expected=f"labels for one of {outputs}",
        fix="correct the labels file",
    )


def _set_instances(config: Any, plan: ConfigPlan) -> None:
    group = config.instance_group.add()
    group.count = 1
    kinds = schema().ModelInstanceGroup
    if plan.target.device == "cuda":
        # An AOTInductor loader belongs to the model and not to the instance: one GPU per server.
        group.kind = kinds.KIND_GPU
        group.gpus.append(0)
    else:
        group.kind = kinds.KIND_CPU
    if plan.target.device == "cuda" and plan.format == "onnx":
        _set_accelerators(config, plan)


def _set_accelerators(config: Any, plan: ConfigPlan) -> None:
    """TensorRT first where the options tell it anything, then CUDA, in fp32 as it was proven and not in TF32."""
    listed = config.optimization.execution_accelerators.gpu_execution_accelerator
    if tensorrt := told(plan.options, TENSORRT):
        listed.add(name=TENSORRT.removesuffix("."), parameters=tensorrt)
    listed.add(name=CUDA.removesuffix("."), parameters=EXACT | told(plan.options, CUDA))


def _set_parameters(config: Any, plan: ConfigPlan) -> None:
    """The threads, where the release heeds them: some read an archive's parameters wrongly or not at all."""
    if plan.format == "aoti" and plan.target.aoti.parameters is False:
        return
    within, between = _THREADS[plan.format]
    config.parameters[within].string_value = str(plan.threads)
    config.parameters[between].string_value = "1"
    for name, value in sorted(plan.options.items()):
        if name == LEVEL:
            config.optimization.graph.level = int(value)
        elif not is_for_accelerator(name):
            config.parameters[name].string_value = value


def _warm_sizes(plan: ConfigPlan) -> set[int]:
    """The batch sizes that a server has seen before the first request.

    On a GPU every size at first: cuDNN plans its attention, and ONNX Runtime searches its convolutions' algorithms,
    once for each shape. A server that does so under load falls behind, forms batches of new sizes, and stands still
    again.
    """
    largest = plan.spec.max_batch
    every = range(1, min(largest, _WARM_ON_GPU) + 1) if plan.target.device == "cuda" else ()
    return {1, largest, *every}


def _set_warmup(config: Any, plan: ConfigPlan) -> None:
    if not plan.warmup:
        return
    batched = batches(plan)
    sizes = sorted(_warm_sizes(plan)) if batched else [1]
    for size in sizes:
        # `batch_size` N makes N requests of one row each, executed together: the file holds one row.
        warmup = config.model_warmup.add(name=f"sample_batch_{size}", batch_size=size, count=1)
        for tensor in plan.warmup:
            entry = warmup.inputs[tensor.wire]
            entry.data_type = schema().DataType.Value(TRITON_TYPES[tensor.dtype])
            entry.dims.extend((tensor.shape[1:] or (1,)) if batched else tensor.shape)
            entry.input_data_file = tensor.digest
