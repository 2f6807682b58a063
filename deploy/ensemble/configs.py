"""The configs of an ensemble's steps and of the ensemble itself, built as ModelConfig messages.

Owns the names of their tensors. Called by whole.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from deploy.repository.protobuf import TRITON_TYPES, format_config, schema
from deploy.spec import BATCH, TensorSpec

MODEL_FILE = "model.py"


@dataclass(frozen=True, slots=True, kw_only=True)
class Tensor:
    """A tensor of a step by its name on the wire; the shape is without the batch, a name stands for a dynamic size."""

    wire: str
    dtype: str
    dims: tuple[int | str, ...]

    def spec(self, name: str, batch: int | str) -> TensorSpec:
        """The same in the words of a spec, where the batch comes first."""
        return TensorSpec(name=name, dtype=self.dtype, shape=(batch, *self.dims))


@dataclass(frozen=True, slots=True, kw_only=True)
class StepPlan:
    """A model of this room: what it is called, what goes in and out, and the largest batch (0: the batch is 1)."""

    name: str
    version: int
    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]
    max_batch: int

    @property
    def batch(self) -> int | str:
        """The first size of every tensor's shape in the spec."""
        return BATCH if self.max_batch else 1


@dataclass(frozen=True, slots=True, kw_only=True)
class EnsembleStep:
    """One step by its model's version, and which of the ensemble's tensors its own are."""

    model: str
    version: int
    inputs: Mapping[str, str]
    outputs: Mapping[str, str]


def python_config(plan: StepPlan, *, instances: int) -> str:
    """The text of a config for Triton's python backend, on CPU, that serves exactly the plan's version."""
    config = _common(plan)
    config.backend = "python"
    config.default_model_filename = MODEL_FILE
    config.instance_group.add(count=instances, kind=schema().ModelInstanceGroup.KIND_CPU)
    return format_config(config)


def ensemble_config(plan: StepPlan, steps: Sequence[EnsembleStep]) -> str:
    """The text of an ensemble's config. Each step names one version: another one has not been proven with the rest."""
    config = _common(plan)
    config.platform = "ensemble"
    for step in steps:
        entry = config.ensemble_scheduling.step.add(model_name=step.model, model_version=step.version)
        entry.input_map.update(step.inputs)
        entry.output_map.update(step.outputs)
    return format_config(config)


def _common(plan: StepPlan) -> Any:
    config = schema().ModelConfig(name=plan.name, max_batch_size=plan.max_batch)
    config.version_policy.specific.versions.append(plan.version)
    for side, tensors in ((config.input, plan.inputs), (config.output, plan.outputs)):
        for tensor in tensors:
            sizes = tensor.dims if plan.max_batch else (1, *tensor.dims)
            dims = [-1 if isinstance(size, str) else size for size in sizes]
            kind = schema().DataType.Value(TRITON_TYPES[tensor.dtype])
            side.add(name=tensor.wire, data_type=kind, dims=dims)
    return config
