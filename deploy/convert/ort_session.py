"""The options of an ONNX Runtime session that Triton's config can say, by their names there.

Owns those names and what they mean; needs nothing but ONNX Runtime, since a server's stub imports it. What an execution
provider is told is in `providers`. Called by validate, by the served backend and by whoever writes a config.
"""

from collections.abc import Mapping
from typing import Any

LEVEL = "optimization.graph.level"
# What Triton's backend reads in a config: the level of the graph's optimisation, and these parameters.
SESSION_OPTIONS = (LEVEL, "intra_op_thread_count", "execution_mode", "enable_mem_arena", "enable_mem_pattern")
# And what its execution accelerators take, each name with the accelerator's before it.
CUDA, TENSORRT = "cuda.", "tensorrt."
# That backend's own reading of the level: what is no level of these is the highest.
_LEVELS = {-1: "ORT_ENABLE_BASIC", 0: "ORT_ENABLE_ALL", 1: "ORT_ENABLE_EXTENDED", 2: "ORT_DISABLE_ALL"}


def options_in(details: Mapping[str, str]) -> dict[str, str]:
    """Of an artifact's details, those that its session is opened with."""
    return {name: value for name, value in details.items() if is_session_option(name)}


def is_session_option(name: str) -> bool:
    """Whether a session is opened with it; other options of an artifact say how its file was made."""
    return name in SESSION_OPTIONS or is_for_accelerator(name)


def is_for_accelerator(name: str) -> bool:
    """Whether a session's option is one that an execution accelerator is told, and no parameter of the model."""
    return name.startswith((CUDA, TENSORRT))


def told(options: Mapping[str, str], accelerator: str) -> dict[str, str]:
    """What one accelerator, CUDA or TENSORRT, is told by these options, by its own names."""
    return {
        name.removeprefix(accelerator): value for name, value in sorted(options.items()) if name.startswith(accelerator)
    }


def session_options(options: Mapping[str, str], *, threads: int | None) -> Any:
    """ONNX Runtime's `SessionOptions` for these entries of a config, as Triton's backend sets them; others are left.

    `threads` is for one operator; without it ONNX Runtime chooses.
    """
    import onnxruntime

    session = onnxruntime.SessionOptions()
    if threads is not None:
        session.intra_op_num_threads = threads
    session.inter_op_num_threads = 1
    session.log_severity_level = 3
    if LEVEL in options:
        level = _LEVELS.get(int(options[LEVEL]), _LEVELS[0])
        session.graph_optimization_level = getattr(onnxruntime.GraphOptimizationLevel, level)
    if "intra_op_thread_count" in options:
        session.intra_op_num_threads = int(options["intra_op_thread_count"])
    if options.get("execution_mode") == "1":
        session.execution_mode = onnxruntime.ExecutionMode.ORT_PARALLEL
    if "enable_mem_arena" in options:
        session.enable_cpu_mem_arena = options["enable_mem_arena"] == "1"
    if "enable_mem_pattern" in options:
        session.enable_mem_pattern = options["enable_mem_pattern"] == "1"
    return session
