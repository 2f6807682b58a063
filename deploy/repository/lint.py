"""What Triton would reject in a config, said before anything is published.

Owns the list of rules and the rules on backends, batching, instances and files; those on tensors, ensembles and
sequences are in `lint_tensors` and `lint_schedules`. Called by publish, promotion and verify. A finding is an error.
"""

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from deploy.errors import UnfinishedError, UsageError
from deploy.repository.findings import Finding, LintFinding
from deploy.repository.lint_llm import check_llm, check_llm_files
from deploy.repository.lint_schedules import check_batch_io, check_dynamic_batching, check_ensemble, check_sequences
from deploy.repository.lint_tensors import (
    check_aoti_names,
    check_dtypes,
    check_onnx_tensors,
    check_reshapes,
    check_tensors,
    check_warmup,
)
from deploy.repository.protobuf import parse_config, schema

# core/src/model_config_utils.cc: a known backend with another platform is refused; unknown backends take any.
_PLATFORMS = {
    "onnxruntime": ("", "onnxruntime_onnx"),
    "pytorch": ("", "pytorch_libtorch", "torch_aoti"),
    "tensorrt": ("", "tensorrt_plan"),
    "tensorflow": ("", "tensorflow_graphdef", "tensorflow_savedmodel"),
}
_ACCELERATORS = {"cuda", "tensorrt", "openvino"}
_TENSORRT_MODES = {"FP32", "FP16", "BF16", "INT8"}
_WHOLE_NUMBER = re.compile(r"-?[0-9]+")
_ONNX_CHOICES = {
    "execution_mode": {"0", "1"},
    "enable_mem_arena": {"0", "1"},
    "enable_mem_pattern": {"0", "1"},
    "arena_extend_strategy": {"0", "1"},
    "do_copy_in_default_stream": {"0", "1"},
    "cudnn_conv_algo_search": {"0", "1", "2"},
    "session.use_device_allocator_for_initializers": {"0", "1"},
}
_THREAD_COUNTS = {"intra_op_thread_count", "inter_op_thread_count", "INTRA_OP_THREAD_COUNT", "INTER_OP_THREAD_COUNT"}


def lint(config_text: str, *, folder: Path | None = None) -> tuple[LintFinding, ...]:
    """Everything in the config that Triton would refuse, or load as something else than what was meant.

    With the model's `folder` (`<repository>/<name>`) its name and the files that the config names are checked too.
    """
    try:
        config = parse_config(config_text)
    except UsageError as error:
        return (LintFinding(rule="syntax", message=error.found),)
    findings = [finding for rule in _RULES for finding in rule(config)]
    if folder is not None:
        findings += [*_check_files(config, folder), *check_llm_files(config, folder)]
    return tuple(LintFinding(rule=rule, message=message) for rule, message in findings)


def require_clean(config_text: str, *, folder: Path) -> None:
    """Raises UnfinishedError if the linter finds anything, with all of its findings."""
    findings = lint(config_text, folder=folder)
    if findings:
        listed = "\n".join(f"  {finding.rule}: {finding.message}" for finding in findings)
        raise UnfinishedError(
            f"Triton would reject the configuration of {folder.name}:\n{listed}",
            expected="a configuration without findings",
            fix="change what the message names; where deployctl chose it, report it as a bug",
        )


def _check_backend(config: Any) -> Iterator[Finding]:
    if not config.name:
        yield "name", "the model has no name"
    if config.platform == "ensemble":
        if config.backend:
            yield "backend", f"an ensemble has no backend, and this one has {config.backend!r}"
        return
    if not config.backend:
        yield "backend", "no backend is named"
    allowed = _PLATFORMS.get(config.backend)
    if allowed is not None and config.platform not in allowed:
        yield "platform", f"backend {config.backend!r} does not go with platform {config.platform!r}"


def _check_limits(config: Any) -> Iterator[Finding]:
    if config.max_batch_size < 0:
        yield "max-batch-size", f"max_batch_size is {config.max_batch_size}; 0 is the least"
    if config.model_transaction_policy.decoupled and config.response_cache.enable:
        yield "response-cache", "a decoupled model cannot have a response cache"
    for version in config.version_policy.specific.versions:
        if version < 1:
            yield "version", f"version {version} is named; Triton counts from 1"


def _check_aoti_file(config: Any) -> Iterator[Finding]:
    if config.platform == "torch_aoti" and config.default_model_filename != "model.pt2":
        found = config.default_model_filename or "not set"
        yield (
            "model-file",
            f"default_model_filename is {found}; Triton 26.03 needs model.pt2 said in full",
        )


