"""Tactics: how an artifact is compiled and run beyond the defaults, and which of them an effort tries.

Owns the list and the names of the options; each option is heeded where the artifact is made or opened. No torch here.
Called by the converters, and by validate, which measures tactics.
"""

from typing import Literal, get_args

from pydantic import Field

from deploy.convert.model import Format
from deploy.convert.ort_session import LEVEL, SESSION_OPTIONS
from deploy.records import Record

Effort = Literal["low", "normal", "max"]
EFFORTS: tuple[Effort, ...] = get_args(Effort)

DEFAULT = "default"
"""The name of the tactic that is every format's first one: nothing beyond the defaults."""


class Tactic(Record):
    """How an artifact of one format is made and run. The default one has no options.

    Options of ONNX are those of the session, by their names in Triton's config, and `graph`; options of AOTInductor
    are `prepack`, which the default does, `freezing` and `max_autotune`, each "1" or "0".
    """

    format: Format
    name: str
    options: dict[str, str] = Field(default_factory=dict)

    @property
    def at_run_time(self) -> bool:
        """Whether the artifact's file is the default one, opened otherwise."""
        return bool(self.options) and self.options.keys() <= set(SESSION_OPTIONS)


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


def default_tactic(format_: Format) -> Tactic:
    """The tactic that changes nothing."""
    return Tactic(format=format_, name=DEFAULT)


def alternatives(format_: Format, effort: Effort) -> tuple[Tactic, ...]:
    """The tactics that an effort measures beside the default one; each effort tries those of the lower ones too."""
    table = {"onnx": _ONNX, "aoti": _AOTI}.get(format_, {})
    return tuple(one for level in EFFORTS[: EFFORTS.index(effort) + 1] for one in table.get(level, ()))


def described(tactic: Tactic | None) -> dict[str, str]:
    """What an artifact's details say of its tactic."""
    return {"tactic": DEFAULT} if tactic is None else {"tactic": tactic.name, **tactic.options}
