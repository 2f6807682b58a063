"""Tactics: how an artifact is compiled and run beyond the defaults, and which of them an effort tries on a device.

Owns the list and the names of the options; each option is heeded where the artifact is made or opened. No torch here.
Called by the converters, and by validate, which measures tactics.
"""

from typing import Literal, get_args

from pydantic import Field

from deploy.convert.model import Device, Format, Precision
from deploy.convert.ort_session import LEVEL, TENSORRT, is_session_option
from deploy.records import Record
from deploy.spec import Spec, TensorSpec, wire_input

Effort = Literal["low", "normal", "max"]
EFFORTS: tuple[Effort, ...] = get_args(Effort)

DEFAULT = "default"
"""The name of the tactic that is every format's first one: nothing beyond the defaults."""


class Tactic(Record):
    """How an artifact of one format is made and run. The default one has no options.

    Options of ONNX are those of the session, by their names in Triton's config, and `graph`; options of AOTInductor
    are `prepack`, which the default does on a CPU, and settings of the compiler by its own names, each "1" or "0".
    """

    format: Format
    name: str
    options: dict[str, str] = Field(default_factory=dict)

    @property
    def at_run_time(self) -> bool:
        """Whether the artifact's file is the default one, opened otherwise."""
        return bool(self.options) and all(map(is_session_option, self.options))


_ONNX: dict[Effort, tuple[Tactic, ...]] = {
    "normal": (
        Tactic(format="onnx", name="rewritten", options={"graph": "rewritten"}),
        Tactic(format="onnx", name="rewritten, no arena", options={"graph": "rewritten", "enable_mem_arena": "0"}),
        Tactic(format="onnx", name="fused attention", options={"graph": "attention"}),
        Tactic(format="onnx", name="no arena", options={"enable_mem_arena": "0"}),
        Tactic(format="onnx", name="one thread", options={"intra_op_thread_count": "1"}),
    ),
    "max": (
        Tactic(format="onnx", name="no layout", options={LEVEL: "1"}),
        Tactic(format="onnx", name="no memory pattern", options={"enable_mem_pattern": "0"}),
    ),
}
UNPACKED = Tactic(format="aoti", name="unpacked", options={"prepack": "0"})
"""Weights as the checkpoint has them in each call; where nothing is packed, this is the default one."""

_AOTI: dict[Effort, tuple[Tactic, ...]] = {
    "normal": (
        UNPACKED,
        Tactic(format="aoti", name="frozen", options={"freezing": "1"}),
    ),
    "max": (Tactic(format="aoti", name="frozen, autotuned", options={"freezing": "1", "max_autotune": "1"}),),
}


# On a GPU a session has no use for the settings of the CPU's memory and threads.
_ONNX_ON_GPU: dict[Effort, tuple[Tactic, ...]] = {
    "normal": (
        Tactic(format="onnx", name="fused attention", options={"graph": "attention"}),
        Tactic(format="onnx", name="channels last", options={"cuda.prefer_nhwc": "1"}),
    ),
}
_AOTI_ON_GPU: dict[Effort, tuple[Tactic, ...]] = {
    "normal": (
        Tactic(format="aoti", name="frozen", options={"freezing": "1"}),
        Tactic(format="aoti", name="channels last", options={"force_layout_optimization": "1"}),
        Tactic(format="aoti", name="tuned loops", options={"coordinate_descent_tuning": "1"}),
    ),
    "max": (
        Tactic(format="aoti", name="autotuned", options={"max_autotune": "1"}),
        Tactic(
            format="aoti",
            name="frozen, autotuned, tuned loops",
            options={"freezing": "1", "max_autotune": "1", "coordinate_descent_tuning": "1"},
        ),
    ),
}
_TABLES: dict[tuple[Format, Device], dict[Effort, tuple[Tactic, ...]]] = {
    ("onnx", "cpu"): _ONNX,
    ("onnx", "cuda"): _ONNX_ON_GPU,
    ("aoti", "cpu"): _AOTI,
    ("aoti", "cuda"): _AOTI_ON_GPU,
}
_TENSORRT_MODES: dict[Precision, str] = {"fp32": "FP32", "fp16": "FP16", "bf16": "BF16"}


def default_tactic(format_: Format) -> Tactic:
    """The tactic that changes nothing."""
    return Tactic(format=format_, name=DEFAULT)


def alternatives(format_: Format, effort: Effort, device: Device = "cpu") -> tuple[Tactic, ...]:
    """The tactics that an effort measures beside the default one; each effort tries those of the lower ones too."""
    table = _TABLES.get((format_, device), {})
    return tuple(one for level in EFFORTS[: EFFORTS.index(effort) + 1] for one in table.get(level, ()))


def tensorrt(spec: Spec, precision: Precision) -> Tactic:
    """ONNX Runtime with TensorRT, for inputs within the bounds of the spec; it is tuned for the largest ones.

    Without the bounds it would build its engine anew, in seconds to minutes, for each size that a request brings.
    """
    options = {"precision_mode": _TENSORRT_MODES[precision]}
    dynamic = [(wire_input(index), tensor) for index, tensor in enumerate(spec.inputs) if _is_dynamic(tensor)]
    if dynamic:
        least = {dim.name: dim.minimum for dim in spec.dims}
        most = {dim.name: dim.maximum for dim in spec.dims}
        for name, sizes in (("min", least), ("opt", most), ("max", most)):
            options[f"trt_profile_{name}_shapes"] = ",".join(
                f"{wire}:{'x'.join(map(str, tensor.concrete(**sizes)))}" for wire, tensor in dynamic
            )
    named = {f"{TENSORRT}{name}": value for name, value in options.items()}
    return Tactic(format="onnx", name="tensorrt", options=named)


def _is_dynamic(tensor: TensorSpec) -> bool:
    return any(isinstance(size, str) for size in tensor.shape)


def described(tactic: Tactic | None) -> dict[str, str]:
    """What an artifact's details say of its tactic."""
    return {"tactic": DEFAULT} if tactic is None else {"tactic": tactic.name, **tactic.options}
