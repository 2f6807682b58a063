"""What the exporter writes as ONNX though it means something else there, or though no kernel runs it.

Owns these refusals, each before a proof would fail on it in ONNX Runtime's words. Called by onnx, in a child process.
"""

from __future__ import annotations

import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from deploy.convert.onnx_linked import linked
from deploy.convert.ort_session import LEVEL, session_options
from deploy.errors import UnfinishedError

if TYPE_CHECKING:
    from torch.export import ExportedProgram
    from torch.fx import Node

_USUAL = ("float32", "int64", "int32", "int16", "int8", "uint8", "bool")
# It opens the graph and nothing else: what crashes ONNX Runtime must not end the process that asks.
_OPEN = """
import sys, onnxruntime
from deploy.convert.onnx_linked import linked
from deploy.convert.ort_session import LEVEL, session_options
options = session_options({LEVEL: sys.argv[2]}, threads=1)
options.log_severity_level = 4
onnxruntime.InferenceSession(sys.argv[1], options, providers=["CPUExecutionProvider"])
"""
_ALL, _NO_LAYOUT = "0", "1"  # values of LEVEL
_LSTM_WEIGHTS = {True: 4, False: 2}  # per layer and direction, with and without biases; a projection is one more


def require_writable(exported: ExportedProgram) -> None:
    """Raises UnfinishedError for an operator that the exporter writes as one with another answer."""
    for node in exported.graph.nodes:
        name = str(getattr(getattr(node.target, "overloadpacket", None), "__name__", ""))
        if name == "lstm":
            _check_lstm(node)


def unusual_dtypes(exported: ExportedProgram) -> set[str]:
    """The dtypes that the program computes with and ONNX Runtime has few kernels of on a CPU."""
    import torch

    graphs = [part.graph for part in exported.graph_module.modules() if isinstance(part, torch.fx.GraphModule)]
    values = [node.meta.get("val") for graph in graphs for node in graph.nodes]
    found = {str(getattr(value, "dtype", "torch.float32")).removeprefix("torch.") for value in values}
    return found.difference(_USUAL)


def require_kernels(path: Path, dtypes: str, *, fix: str) -> dict[str, str]:
    """The session's options that the graph needs on a CPU, mostly none; `dtypes` are those it is about.

    ONNX Runtime 1.32 dies where it lays out float16 graphs that transpose before a matrix product, as attention of
    `nn.MultiheadAttention` does; such a graph is opened without that step. Raises UnfinishedError where ONNX Runtime
    cannot run it, or crashes all the same. Takes float16 weights once in float32, which that step makes, and no more.
    """
    with linked(path) as graph:
        return _require_kernels(graph, dtypes, fix=fix)


def _require_kernels(path: Path, dtypes: str, *, fix: str) -> dict[str, str]:
    import onnxruntime
    from onnxruntime.capi import onnxruntime_pybind11_state as errors

    release = f"ONNX Runtime {onnxruntime.__version__}"
    needed: dict[str, str] = {}
    ended = _open(path, _ALL)
    if ended == -signal.SIGKILL:
        raise UnfinishedError(
            f"the process in which {release} opened the graph was killed, as for want of memory",
            expected="room for the weights in float32",
            fix="free memory, or use --formats aoti",
        )
    if ended < 0:
        needed, ended = {LEVEL: _NO_LAYOUT}, _open(path, _NO_LAYOUT)
    if ended == 0:
        return needed
    if ended < 0:
        name = signal.Signals(-ended).name
        raise UnfinishedError(f"{release} ends by {name} when it opens the graph, in {dtypes}", fix=fix)
    options = session_options(needed, threads=1)
    options.log_severity_level = 4
    try:
        onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except (errors.NotImplemented, errors.InvalidGraph, errors.Fail) as error:
        # Before what it lacks stands where the file lies, which is nobody's business later.
        found = re.search(r"Could not find an implementation for .*|Type '.*|Type parameter .*", str(error))
        what = found.group() if found else "it cannot load the graph"
        raise UnfinishedError(f"{release} has no {dtypes} kernel on a CPU: {what}", fix=fix) from error
    return needed


def _open(path: Path, level: str) -> int:
    """How a process ends that opens the graph with this level of optimisation: 0, or below it for a signal."""
    return subprocess.run([sys.executable, "-c", _OPEN, str(path), level], capture_output=True, check=False).returncode


def _check_lstm(node: Node) -> None:
    weights, biased, layers = (node.args[index] for index in (2, 3, 4))
    directions = 2 if node.args[7] else 1
    if len(weights) > _LSTM_WEIGHTS[bool(biased)] * layers * directions:  # type: ignore[arg-type, operator]
        raise UnfinishedError(
            "ONNX's LSTM has no projection of its state (proj_size)",
            expected="an LSTM whose output is as wide as its state",
            fix="use --formats aoti, or train it with a Linear behind the LSTM in place of proj_size",
        )
