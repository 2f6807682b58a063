"""An ONNX graph in int8 by ONNX Runtime's own quantization, by the scheme that the network and the inputs allow.

Owns the choice of the scheme and what is refused. Called by lower, in a child process.

Convolutions want static scales, taken from real rows: with dynamic ones each call computes them anew, which costs more
than int8 saves. Transformers go well with dynamic scales, which need no rows (onnxruntime.ai, Quantize ONNX models:
"dynamic quantization for RNNs and transformer-based models, static quantization for CNN models").
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from deploy.cache import Store
from deploy.convert.model import ARTIFACT_FILES, Artifact, Program
from deploy.convert.onnx import export_onnx
from deploy.convert.precision import Lowering
from deploy.errors import UnfinishedError
from deploy.spec import BATCH, Spec, wire_input
from deploy.targets import Target

if TYPE_CHECKING:
    import onnx

_CONVOLUTIONS = ("Conv", "ConvTranspose")
_PRODUCTS = ("MatMul", "Gemm")
# Without these instructions products of 8-bit numbers are summed in 16 bits, which overflow unless weights have 7 bits.
_VNNI = ("avx512_vnni", "avx_vnni", "amx_int8", "asimddp")


def quantize_onnx(
    program: Program, lowering: Lowering, *, target: Target, folder: Path, store: Store | None
) -> Artifact:
    """`folder/model.onnx` in int8, made from the fp32 graph. Its detail `int8` says by which scheme.

    Raises UnfinishedError if nothing can be quantized, or not without rows to take scales from.
    """
    with tempfile.TemporaryDirectory(prefix="int8-", dir=folder) as work:
        plain = export_onnx(program, target=target, folder=Path(work), store=store)
        if len(plain.files) > 1:
            raise UnfinishedError(
                "the graph's weights lie in a file of their own, and int8 is made of single files only",
                expected="at most 1.9 GB of weights",
                fix="use --precision bf16 or fp32",
            )
        prepared = Path(work) / "prepared.onnx"
        _prepare(plain.path, prepared)
        job = _Job(program.spec, lowering, source=prepared, path=folder / ARTIFACT_FILES["onnx"])
        scheme = job.quantize()
    _tidy(job.path, target)
    details = plain.details | {"int8": scheme}
    return replace(plain, folder=folder, files=(job.path.name,), details=details, reused=None)


def has_vnni() -> bool:
    """Whether this machine's processor multiplies 8-bit numbers without overflow in between."""
    flags = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""
    return any(flag in flags for flag in _VNNI)


def _prepare(source: Path, path: Path) -> None:
    """The graph with shapes inferred and constants folded: a transposed weight is no weight to the quantizer."""
    from onnxruntime.quantization.shape_inference import quant_pre_process

    quant_pre_process(str(source), str(path), skip_symbolic_shape=True)


@dataclass(frozen=True, slots=True)
class _Job:
    """One quantization: of which graph, to where."""

    spec: Spec
    lowering: Lowering
    source: Path
    path: Path

    def quantize(self) -> str:
        """Write the graph in int8; gives the scheme in words."""
        import onnx

        nodes = [node.op_type for node in onnx.load(self.source, load_external_data=False).graph.node]
        convolutions = sum(nodes.count(kind) for kind in _CONVOLUTIONS)
        products = sum(nodes.count(kind) for kind in _PRODUCTS)
        if not convolutions + products:
            raise UnfinishedError(
                "the network has no convolution and no matrix product to put into int8", fix="use --precision fp32"
            )
        if self.lowering.static or convolutions >= products:
            return self._static(convolutions, products)
        return self._dynamic(convolutions, products)

    def _static(self, convolutions: int, products: int) -> str:
        from onnxruntime.quantization import QuantFormat, QuantType, quantize_static

        if self.lowering.calibration is None:
            raise UnfinishedError(
                f"int8 of {convolutions} convolutions takes its scales from real rows, and there are none",
                expected="some hundred real inputs",
                fix="give --samples FILE.npz, or --calibration FILE.npz",
            )
        feeds = list(_feeds(self.spec, self.lowering.calibration))
        quantize_static(
            str(self.source),
            str(self.path),
            _Reader(feeds),
            quant_format=QuantFormat.QDQ,
            per_channel=True,
            reduce_range=not has_vnni(),
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
        )
        rows = sum(len(next(iter(feed.values()))) for feed in feeds)
        return f"static QDQ, {rows} calibration rows{self._range()} ({convolutions} Conv, {products} MatMul)"

    def _dynamic(self, convolutions: int, products: int) -> str:
        from onnxruntime.quantization import QuantType, quantize_dynamic

        quantize_dynamic(
            str(self.source),
            str(self.path),
            # Dynamic convolutions are slower than those in fp32.
            op_types_to_quantize=list(_PRODUCTS),
            per_channel=True,
            reduce_range=not has_vnni(),
            weight_type=QuantType.QInt8,
        )
        left = f", {convolutions} Conv in fp32" if convolutions else ""
        return f"dynamic, {self._count('MatMulInteger')} of {products} MatMul{left}{self._range()}"

    def _count(self, kind: str) -> int:
        """How many nodes of a kind the graph in int8 has."""
        import onnx

        return sum(node.op_type == kind for node in onnx.load(self.path, load_external_data=False).graph.node)

    def _range(self) -> str:
        return "" if has_vnni() else ", weights of 7 bits"


class _Reader:
    """What ONNX Runtime's calibration reads: one feed after the other, then None."""

    def __init__(self, feeds: list[dict[str, np.ndarray]]) -> None:
        self._feeds = iter(feeds)

    def get_next(self) -> dict[str, np.ndarray] | None:
        """The next batch by wire name."""
        return next(self._feeds, None)


def _feeds(spec: Spec, path: Path) -> Iterator[dict[str, np.ndarray]]:
    """The calibration rows in batches that the program takes."""
    with np.load(path, allow_pickle=False) as archive:
        arrays = [archive[wire_input(index)] for index in range(len(spec.inputs))]
    size = 1 if spec.batch is None else spec.batch.maximum
    rows = len(arrays[0])
    least = 1 if spec.batch is None else spec.batch.minimum
    for start in range(0, rows, size):
        chosen = [array[start : start + size] for array in arrays]
        if len(chosen[0]) < least:
            return
        yield {
            wire_input(index): array if BATCH in tensor.shape or spec.batch is None else array[0]
            for index, (tensor, array) in enumerate(zip(spec.inputs, chosen, strict=True))
        }


def _tidy(path: Path, target: Target) -> None:
    """Bring the file back to what the target loads, without the notes of the tools that wrote it."""
    import onnx

    model = onnx.load(path)
    model.ir_version = min(model.ir_version, target.ir_version)
    model.ClearField("metadata_props")
    model.doc_string = ""
    for node in model.graph.node:
        node.doc_string = ""
    _drop_unused_domains(model)
    onnx.checker.check_model(model)
    onnx.save(model, path)


def _drop_unused_domains(model: onnx.ModelProto) -> None:
    used = {node.domain for node in _nodes(model.graph)}
    kept = [one for one in model.opset_import if one.domain in ("", "ai.onnx") or one.domain in used]
    del model.opset_import[:]
    model.opset_import.extend(kept)


def _nodes(graph: Any) -> Iterator[Any]:
    for node in graph.node:
        yield node
        for attribute in node.attribute:
            if attribute.HasField("g"):
                yield from _nodes(attribute.g)
