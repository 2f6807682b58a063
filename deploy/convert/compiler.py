"""The C++ compiler that AOTInductor runs: found, tried, and run with the options that an archive of ours needs.

Owns what the compiler is told and where torch finds its tools. Called by aoti, in a child process; only
`require_compiler` is for the command's own process.
"""

from __future__ import annotations

import os
import platform
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

from deploy.convert.cuda import local_toolkit
from deploy.convert.model import Device
from deploy.errors import MissingError
from deploy.targets import CpuIsa

if TYPE_CHECKING:
    from torch.fx import Graph

AVX2_MARCH = "x86-64-v3"  # the psABI's level that has AVX2, FMA and BMI2 and nothing beyond
_PROBE = "#include <cstddef>\n#include <omp.h>\n"
_COMPILER_ADVICE = {
    "expected": "g++ 11 or newer with OpenMP, or the compiler that CXX names",
    "fix": "install g++ (Debian: apt-get install g++), or use --formats onnx",
}
_CALLS_PER_NODE = 4
_SHARED_CPP_LIBRARY = "-l:libstdc++.so.6"


def require_compiler() -> str:
    """The path of the C++ compiler that AOTInductor will run. Raises MissingError if it is absent or unfit."""
    compiler = find_compiler()
    flags = ["-std=c++20", "-fopenmp", "-fsyntax-only", "-x", "c++", "-"]
    if _is_x86():
        flags.insert(0, f"-march={AVX2_MARCH}")
    done = subprocess.run([compiler, *flags], input=_PROBE, capture_output=True, text=True, check=False)
    if done.returncode:
        reason = next((line for line in done.stderr.splitlines() if "error" in line), "it says nothing")
        raise MissingError(f"{compiler} cannot compile what AOTInductor writes: {reason}", **_COMPILER_ADVICE)
    return compiler


def find_compiler() -> str:
    """The compiler's path, untried: that of CXX, else g++. Raises MissingError if it is absent."""
    command = os.environ.get("CXX", "g++")
    found = shutil.which(command)
    if found is None:
        raise MissingError(f"the C++ compiler {command!r} is not on PATH", **_COMPILER_ADVICE)
    return found


def is_avx2(isa: CpuIsa) -> bool:
    """Whether code for this instruction set is kept to AVX2: a machine of another family than x86 has none."""
    return isa == "avx2" and _is_x86()


def _is_x86() -> bool:
    return platform.machine() in ("x86_64", "AMD64")


def _write_compiler(compiler: str, work: Path, *, march: str) -> Path:
    """A program of the compiler's own name that runs it with more options; of each pair the last one counts.

    Not every torch release has settings for these. Without debug information and with the prefix maps, no folder of
    this machine is in the machine code, and two compilations of one program are equal.
    """
    import torch

    maps = {Path(torch.__file__).parent: "torch", work: "."}
    prefixes = [f"-ffile-prefix-map={path}={name}" for path, name in maps.items()]
    # Torch's own C++ library, whatever the compiler does by itself: one linked in beside it is not the one whose locale
    # this process has, and the archive crashes as it is loaded. It comes first, so the other is asked for nothing.
    options = [f"-march={march}", "-g0", *prefixes, _SHARED_CPP_LIBRARY]
    script = work / "bin" / Path(compiler).name
    script.parent.mkdir()
    script.write_text(f'#!/bin/sh\nexec {shlex.quote(compiler)} "$@" {shlex.join(options)}\n')
    script.chmod(0o755)
    return script


@contextmanager
def compiler_run(compiler: str, work: Path, *, march: str, device: Device) -> Iterator[dict[str, Any]]:
    """While this lasts, AOTInductor works in `work` and finds its tools; gives the settings that run the compiler.

    `compiler` is its command, `march` what it is told of the processor.
    """
    script = _write_compiler(compiler, work, march=march)
    search = f"{script.parent}{os.pathsep}{os.environ['PATH']}"
    toolkit = local_toolkit() if device == "cuda" else {}
    known = only_avx2() if march == AVX2_MARCH else nullcontext()
    with _environment(TORCHINDUCTOR_CACHE_DIR=str(work), PATH=search, **toolkit), known:
        yield {"cpp.cxx": (None, script.name)}


@contextmanager
def deep_recursion(graph: Graph) -> Iterator[None]:
    """While this lasts, Python's functions may call themselves as often as the graph is deep.

    `torch._inductor.memory` goes from each node to those before it, a call for each: some thousand layers, one after
    the other, pass Python's own limit.
    """
    before = sys.getrecursionlimit()
    sys.setrecursionlimit(before + _CALLS_PER_NODE * len(graph.nodes))
    try:
        yield
    finally:
        sys.setrecursionlimit(before)


@contextmanager
def only_avx2() -> Iterator[None]:
    """While this lasts, torch knows of AVX2 alone among the processor's vector instructions.

    `torch._inductor.cpu_vec_isa` asks each set that it knows before it takes the one that is wanted; the newer ones
    (VNNI, AMX) answer by compiling a program and starting it, whatever the settings say: about 50 of the 68 seconds
    that a small archive took on a processor with all of them.
    """
    from torch._inductor import cpu_vec_isa

    listed = getattr(cpu_vec_isa, "supported_vec_isa_list", [])
    before = list(listed)
    wanted = [isa for isa in before if type(isa).__name__ == "VecAVX2"]
    if not wanted:
        yield
        return
    listed[:] = wanted
    cpu_vec_isa.valid_vec_isa_list.cache_clear()
    try:
        yield
    finally:
        listed[:] = before
        cpu_vec_isa.valid_vec_isa_list.cache_clear()


@contextmanager
def _environment(**values: str) -> Iterator[None]:
    before = dict(os.environ)
    os.environ.update(values)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


def compiler_version(compiler: str) -> str:
    """The first line of what it says of itself; empty where it says nothing."""
    done = subprocess.run([compiler, "--version"], capture_output=True, text=True, check=False)
    return next(iter(done.stdout.splitlines()), "")


def cpu_flags() -> str:
    """What this machine's processor can do, as the kernel lists it."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    return next((line for line in lines if line.startswith(("flags", "Features"))), platform.processor())
