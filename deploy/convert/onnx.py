"""A program becomes an ONNX graph, `model.onnx`, within the opset and IR version that the target loads.

Owns names, ceilings and what may lie in the graph; onnx_file writes it. Called by run and `__main__`, in a child.
"""

from __future__ import annotations

import re
import tempfile
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from deploy.cache import Store
from deploy.convert.cuda import device_details
from deploy.convert.explain import traced_line
from deploy.convert.export import load_program
from deploy.convert.flex import DECOMPOSED, attention_detail, plain_attention
from deploy.convert.kept_program import weights_without_graph
from deploy.convert.model import ARTIFACT_FILES, Artifact, Program
from deploy.convert.onnx_attention import rewrite_with_attention
from deploy.convert.onnx_file import write_model
from deploy.convert.onnx_limits import require_kernels, require_writable, unusual_dtypes
from deploy.convert.onnx_matching import first_node_first
from deploy.convert.onnx_numbers import numbers_as_tensors
from deploy.convert.onnx_rewrites import make_columns, rewrite, translations
from deploy.convert.onnx_weights import put_together, take_apart, weights_as_inputs
from deploy.convert.reuse import weights_of, work_key
from deploy.convert.tactics import Tactic, described
from deploy.errors import UnfinishedError
from deploy.spec import Spec, wire_input, wire_output
from deploy.targets import Target, targets_like

if TYPE_CHECKING:
    import onnx_ir as ir
    from torch.export import ExportedProgram

# The ceilings of newer targets are limits and no aims: the exporter writes 18, converts to 20 by rules of its own, and
# above 25 leaves the graph as it is.
_BEST_TESTED_OPSET = 20
_INLINE_LIMIT = 1_900_000_000  # bytes of weights; a protobuf message ends at 2 GiB
_OPERATOR = re.compile(r"(?:aten|prims)\.(\w+)")
_TRANSLATED = re.compile(r"translating node .*?target=torch\.ops\.(aten\.\w+)")
_LACKING = re.compile(r"No ONNX function found for <OpOverload\(op='([\w.]+)'.*?(complex)?-valued input")
_TELLING = 6  # letters of a name that stands at the end of another
_REWRITES: dict[str, Callable[[ir.Model], int]] = {"rewritten": rewrite, "attention": rewrite_with_attention}


def export_onnx(
    program: Program, *, target: Target, folder: Path, inline_limit: int = _INLINE_LIMIT, store: Store | None = None,
    tactic: Tactic | None = None,
) -> Artifact:  # fmt: skip
    """`folder/model.onnx`, or `folder/model.onnx/` with the weights in a file of their own above `inline_limit` bytes.

    From `store` a graph is taken that was made before for the same program, and kept there for the next. Raises
    UnfinishedError if the program has an operation that ONNX lacks, or needs a higher opset than the target's.
    """
    exported, weights = None, weights_without_graph(program)
    if weights is None:
        exported = plain_attention(load_program(program))
        weights = weights_of(exported)
    graph = tactic.options.get("graph", "") if tactic else ""
    settings = _versions() | ({"graph": graph} if graph else {})
    key = work_key(program, weights, format="onnx", settings=settings, target=target) if store else ""
    path = folder / ARTIFACT_FILES["onnx"]
    with tempfile.TemporaryDirectory(prefix="graph-", dir=folder) as work:
        entry = Path(work) / "entry"
        reused = store is not None and store.take(key, entry)
        if not reused:
            exported = exported or load_program(program)
        model = _make(exported, program.spec, target, graph=graph) if exported and not reused else None
        apart = model is None or take_apart(model, weights, _details(model), into=entry)
        if model is not None and not apart:
            files, details = write_model(model, path, inline_limit=inline_limit), _details(model)
        else:
            files, details = put_together(entry, weights, path, inline_limit=inline_limit)
        needed: dict[str, str] = {}
        if exported and not reused and (program.device, program.precision) == ("cpu", "fp32"):
            needed = _require_kernels(exported, folder / files[0])
        # What the session needs is not in an entry: such a graph is made anew each time.
        kept = key if store and apart and not reused and not needed else None
        if store and kept:
            store.keep(key, entry, about=f"ONNX graph of {len(weights.used)} weights for {target.name}")
    details = details | attention_detail(program, DECOMPOSED) | device_details(program.device)
    details |= needed | described(tactic)
    return Artifact(
        format="onnx", folder=folder, files=files, seconds=0.0, peak_memory=0, details=details,
        reused=key if reused else None, kept=kept,
    )  # fmt: skip


def _require_kernels(exported: ExportedProgram, path: Path) -> dict[str, str]:
    """The session's options that it needs. Raises UnfinishedError where a dtype beyond the usual has no kernel."""
    if dtypes := unusual_dtypes(exported):
        return require_kernels(
            path, "or ".join(f"{dtype} " for dtype in sorted(dtypes)).strip(),
            fix="use --formats aoti, or compute in float32: save model.float()'s weights, or export it (.pt2); "
            "leave autocast and casts out of the forward",
        )  # fmt: skip
    return {}


def _make(exported: ExportedProgram, spec: Spec, target: Target, *, graph: str) -> ir.Model:
    """The whole model, with its weights. Raises UnfinishedError if `graph` names rewrites, and none of them applies."""
    require_writable(exported)
    model = _translate(exported, opset=min(target.opset, _BEST_TESTED_OPSET), graph=graph)
    model.ir_version = min(model.ir_version, target.ir_version)
    _rename(model, spec)
    _strip(model)
    _check_ceilings(model, target)
    return model


