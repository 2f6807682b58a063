"""A program becomes an AOTInductor archive, `model.pt2`: machine code for the target's device, the weights beside it.

Owns the compiler's settings and what may lie in the archive. Called by run and `__main__`, in a child process; only
`require_compiler` is for the command's own process.
"""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Collection, Mapping
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from deploy.cache import Store
from deploy.convert.aoti_numbers import compute_exactly
from deploy.convert.aoti_prepack import PACKED, PREPACK, prepack
from deploy.convert.aoti_tiles import sums_at_their_places
from deploy.convert.aoti_weights import put_together, take_apart, weights_file
from deploy.convert.archive import MODEL_NAME, read_metadata
from deploy.convert.compiler import (
    AVX2_MARCH,
    compiler_run,
    compiler_version,
    cpu_flags,
    deep_recursion,
    find_compiler,
    is_avx2,
)
from deploy.convert.cuda import device_details, exact_float32
from deploy.convert.dtype_rules import rules_made_once
from deploy.convert.every_size import sizes_tried
from deploy.convert.export import load_program
from deploy.convert.flex import (
    DECOMPOSED,
    FUSED,
    attends_on_gpu,
    attention_detail,
    count_flex_attention,
    for_a_kernel,
    mended_kernel,
    plain_attention,
)
from deploy.convert.input_order import order_inputs
from deploy.convert.kept_program import weights_without_graph
from deploy.convert.model import ARTIFACT_FILES, Artifact, Device, Program
from deploy.convert.onnx_limits import unusual_dtypes
from deploy.convert.reuse import Weights, weights_of, work_key
from deploy.convert.tactics import Tactic, described
from deploy.convert.threads import DYNAMIC_THREADS, loops_as_large_as_before
from deploy.errors import DeployError, UnfinishedError
from deploy.targets import Target

if TYPE_CHECKING:
    from torch import fx
    from torch.export import ExportedProgram

_COMPILE_COMMENT = "\n// Compile cmd"
_SETTINGS: dict[str, Any] = {
    "aot_inductor.package": True,
    # Names in place of digests of this machine's command lines.
    "aot_inductor.model_name_for_generated_files": MODEL_NAME,
    # One archive uses each precompiled header once, which costs more than parsing the header does.
    "aot_inductor.precompile_headers": False,
    # One uncompressed entry of the archive, which the loader maps; linking weights into the code costs time and memory.
    "aot_inductor.package_constants_in_so": False,
    "aot_inductor.package_constants_on_disk_format": "binary_blob",
    # Else the values of the smallest weights would be in the code, and the code good for one fine-tune only.
    "always_keep_tensor_constants": True,
    # The pool of Python workers compiles GPU kernels only, and each worker imports torch.
    "compile_threads": 1,
}
_GPU_SETTINGS: dict[str, Any] = {
    # Kernels for the GPU that is here: others would want nvcc, and what was not run here is not proven.
    "aot_inductor.emit_multi_arch_kernel": False,
}
_HALVES = frozenset({"float16", "bfloat16"})
_WEIGHTS_BESIDE = ("aot_inductor.package_constants_in_so", "aot_inductor.package_constants_on_disk_format")


def compile_aoti(
    program: Program, *, target: Target, folder: Path, store: Store | None = None, tactic: Tactic | None = None
) -> Artifact:
    """`folder/model.pt2`, compiled for the program's device: the target's CPU instruction set, or the GPU that is here.

    From `store` code is taken that was compiled before for the same graph, and kept there for the next; not with a
    `tactic` that freezes the weights, which are then part of the code. Raises UnfinishedError if it cannot be compiled.
    """
    options = tactic.options if tactic else {}
    store = None if "freezing" in options else store
    exact_float32(program.device)
    compiler = find_compiler()
    march = AVX2_MARCH if is_avx2(target.cpu_isa) else "native"
    build = _Build(program=program, target=target, folder=folder, compiler=compiler, march=march, options=options)
    exported, weights = None, weights_without_graph(program)
    if weights is None:
        exported = load_program(program)
        weights = weights_of(exported)
    key = build.key(weights) if store else ""
    with tempfile.TemporaryDirectory(prefix="inductor-", dir=_without_spaces(folder)) as work:
        entry = Path(work) / "entry"
        reused = store is not None and store.take(key, entry)
        details = {} if reused else build.compile(exported or load_program(program), weights, entry, work=Path(work))
        if entry.is_dir():
            details = put_together(entry, weights, build.path).details
        kept = key if store and not reused and entry.is_dir() else None
        if store and kept:
            store.keep(key, entry, about=f"AOTInductor code of {len(weights.used)} weights for {target.name}")
    return Artifact(
        format="aoti", folder=folder, files=(build.path.name,), seconds=0.0, peak_memory=0,
        details=details | described(tactic), reused=key if reused else None, kept=kept,
    )  # fmt: skip