def _check_instances(config: Any) -> Iterator[Finding]:
    kinds = schema().ModelInstanceGroup
    for group in config.instance_group:
        kind = kinds.Kind.Name(group.kind)
        if group.gpus and group.kind in (kinds.KIND_CPU, kinds.KIND_MODEL):
            yield "instance-group", f"an instance group of {kind} names GPUs"
        if group.profile and config.platform != "tensorrt_plan":
            yield "instance-group", "only TensorRT has optimisation profiles"
        if group.count < 0:
            yield "instance-group", f"an instance group has a count of {group.count}"


def _check_metrics(config: Any) -> Iterator[Finding]:
    for control in config.model_metrics.metric_control:
        if not control.metric_identifier.family:
            yield "model-metrics", "a metric control names no metric family"
        if not control.histogram_options.buckets:
            yield "model-metrics", "a metric control has no histogram buckets"


def _check_parameters(config: Any) -> Iterator[Finding]:
    for key, parameter in config.parameters.items():
        value = parameter.string_value
        if key in _THREAD_COUNTS and not _WHOLE_NUMBER.fullmatch(value):
            yield "parameters", f"{key} is {value!r}, not a whole number"
        allowed = _ONNX_CHOICES.get(key)
        if config.backend == "onnxruntime" and allowed and value not in allowed:
            yield "parameters", f"{key} is {value!r}, none of {', '.join(sorted(allowed))}"


def _check_optimization(config: Any) -> Iterator[Finding]:
    if config.backend != "onnxruntime":
        return
    level = config.optimization.graph.level
    if level not in (-1, 0, 1, 2):
        yield "optimization", f"graph level {level} is none of -1, 0, 1, 2"
    accelerators = config.optimization.execution_accelerators
    for entry in (*accelerators.gpu_execution_accelerator, *accelerators.cpu_execution_accelerator):
        if entry.name not in _ACCELERATORS:
            yield "optimization", f"there is no execution accelerator {entry.name!r}"
        mode = entry.parameters.get("precision_mode", "FP32")
        if entry.name == "tensorrt" and mode not in _TENSORRT_MODES:
            yield "optimization", f"precision_mode is {mode!r}, none of {', '.join(sorted(_TENSORRT_MODES))}"


def _check_files(config: Any, folder: Path) -> Iterator[Finding]:
    if config.name != folder.name:
        yield "name", f"the model is called {config.name!r} and its folder {folder.name!r}; Triton wants one name"
    for version in config.version_policy.specific.versions:
        main = folder / str(version) / config.default_model_filename
        if not main.exists():
            yield "version-files", f"{version}/{config.default_model_filename} is missing"
    for output in config.output:
        if output.label_filename and not _inside(folder, output.label_filename):
            yield "labels", f"label file {output.label_filename!r} is not a file of the model"
    for warmup in config.model_warmup:
        for name, entry in warmup.inputs.items():
            if entry.input_data_file:
                yield from _check_sample(folder, name, entry)


def _check_sample(folder: Path, name: str, entry: Any) -> Iterator[Finding]:
    path = folder / "warmup" / entry.input_data_file
    if not _inside(folder / "warmup", entry.input_data_file):
        yield "warmup-file", f"the sample {entry.input_data_file!r} of {name} is not below warmup/"
        return
    width = _WIDTHS.get(schema().DataType.Name(entry.data_type))
    if width is None:
        return
    wanted = width
    for size in entry.dims:
        wanted *= size
    if path.stat().st_size != wanted:
        yield "warmup-file", f"the sample of {name} has {path.stat().st_size} bytes and not {wanted}"


def _inside(folder: Path, relative: str) -> bool:
    path = (folder / relative).resolve()
    return path.is_file() and path.is_relative_to(folder.resolve())


_WIDTHS = {
    "TYPE_BOOL": 1, "TYPE_UINT8": 1, "TYPE_INT8": 1, "TYPE_UINT16": 2, "TYPE_INT16": 2, "TYPE_FP16": 2,
    "TYPE_BF16": 2, "TYPE_UINT32": 4, "TYPE_INT32": 4, "TYPE_FP32": 4, "TYPE_UINT64": 8, "TYPE_INT64": 8,
    "TYPE_FP64": 8,
}  # fmt: skip

_RULES: tuple[Callable[[Any], Iterator[Finding]], ...] = (
    _check_backend,
    _check_limits,
    _check_aoti_file,
    check_tensors,
    check_reshapes,
    check_dtypes,
    check_aoti_names,
    check_onnx_tensors,
    check_dynamic_batching,
    check_sequences,
    check_batch_io,
    check_ensemble,
    _check_instances,
    _check_metrics,
    _check_parameters,
    _check_optimization,
    check_warmup,
    check_llm,
)
