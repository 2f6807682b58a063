"""Where a version will run: the Triton release, its runtimes and their ceilings, the device and CPU ISA.

Owns the table in `data/targets.json` and the words of a target's name. Called by convert, repository and serve.
"""

import json
from functools import cache
from importlib.resources import files
from typing import Literal

from deploy.errors import UsageError
from deploy.records import Record

LOCAL_CPU = "local-cpu"

CpuIsa = Literal["avx2", "native"]


class AotiSupport(Record):
    """What a release's PyTorch backend does with an AOTInductor archive (`platform: "torch_aoti"`)."""

    loads: bool
    batches: bool


class Target(Record):
    """One place to run. `opset` and `ir_version` are the highest its ONNX Runtime loads; None means unknown."""

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

    def with_isa(self, isa: CpuIsa) -> "Target":
        """The same target compiled for another CPU instruction set."""
        return self.model_copy(update={"cpu_isa": isa})


@cache
def all_targets() -> dict[str, Target]:
    """Every known target by name, in the order of the data file."""
    rows = json.loads(files("deploy").joinpath("data/targets.json").read_text())
    return {row["name"]: Target.model_validate(row) for row in rows}


def find_target(name: str) -> Target:
    """The target called `name`. Raises UsageError if there is none, naming those there are."""
    targets = all_targets()
    if name not in targets:
        raise UsageError(f"there is no target {name!r}", expected=f"one of {', '.join(targets)}")
    return targets[name]
