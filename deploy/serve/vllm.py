"""The real vLLM on this machine's CPU: where its environment lies, and what the local engine tells it.

Owns what differs from the published `model.json`, and asking vLLM itself about arguments. vLLM lives in an environment
of its own, which `make vllm` makes in the user's cache. Called by `local` and by packaging a language model.
"""

import json
import os
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from deploy.cache import cache_folder
from deploy.errors import MissingError, UnfinishedError, UsageError
from deploy.records import read_object
from deploy.repository.engine_files import ENGINE_FILE, LORA_FILE, WEIGHTS_FOLDER, inside_version
from deploy.repository.layout import Version
from deploy.serve.backends.vllm import asking
from deploy.serve.parameters import ENGINE_PARAMETER

BACKEND = "vllm"
RELEASE = "0.32.0"
# Where nothing but an answer is wanted: no path to a network, no reports, no thread bound to a core that others use.
VARIABLES = {
    "HF_HUB_OFFLINE": "1",
    "TRANSFORMERS_OFFLINE": "1",
    "VLLM_NO_USAGE_STATS": "1",
    "DO_NOT_TRACK": "1",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
}
# What is proven here are tokens, not capacity: short contexts, and a cache that any machine has.
_CONTEXT = 2048
_CACHE_BYTES = 1024**3
_SEQUENCES = 8
_CHECK_SECONDS = 300.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Vllm:
    """An installed vLLM: its version, its Python, and the environment of the server's stub."""

    version: str
    python: Path
    stub: Path


def vllm_folder() -> Path:
    """Where `make vllm` puts the environment."""
    return cache_folder("vllm", f"vllm-cpu-{RELEASE}")


def installed_vllm() -> Vllm | None:
    """The vLLM of this machine, None without one."""
    folder = vllm_folder()
    if not (folder / "complete").is_file():
        return None
    return Vllm(version=RELEASE, python=folder / "bin" / "python", stub=folder / "stub")


def find_vllm() -> Vllm:
    """The vLLM of this machine. Raises MissingError if there is none."""
    found = installed_vllm()
    if found is None:
        raise MissingError(
            f"there is no vLLM in {vllm_folder()}",
            expected=f"vLLM {RELEASE} for CPU, in an environment of its own",
            fix="run `make vllm` once (3.5 GB), or go without that proof: `deployctl package --no-serve-check`",
        )
    return found


def parameters(version: Version, digests: dict[str, str]) -> dict[str, str]:
    """What the local engine's config says beside the published one: the engine, and the digests of its files.

    Raises MissingError without vLLM.
    """
    found = find_vllm()
    engine = {
        "command": [str(found.python), "-I"],
        "variables": VARIABLES | {"PATH": _path(found)},
        "arguments": local_arguments(version),
        "adapters": local_adapters(version),
        "digests": {str(version.folder.resolve() / name): digest for name, digest in digests.items()},
    }
    # Text passes through the stub with numpy 1 only, so it has an environment of its own.
    return {ENGINE_PARAMETER: json.dumps(engine), "EXECUTION_ENV_PATH": str(found.stub)}


def local_arguments(version: Version) -> dict[str, Any]:
    """The engine arguments for this machine's CPU: the published ones, but for what a GPU or its memory is for."""
    published = read_object(version.folder / ENGINE_FILE)
    context = _local_context(version, int(published["max_model_len"]))
    changed = published | {
        "model": str(_local_path(version, str(published["model"]))),
        "tensor_parallel_size": 1,
        "enforce_eager": True,
        "max_model_len": context,
        "max_num_seqs": min(int(published["max_num_seqs"]), _SEQUENCES),
        "kv_cache_memory_bytes": _CACHE_BYTES * -(-context // _CONTEXT),
    }
    changed.pop("gpu_memory_utilization", None)
    if published.get("enable_lora"):
        # On CPU a prompt of the base model that is batched with an adapter's gets whatever lies in the last slot
        # (vllm/lora/ops/torch_ops/lora_ops.py: index -1), so one slot more is kept, which stays empty.
        changed["max_loras"] = int(published["max_loras"]) + 1
    return changed


def local_adapters(version: Version) -> dict[str, str]:
    """The folders of the adapters by name."""
    path = version.folder / LORA_FILE
    found = read_object(path) if path.is_file() else {}
    return {name: str(_local_path(version, str(place))) for name, place in found.items()}


def ask_vllm(found: Vllm, arguments: dict[str, Any]) -> dict[str, Any]:
    """What vLLM's own AsyncEngineArgs makes of the arguments: architecture, dtype, context.

    Raises UsageError with vLLM's own words if it refuses them, UnfinishedError if it gives no answer.
    """
    command = [str(found.python), "-I", asking.__file__]
    try:
        ended = subprocess.run(
            command,
            input=json.dumps(arguments),
            env=surroundings(found),
            capture_output=True,
            text=True,
            check=False,
            timeout=_CHECK_SECONDS,
        )
        answer: dict[str, Any] = json.loads(ended.stdout.splitlines()[-1])
    except (subprocess.TimeoutExpired, IndexError, ValueError) as error:
        raise UnfinishedError(
            f"vLLM {found.version} gave no answer about the engine arguments: {error}",
            fix="try it again; `make vllm` makes its environment anew",
        ) from error
    if "refused" in answer:
        raise UsageError(
            f"vLLM {found.version} refuses the engine arguments: {answer['refused']}",
            expected="arguments that its AsyncEngineArgs takes for this model",
            fix="correct the checkpoint's config.json, or choose --context and --dtype that fit",
        )
    return answer


def surroundings(found: Vllm) -> dict[str, str]:
    """The environment variables for a process of vLLM's."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    return {**kept, **VARIABLES, "PATH": _path(found)}


def short_positions(config: Mapping[str, Any]) -> int:
    """Up to how many tokens of context vLLM takes LongRoPE's short factors; 0 for a model without them.

    Beyond, it takes the long factors for every prompt, the short ones too, where transformers chooses by the prompt's
    length (`Phi3LongRoPEScaledRotaryEmbedding` of vLLM 0.32).
    """
    rope = config.get("rope_parameters") or config.get("rope_scaling")
    if not isinstance(rope, Mapping) or (rope.get("rope_type") or rope.get("type")) not in ("longrope", "su"):
        return 0
    original = rope.get("original_max_position_embeddings") or config.get("original_max_position_embeddings")
    return original if isinstance(original, int) else 0


def _local_context(version: Version, published: int) -> int:
    """As many tokens as an answer needs; more where the published context makes vLLM compute otherwise."""
    config = version.folder / WEIGHTS_FOLDER / "config.json"
    short = short_positions(read_object(config)) if config.is_file() else 0
    enough = short + 1 if short and published > short else 0
    return min(published, max(_CONTEXT, enough))


def _path(found: Vllm) -> str:
    return os.pathsep.join((str(found.python.parent), os.environ.get("PATH", "")))


def _local_path(version: Version, place: str) -> Path:
    inside = inside_version(place, version.name, version.number)
    if inside is None:
        raise UsageError(
            f"{place} does not lead into {version}",
            expected="a path that deployctl wrote",
            fix="restore the version from where it was published",
        )
    return version.folder.resolve() / inside
