"""The files that make a folder a model of Triton's vLLM backend, each built and none from a template.

Owns `config.pbtxt`, `model.json` and `multi_lora.json`, and how the weights' place in the container is written. Called
by `package`; the numbers come from `sizing`.
"""

import shutil
from pathlib import Path, PurePosixPath

from deploy.errors import UnfinishedError, UsageError
from deploy.files import disk_errors_explained
from deploy.llm.model import Adapter, LlmCheckpoint, LlmRequest
from deploy.llm.records import Sizing
from deploy.llm.sizing import lora_rank
from deploy.repository.engine_files import ENGINE_FILE, LORA_FILE, LORA_FOLDER, WEIGHTS_FOLDER, write_engine_file
from deploy.repository.protobuf import TRITON_TYPES, format_config, schema
from deploy.spec import Spec, TensorSpec

# vllm_backend/src/model.py, `_auto_complete_inputs_and_outputs`: said in full, as production servers complete nothing.
_INPUTS = (
    ("text_input", "string", (1,), False),
    ("stream", "bool", (1,), True),
    ("sampling_parameters", "string", (1,), True),
    ("exclude_input_in_output", "bool", (1,), True),
    ("return_finish_reason", "bool", (1,), True),
    ("return_cumulative_logprob", "bool", (1,), True),
    ("return_logprobs", "bool", (1,), True),
    ("return_num_input_tokens", "bool", (1,), True),
    ("return_num_output_tokens", "bool", (1,), True),
)
_OUTPUTS = (
    ("text_output", "string", (-1,)),
    ("finish_reason", "string", (-1,)),
    ("cumulative_logprob", "float32", (-1,)),
    ("logprobs", "string", (-1,)),
    ("num_input_tokens", "uint32", (1,)),
    ("num_output_tokens", "uint32", (-1,)),
)
_RESERVE = 1.02


def llm_spec() -> Spec:
    """The contract of every model of the backend; a size that may vary is counted as 1."""
    return Spec(
        inputs=tuple(TensorSpec(name=name, dtype=dtype, shape=shape) for name, dtype, shape, _ in _INPUTS),
        outputs=tuple(
            TensorSpec(name=name, dtype=dtype, shape=tuple(abs(size) for size in shape))
            for name, dtype, shape in _OUTPUTS
        ),
    )


def llm_config(name: str, version: int) -> str:
    """The text of `config.pbtxt`: decoupled, the devices left to vLLM, its metrics beside Triton's."""
    config = schema().ModelConfig()
    config.name, config.backend = name, "vllm"
    config.version_policy.specific.versions.append(version)
    config.model_transaction_policy.decoupled = True
    for tensor, dtype, dims, optional in _INPUTS:
        config.input.add(name=tensor, data_type=_type(dtype), dims=dims, optional=optional)
    for tensor, dtype, dims in _OUTPUTS:
        config.output.add(name=tensor, data_type=_type(dtype), dims=dims)
    # KIND_GPU would pin the model to one GPU and refuses tensor parallelism.
    config.instance_group.add(count=1, kind=schema().ModelInstanceGroup.KIND_MODEL)
    config.parameters["REPORT_CUSTOM_METRICS"].string_value = "true"
    return format_config(config)


def engine_arguments(
    checkpoint: LlmCheckpoint, sizing: Sizing, request: LlmRequest, *, name: str, number: int
) -> dict[str, object]:
    """What `model.json` holds: the arguments of vLLM's AsyncEngineArgs, all that matter said in full."""
    folder = container_folder(request.mounted_at, name, number)
    arguments: dict[str, object] = {
        "model": str(folder / WEIGHTS_FOLDER),
        "dtype": sizing.dtype,
        "max_model_len": sizing.context,
        "max_num_seqs": max(sizing.wanted, min(256, int(sizing.sequences))),
        "tensor_parallel_size": sizing.tensor_parallel,
        "disable_log_stats": False,
        # Sampling is what each request says, and vLLM's own defaults else: not a file's that nobody looks at.
        "generation_config": "vllm",
    }
    if request.target.device == "cuda":
        arguments["gpu_memory_utilization"] = sizing.memory_share
    else:
        wanted = sizing.per_sequence * sizing.wanted
        arguments["kv_cache_memory_bytes"] = int(min(sizing.kv_cache, wanted * _RESERVE + 16 * 1024**2))
    if checkpoint.adapters:
        arguments |= {
            "enable_lora": True,
            "max_loras": len(checkpoint.adapters),
            "max_lora_rank": lora_rank(checkpoint),
        }
    return arguments


def container_folder(mounted_at: str, name: str, number: int) -> PurePosixPath:
    """Where the container sees the version's folder. Raises UsageError if the mount point is no absolute path."""
    root = PurePosixPath(mounted_at)
    if not root.is_absolute() or ".." in root.parts:
        raise UsageError(f"--mounted-at is {mounted_at!r}", expected="an absolute path, such as /models")
    return root / name / str(number)


def fill_folder(folder: Path, checkpoint: LlmCheckpoint, arguments: dict[str, object]) -> None:
    """Copy what serving needs into a version's folder, and write the two JSON files.

    The weights are copied, never linked: whoever goes on training must not change what was proven. Raises
    UnfinishedError if the disk has no room for them.
    """
    total = sum((checkpoint.path / name).stat().st_size for name in checkpoint.files)
    free = shutil.disk_usage(folder).free
    if free < total * _RESERVE:
        raise UnfinishedError(
            f"the weights take {total / 1e9:.1f} GB and the disk has {free / 1e9:.1f} GB free",
            fix="free some space, or choose another --repository",
        )
    with disk_errors_explained("copying the weights"):
        _copy(checkpoint.path, checkpoint.files, folder / WEIGHTS_FOLDER)
        for adapter in checkpoint.adapters:
            _copy(adapter.path, adapter.files, folder / LORA_FOLDER / adapter.name)
        write_engine_file(folder / ENGINE_FILE, arguments)
        if checkpoint.adapters:
            places = _lora_places(PurePosixPath(str(arguments["model"])).parent, checkpoint.adapters)
            write_engine_file(folder / LORA_FILE, places)


def _lora_places(folder: PurePosixPath, adapters: tuple[Adapter, ...]) -> dict[str, object]:
    return {adapter.name: str(folder / LORA_FOLDER / adapter.name) for adapter in adapters}


def _copy(source: Path, names: tuple[str, ...], destination: Path) -> None:
    destination.mkdir(parents=True)
    for name in names:
        shutil.copyfile(source / name, destination / name)


def _type(dtype: str) -> int:
    return int(schema().DataType.Value(TRITON_TYPES[dtype]))