def _translate(exported: ExportedProgram, *, opset: int, graph: str = "") -> ir.Model:
    import torch
    from onnxscript.optimizer import optimize
    from torch.onnx.errors import OnnxExporterError

    numbers_as_tensors(exported)
    try:
        made = torch.onnx.export(
            exported, dynamo=True, opset_version=opset, optimize=False, verbose=False,
            custom_translation_table=translations(),
        )  # fmt: skip
    except OnnxExporterError as error:
        reason = _reason(error)
        raise UnfinishedError(
            f"the program cannot be written as ONNX: {reason}{_line_of(reason, exported)}",
            fix="use --formats aoti, or change the operation it names",
        ) from error
    assert made is not None
    model: ir.Model = made.model
    with weights_as_inputs(model, exported.state_dict):
        with first_node_first():
            optimize(model)
        make_columns(model)
        if graph and not _REWRITES[graph](model):
            raise UnfinishedError("no rewrite applies to the graph")
    return model


def _reason(error: BaseException) -> str:
    """What the exporter failed on, with the operator it was at where that is not said."""
    root, text = error, str(error)
    while root.__cause__ is not None:
        root = root.__cause__
        text += f"\n{root}"
    lines = [line.strip() for line in str(root).splitlines() if line.strip()]
    reason = f"{type(root).__name__}: {lines[0] if lines else ''}"
    if lacking := _LACKING.search(reason):
        return f"it has no {lacking[1]}{' of complex numbers' if lacking[2] else ''}"
    at = None if _OPERATOR.search(reason) else _TRANSLATED.search(text)
    return f"{reason}, in {at[1]}" if at else reason


def _line_of(reason: str, exported: ExportedProgram) -> str:
    """The user's line that became the operator which the reason names; empty where it names none."""
    named = _OPERATOR.search(reason)
    for node in exported.graph.nodes if named else ():
        packet = getattr(node.target, "overloadpacket", None)
        if packet is not None and named and _became(packet.__name__, named[1]):
            return traced_line(node.meta.get("stack_trace") or "")
    return ""


def _became(name: str, other: str) -> bool:
    """Whether torch makes the other of the one, as linalg_matrix_exp of matrix_exp and erf_inv of erfinv."""
    if f"_{name}".endswith(f"_{other}"):
        return True
    before, after = (one.replace("_", "") for one in (name, other.removesuffix("_ex")))
    return len(before) >= _TELLING and (after.endswith(before) or before.endswith(after))


def _rename(model: ir.Model, spec: Spec) -> None:
    """Give the tensors the names both formats share, and their dynamic dims those of the spec."""
    import onnx_ir as ir

    graph = model.graph
    assert len(graph.inputs) == len(spec.inputs) and len(graph.outputs) == len(spec.outputs)
    for index, value in enumerate(graph.inputs):
        value.name = wire_input(index)
    _separate_outputs(graph)
    for index, value in enumerate(graph.outputs):
        value.name = wire_output(index)
    if not spec.dims:
        return
    for value, tensor in zip((*graph.inputs, *graph.outputs), (*spec.inputs, *spec.outputs), strict=True):
        value.shape = ir.Shape(tensor.shape)


def _separate_outputs(graph: ir.Graph) -> None:
    """Give each output a value of its own: one that is an input, a constant or another output has a name already."""
    import onnx_ir as ir

    taken = {id(value) for value in (*graph.inputs, *graph.initializers.values())}
    for index, value in enumerate(graph.outputs):
        if id(value) in taken:
            copy = ir.node("Identity", inputs=[value])
            copy.outputs[0].type, copy.outputs[0].shape = value.type, value.shape
            graph.append(copy)
            graph.outputs[index] = copy.outputs[0]
        taken.add(id(value))


def _strip(model: ir.Model) -> None:
    """Remove what the exporter notes about the code it saw: stack traces, local paths, names of Python objects."""
    import onnx_ir as ir

    noted: list[Any] = [model, model.graph, *model.graph.inputs, *model.graph.initializers.values()]
    for function in model.functions.values():
        noted += [function, *function.inputs]
    bodies: list[Any] = [model.graph, *model.functions.values()]
    for body in bodies:
        for node in ir.traversal.RecursiveGraphIterator(body):
            noted += [node, *node.outputs]
    for thing in noted:
        thing.metadata_props.clear()
        thing.doc_string = None


def _check_ceilings(model: ir.Model, target: Target) -> None:
    opset, ir_version = model.opset_imports[""], model.ir_version
    if opset > target.opset or ir_version > target.ir_version:
        able = targets_like(target, lambda other: other.opset >= opset and other.ir_version >= ir_version)
        raise UnfinishedError(
            f"the ONNX graph has opset {opset} and IR version {ir_version}",
            expected=f"at most opset {target.opset} and IR version {target.ir_version}, what {target.name} loads",
            fix=f"use --formats aoti, or another --target ({able})",
        )


def _details(model: ir.Model) -> dict[str, str]:
    return {"opset": str(model.opset_imports[""]), "ir_version": str(model.ir_version), **_versions()}


def _versions() -> dict[str, str]:
    """What makes the graph; asked of the installed packages, since importing them takes longer than all the rest."""
    import torch

    return {"torch": torch.__version__, "onnx": version("onnx"), "onnxscript": version("onnxscript")}