def _without_spaces(folder: Path) -> Path | None:
    """Where the compiler may work: in the folder, or in the one for temporary files if the path has a space.

    Torch hands its commands to the compiler as one line that is cut at spaces.
    """
    return None if any(character.isspace() for character in str(folder)) else folder


@dataclass(frozen=True, slots=True, kw_only=True)
class _Build:
    """One compilation: of what, for what, with what. `march` is what the compiler is told of the machine.

    `options` are a tactic's.
    """

    program: Program
    target: Target
    folder: Path
    compiler: str
    march: str
    options: Mapping[str, str] = field(default_factory=dict)

    @property
    def path(self) -> Path:
        return self.folder / ARTIFACT_FILES["aoti"]

    @property
    def settings(self) -> dict[str, Any]:
        chosen = {name: value == "1" for name, value in self.options.items()}
        # Frozen weights are packed by the compiler; those of int8 would be packed, and held, as float32.
        packs = self.program.device == "cpu" and self.program.precision != "int8" and "freezing" not in chosen
        settings = compiler_settings(self.program.device) | {PREPACK: packs} | chosen
        if not is_avx2(self.target.cpu_isa):
            return settings
        # cpuid is asked all the same; what is skipped is compiling a test program per instruction set.
        return {**settings, "cpp.simdlen": 256, "cpp.vec_isa_ok": True}

    def key(self, weights: Weights) -> str:
        """The key of the code that this compiles, whatever the values of the weights."""
        told = {name: str(value) for name, value in self.settings.items()}
        told |= {"compiler": compiler_version(self.compiler), "march": self.march}
        if self.march == "native":
            told["cpu"] = cpu_flags()
        told |= device_details(self.program.device)
        return work_key(self.program, weights, format="aoti", settings=told, target=self.target)

    def _casts(self, exported: ExportedProgram) -> dict[str, Any]:
        """The setting by which a cast through half precision in a forward of float32 rounds, as it does in eager.

        The compiler leaves it out by default, and what float16 cannot hold stays. For `--precision` that is as well.
        """
        casts = self.program.precision == "fp32" and not _HALVES.isdisjoint(unusual_dtypes(exported))
        return {"emulate_precision_casts": True} if casts else {}

    def compile(self, exported: ExportedProgram, weights: Weights, entry: Path, *, work: Path) -> dict[str, str]:
        """The archive's details, and the archive at `path`: in parts in `entry` where it can be taken apart."""
        import torch

        settings = self.settings | self._casts(exported)
        if not weights.used:  # a file of nothing cannot be mapped when the archive is loaded
            settings = {name: value for name, value in settings.items() if name not in _WEIGHTS_BESIDE}
        with compiler_run(self.compiler, work, march=self.march, device=self.program.device) as runs_it:
            compiled, attention = _compile(exported, {**settings, **runs_it})
        files = compiled.files
        # Put in by `put_together`: packed here, the weights would lie on disk twice, and whole in memory.
        blob = weights_file(files)
        _package([one for one in files if str(one) != str(blob)], self.path)
        made = {"torch": torch.__version__, "compiler": compiler_version(self.compiler), "march": self.march}
        details = {**made, **_facts(self.path), **attention_detail(self.program, attention)}
        details |= device_details(self.program.device) | (PACKED if compiled.packed else {})
        if take_apart(self.path, weights, details, into=entry, blob=blob) is None and blob:
            _package(files, self.path)
        elif blob:
            blob.unlink()
        return details


