"""What the vLLM of a Triton release serves: architectures, dtypes and engine arguments.

Owns reading `data/vllm.json`, which `scripts/vllm_releases.py` makes from vLLM's own wheels. Called by `package`.
"""

from difflib import get_close_matches
from functools import cache
from importlib.resources import files

from deploy.errors import UsageError
from deploy.llm.model import LlmCheckpoint
from deploy.records import Record
from deploy.serve.vllm import RELEASE
from deploy.targets import Target, targets_like

# What `make vllm` installs, which serves on this machine's CPU.
LOCAL_VLLM = RELEASE
# vLLM refuses bfloat16 below compute capability 8.0 (vllm/platforms/cuda.py: check_if_supports_dtype).
_FIRST_BFLOAT16_SM = 80
_DTYPES = ("bfloat16", "float16", "float32")


class VllmRelease(Record):
    """What one release of vLLM knows: the architectures it generates text with, and its engine arguments."""

    architectures: frozenset[str]
    arguments: frozenset[str]


class _Table(Record):
    source: str
    releases: dict[str, VllmRelease]


@cache
def vllm_releases() -> dict[str, VllmRelease]:
    """Every release that is known, from the oldest to the newest."""
    return _Table.model_validate_json(files("deploy").joinpath("data/vllm.json").read_text()).releases


def vllm_of(target: Target) -> str:
    """The version of vLLM that a target runs. Raises UsageError if that is not known."""
    version = LOCAL_VLLM if target.triton is None else target.vllm
    if version not in vllm_releases():
        what = f"it has vLLM {version}" if version else "nor is its vLLM"
        raise UsageError(
            f"which models {target.name} serves is not known, {what}",
            expected=f"a target whose vLLM is known: {targets_like(target, _known)}",
            fix="choose one with --target",
        )
    return version


def check_architecture(name: str, target: Target) -> None:
    """Raises UsageError if the target's vLLM generates no text with the architecture, naming targets that do."""
    version = vllm_of(target)
    known = vllm_releases()[version].architectures
    if name in known:
        return
    near = get_close_matches(name, sorted(known), n=3)
    able = targets_like(target, lambda other: _known(other) and name in vllm_releases()[vllm_of(other)].architectures)
    raise UsageError(
        f"vLLM {version} of {target.name} generates no text with the architecture {name}",
        expected=f"an architecture that it serves{', such as ' + ', '.join(near) if near else ''}",
        fix=f"choose a target that serves it: {able}",
    )


def check_support(checkpoint: LlmCheckpoint, target: Target, *, dtype: str) -> None:
    """Raises UsageError if the target's vLLM does not serve the model's architecture, or the dtype on its GPU."""
    check_architecture(checkpoint.architecture, target)
    if dtype not in _DTYPES:
        raise UsageError(
            f"the weights are {dtype}", expected=f"one of {', '.join(_DTYPES)}", fix="choose what to serve with --dtype"
        )
    if dtype == "bfloat16" and target.sm is not None and target.sm < _FIRST_BFLOAT16_SM:
        raise UsageError(
            f"the model would be served in bfloat16, and {target.name} has no bfloat16",
            expected="float16, or a GPU of compute capability 8.0 or higher",
            fix="--dtype float16",
        )


def check_arguments(arguments: dict[str, object], target: Target) -> None:
    """Raises UsageError for an engine argument that the target's vLLM does not take."""
    version = vllm_of(target)
    unknown = sorted(set(arguments) - vllm_releases()[version].arguments)
    if unknown:
        raise UsageError(f"vLLM {version} of {target.name} takes no {', '.join(unknown)}", expected="known arguments")


def _known(target: Target) -> bool:
    return (LOCAL_VLLM if target.triton is None else target.vllm) in vllm_releases()
