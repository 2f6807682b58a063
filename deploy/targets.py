"""Where a version will run: the Triton release, its runtimes and their ceilings, the device and CPU ISA.

Owns the words of a target's name: `local-cpu`, `local-cuda`, `<release>-cpu`, `<release>-cuda-sm<NN>`. What is known of
a release is in `releases`. Called by convert, repository and serve.
"""

import re
from collections.abc import Callable, Iterator, Sequence
from difflib import get_close_matches
from functools import cache
from typing import Literal

from deploy.errors import UsageError
from deploy.records import Record
from deploy.releases import Gpu, Release, read_releases

LOCAL_CPU = "local-cpu"
LOCAL_CUDA = "local-cuda"

CpuIsa = Literal["avx2", "native"]
_NVIDIA_BUILD = re.compile(r"([^+]+)\+([0-9a-f]+)\.nv(\d+)\.0*(\d+)")
_SHOWN = 8  # names in one message
_NEAREST = 3


class AotiSupport(Record):
    """What a release's PyTorch backend does with an AOTInductor archive (`platform: "torch_aoti"`).

    `parameters`: it heeds the config's parameters, None where that is not known; `bfloat16`: it exchanges such tensors;
    `call_names`: tensors may go by their place in the call (`ARGS[0]`, `RESULT`) and not by ordinal only.
    """

    loads: bool
    batches: bool
    parameters: bool | None = None
    bfloat16: bool = False
    call_names: bool = True


class Target(Record):
    """One place to run. `opset` and `ir_version` are the highest its ONNX Runtime loads. None means unknown.

    `torch` is the version in `pytorch_container`, the image to compile AOTInductor archives in; `sm` the compute
    capability of the GPU as digits (90 for 9.0), None on CPU, and of the local GPU until it was looked at; `known_bugs`
    are ids of the release table. A manifest holds a target, so a field added here needs a default: older manifests must
    stay readable.
    """

    name: str
    description: str
    triton: str | None
    server_version: str | None
    container: str | None
    onnxruntime: str | None
    opset: int
    ir_version: int
    aoti: AotiSupport
    device: Literal["cpu", "cuda"]
    source: str
    cpu_isa: CpuIsa = "avx2"
    pytorch_container: str | None = None
    torch: str | None = None
    vllm_container: str | None = None
    vllm: str | None = None
    sm: int | None = None
    cuda: str | None = None
    python: str | None = None
    min_compute_capability: str | None = None
    latency_histograms: bool | None = None
    onnx_bfloat16: bool | None = None
    known_bugs: tuple[str, ...] = ()

    def with_isa(self, isa: CpuIsa) -> "Target":
        """The same target compiled for another CPU instruction set."""
        return self.model_copy(update={"cpu_isa": isa})


@cache
def all_targets() -> dict[str, Target]:
    """Every known target by name: this machine's own two, then each release on CPU and on each GPU that it runs on."""
    return {target.name: target for target in _make_all()}


def find_target(name: str) -> Target:
    """The target called `name`. Raises UsageError if there is none, naming those that come nearest."""
    targets = all_targets()
    if name not in targets:
        forms = f"{LOCAL_CPU}, {LOCAL_CUDA}, <release>-cpu or <release>-cuda-sm<NN>"
        raise UsageError(
            f"there is no target {name!r}{_why(name)}", expected=f"{forms}, such as {', '.join(_nearest(name))}"
        )
    return targets[name]


def same_torch(one: str, other: str) -> bool:
    """Whether two version strings name the same build of torch.

    Of NVIDIA's builds the release, the commit and the month are compared, since the package says `.nv26.8.63802676`
    where the module says `.nv26.08`; all others must be equal to the letter.
    """
    first, second = _NVIDIA_BUILD.match(one), _NVIDIA_BUILD.match(other)
    return first.groups() == second.groups() if first and second else one == other


def targets_like(target: Target, fits: Callable[[Target], bool]) -> str:
    """The targets on the same device for which `fits` holds, as words for a message."""
    names = [name for name, other in all_targets().items() if other.device == target.device and fits(other)]
    return shortened(names) or "none that is known"


def shortened(names: Sequence[str], *, most: int = _SHOWN) -> str:
    """The names separated by commas, those beyond `most` counted only."""
    rest = len(names) - most
    return ", ".join(names[:most]) + (f" and {rest} more" if rest > 0 else "")


def _make_all() -> Iterator[Target]:
    table = read_releases()
    local = Target.model_validate(table.local)
    yield local
    on_gpu = {"name": LOCAL_CUDA, "description": f"{local.description}, on its GPU", "device": "cuda"}
    yield local.model_copy(update=on_gpu)
    for release in table.releases:
        yield _make(release, None)
        for gpu in table.gpus:
            if release.admits(gpu):
                yield _make(release, gpu)


def _make(release: Release, gpu: Gpu | None) -> Target:
    """A release on CPU, or on one kind of GPU."""
    where = f"{gpu.architecture} GPUs of compute capability {gpu.sm / 10:.1f} ({gpu.parts})" if gpu else "CPU"
    same = {name: release.value(name) for name in _SAME}
    return Target(
        name=f"{release.triton}-cuda-sm{gpu.sm}" if gpu else f"{release.triton}-cpu",
        description=f"Triton {release.triton} on {where}",
        triton=release.triton,
        device="cuda" if gpu else "cpu",
        sm=gpu.sm if gpu else None,
        aoti=AotiSupport(**{name: release.value(f"aoti_{name}") for name in AotiSupport.model_fields}),
        source=release.summary(),
        known_bugs=release.bugs,
        **same,
    )


_SAME = (
    "server_version", "container", "pytorch_container", "torch", "vllm_container", "vllm", "onnxruntime", "opset",
    "ir_version", "cuda", "python", "min_compute_capability", "latency_histograms", "onnx_bfloat16",
)  # fmt: skip


def _why(name: str) -> str:
    """What is wrong with a name that has the right form, as words that follow it; empty where the form is wrong too."""
    table = read_releases()
    number, _, device = name.partition("-")
    release = next((known for known in table.releases if known.triton == number), None)
    if release is None:
        oldest, newest = table.releases[0].triton, table.releases[-1].triton
        looks_right = len(number) == len(newest) and number.replace(".", "").isdigit()
        return f": release {number} is not in the table, which goes from {oldest} to {newest}" if looks_right else ""
    if device.startswith("cuda-sm"):
        admitted = [str(gpu.sm) for gpu in table.gpus if release.admits(gpu)]
        return f": the sm values of {number} are {', '.join(admitted)}"
    return f": on a GPU the name needs its compute capability, as in {number}-cuda-sm90" if device == "cuda" else ""


def _nearest(name: str) -> list[str]:
    """The names nearest to a wrong one: the same release's closest GPUs, else those that look most like it."""
    number, _, device = name.partition("-cuda-sm")
    same = [target for target in all_targets().values() if target.triton == number and target.sm is not None]
    if same and device.isdigit():
        by_distance = sorted(same, key=lambda target: abs((target.sm or 0) - int(device)))
        return [target.name for target in by_distance[:_NEAREST]]
    names = list(all_targets())
    return get_close_matches(name, names, n=_NEAREST) or [LOCAL_CPU, *names[-_NEAREST:]]