def compiler_settings(device: Device) -> dict[str, Any]:
    """AOTInductor's settings for a device."""
    if device == "cpu":
        return {**_SETTINGS, **DYNAMIC_THREADS}
    # Many kernels, each compiled by itself: there the pool is worth its start.
    return {**{name: value for name, value in _SETTINGS.items() if name != "compile_threads"}, **_GPU_SETTINGS}


def known_settings(settings: Mapping[str, Any], known: Collection[str]) -> dict[str, Any]:
    """The settings without those that this release of torch does not know, whose `known` names are given.

    Without a place for the weights beside the code they stay in it, and the code is good for these weights only.
    """
    left_out = {name for name in settings if name not in known}
    if left_out.intersection(_WEIGHTS_BESIDE):
        left_out.update(_WEIGHTS_BESIDE)
    return {name: value for name, value in settings.items() if name not in left_out}


@dataclass(frozen=True, slots=True)
class _Compiled:
    """The compiled files, and whether they pack weights."""

    files: list[Any]
    packed: bool


def _compile(exported: ExportedProgram, settings: dict[str, Any]) -> tuple[_Compiled, str]:
    """The compiled files, and which way FlexAttention went: its own kernel where AOTInductor has one for this use."""
    why = ""
    if count_flex_attention(exported):
        try:
            with nullcontext() if attends_on_gpu(exported) else mended_kernel():
                return _compile_exported(for_a_kernel(exported), settings), FUSED
        except UnfinishedError as error:
            why = f" ({error.found})"
            print(f"FlexAttention's own kernel is not used: {error.found}", file=sys.stderr)
    return _compile_exported(plain_attention(exported), settings), f"{DECOMPOSED}{why}"


def _compile_exported(exported: ExportedProgram, settings: dict[str, Any]) -> _Compiled:
    from torch._inductor import config

    module, settings = exported.module(check_guards=False), dict(settings)
    packing = prepack(module, known=config.get_config_copy()) if settings.pop(PREPACK, False) else {}
    if packing:
        try:
            # Weights that could get a gradient cannot be packed, and frozen ones are silently left as they are.
            return _Compiled(_run_compiler(module, exported, settings | packing, gradients=False), packed=True)
        except UnfinishedError as error:
            print(f"the weights are not packed: {error.found}", file=sys.stderr)
            module = exported.module(check_guards=False)
    gradients = not settings.get("freezing", False)
    return _Compiled(_run_compiler(module, exported, settings, gradients=gradients), packed=False)


def _run_compiler(
    module: fx.GraphModule, exported: ExportedProgram, settings: dict[str, Any], *, gradients: bool
) -> list[Any]:
    import torch
    from torch._inductor import aot_compile, config
    from torch._inductor.exc import InductorError

    order_inputs(module)
    compute_exactly(module)
    options = known_settings(settings, config.get_config_copy())
    arguments, keywords = exported.example_inputs
    try:
        with (
            torch.set_grad_enabled(gradients), deep_recursion(module.graph), loops_as_large_as_before(),
            sizes_tried(general=True), sums_at_their_places(), rules_made_once(),
        ):  # fmt: skip
            files = aot_compile(module, arguments, keywords, options=options)
    except InductorError as error:
        raise UnfinishedError(
            f"AOTInductor cannot compile the program: {str(error).strip().splitlines()[0]}",
            fix="use --formats onnx, or change the operation it names",
        ) from error
    assert isinstance(files, list)
    return files


def _package(files: list[Any], path: Path) -> None:
    from torch._inductor.package import package_aoti  # type: ignore[attr-defined]

    for name in files:
        if name.endswith(".cpp"):
            _remove_local_paths(Path(name))
    package_aoti(str(path), {MODEL_NAME: files})


def _remove_local_paths(source: Path) -> None:
    """Take the compiler's command lines, and the folder of the work, out of a source that goes into the archive."""
    text = source.read_text().split(_COMPILE_COMMENT)[0]
    source.write_text(text.replace(f"{source.parent}{os.sep}", "") + "\n")


def _facts(path: Path) -> dict[str, str]:
    """What the archive says of itself, read without running any of it."""
    found = read_metadata(path)
    if not found:
        raise DeployError(f"{path} holds no metadata", expected="an archive that AOTInductor wrote")
    return {key.removeprefix("AOTI_").lower(): value for key, value in sorted(found.items()) if value}
