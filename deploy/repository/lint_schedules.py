"""Lint rules on how Triton schedules: dynamic batching, sequences, batch inputs and ensembles.

Owns what core's model_config_utils.cc demands of them. Called by `lint` only.
"""

from collections.abc import Iterator
from typing import Any

from deploy.repository.findings import Finding
from deploy.repository.protobuf import schema

_CORRELATION_TYPES = {"TYPE_UINT64", "TYPE_INT64", "TYPE_UINT32", "TYPE_INT32", "TYPE_STRING"}
_BATCH_TYPES = {"TYPE_INT32", "TYPE_FP32"}


def check_dynamic_batching(config: Any) -> Iterator[Finding]:
    """Preferred sizes fit, and priorities lie in their range and go with the order asked for."""
    if not config.HasField("dynamic_batching"):
        return
    batching = config.dynamic_batching
    yield from _check_preferred(config, batching.preferred_batch_size)
    levels = batching.priority_levels
    if levels and not 1 <= batching.default_priority_level <= levels:
        yield "priority", f"default_priority_level {batching.default_priority_level} is not in 1..{levels}"
    for level in batching.priority_queue_policy:
        if not 1 <= level <= levels:
            yield "priority", f"priority_queue_policy {level} is not in 1..{levels}"
    if not batching.preserve_ordering:
        return
    if levels > 1:
        yield "preserve-ordering", f"the order cannot be kept over {levels} priority levels"
    policies = (batching.default_queue_policy, *batching.priority_queue_policy.values())
    if any(policy.timeout_action == schema().ModelQueuePolicy.DELAY for policy in policies):
        yield "preserve-ordering", "the order cannot be kept where a timeout delays a request"


def check_sequences(config: Any) -> Iterator[Finding]:
    """Sequence batching has well-formed controls and no response cache."""
    if not config.HasField("sequence_batching"):
        return
    batching = config.sequence_batching
    if config.response_cache.enable:
        yield "response-cache", "a model with sequence batching cannot have a response cache"
    if "TRITON_BATCH_STRATEGY_PATH" in config.parameters:
        yield "sequence", "a batching strategy cannot go with sequence batching"
    yield from _check_preferred(config, batching.oldest.preferred_batch_size)
    if not 0 <= batching.direct.minimum_slot_utilization <= 1:
        yield "sequence", "minimum_slot_utilization is not in 0..1"
    seen = set()
    for control_input in batching.control_input:
        if not control_input.name:
            yield "sequence", "a control input has no name"
        for control in control_input.control:
            if control.kind in seen:
                yield "sequence", f"two controls have the kind {_kind(control)}"
            seen.add(control.kind)
            yield from _check_control(control)


def _check_control(control: Any) -> Iterator[Finding]:
    pairs = (control.int32_false_true, control.fp32_false_true, control.bool_false_true)
    given = [list(pair) for pair in pairs if pair]
    if _kind(control) == "CONTROL_SEQUENCE_CORRID":
        name = schema().DataType.Name(control.data_type)
        if name not in _CORRELATION_TYPES:
            yield "sequence", f"the correlation id is {name}, none of {', '.join(sorted(_CORRELATION_TYPES))}"
        if given:
            yield "sequence", "the correlation id has a pair of false and true values"
    elif len(given) != 1 or len(given[0]) != 2:
        yield "sequence", f"{_kind(control)} needs exactly one pair of false and true values"


def _kind(control: Any) -> str:
    name: str = schema().ModelSequenceBatching.Control.Kind.Name(control.kind)
    return name


def _check_preferred(config: Any, sizes: Any) -> Iterator[Finding]:
    for size in sizes:
        if not 1 <= size <= config.max_batch_size:
            yield "preferred-batch-size", f"preferred_batch_size {size} is not in 1..{config.max_batch_size}"


def check_batch_io(config: Any) -> Iterator[Finding]:
    """A batch input or output has one source, which is an input of the model."""
    inputs = {tensor.name for tensor in config.input}
    outputs = {tensor.name for tensor in config.output}
    for side, entries in (("batch_input", config.batch_input), ("batch_output", config.batch_output)):
        for entry in entries:
            if len(entry.source_input) != 1:
                yield "batch-io", f"a {side} has {len(entry.source_input)} source inputs; it needs 1"
            for name in set(entry.source_input) - inputs:
                yield "batch-io", f"a {side} has the source {name!r}, which is no input"
    for entry in config.batch_input:
        name = schema().DataType.Name(entry.data_type)
        if name not in _BATCH_TYPES:
            yield "batch-io", f"a batch_input is {name}, neither TYPE_INT32 nor TYPE_FP32"
    for entry in config.batch_output:
        for name in set(entry.target_name) - outputs:
            yield "batch-io", f"a batch_output has the target {name!r}, which is no output"


def check_ensemble(config: Any) -> Iterator[Finding]:
    """An ensemble has steps that use every input, write every output and read what some step wrote."""
    if config.platform != "ensemble":
        return
    for field in ("instance_group", "model_warmup"):
        if getattr(config, field):
            yield "ensemble", f"an ensemble cannot have {field}"
    if config.HasField("optimization"):
        yield "ensemble", "an ensemble cannot have optimization"
    steps = config.ensemble_scheduling.step
    if not steps:
        yield "ensemble", "an ensemble needs at least one step"
    read = {name for step in steps for name in step.input_map.values()}
    written = {name for step in steps for name in step.output_map.values()}
    inputs = {tensor.name for tensor in config.input}
    outputs = {tensor.name for tensor in config.output}
    for name in sorted(inputs - read):
        yield "ensemble", f"no step reads the input {name!r}"
    for name in sorted(outputs - written):
        yield "ensemble", f"no step writes the output {name!r}"
    for name in sorted(read - written - inputs):
        yield "ensemble", f"a step reads {name!r}, which nothing writes"
    for name in sorted(written - read - outputs):
        yield "ensemble", f"a step writes {name!r}, which nothing reads"
