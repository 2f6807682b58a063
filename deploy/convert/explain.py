"""What is said when a model cannot be exported: which line of the user's code, and why, in one message.

Owns the reading of torch's errors; decides nothing. Called by export.
"""

from __future__ import annotations

import logging
import sysconfig
import traceback
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from deploy.errors import UnfinishedError
from deploy.spec import BATCH, Dim

_SHAPES_LOGGER = "torch.fx.experimental.symbolic_shapes"
_SPECIALISED = "specialized it to be a constant"
_REASON_LENGTH = 300


def user_line(error: BaseException) -> str:
    """` (in FILE:LINE, FUNCTION: CODE)` for the innermost line of the error's stack that is the user's, else empty."""
    return _place(traceback.extract_tb(error.__traceback__))


def explain_export_error(error: Exception, attempt: Callable[[], object], *, dims: Sequence[Dim]) -> UnfinishedError:
    """What to raise for an error of `torch.export`. `attempt` exports again where only a second look shows the line."""
    if _SPECIALISED in str(error):
        constraint = _constraint(error)
        dim = next((dim for dim in dims if f"({dim.name})" in constraint or f" {dim.name} " in constraint), dims[0])
        dimension = "batch dimension" if dim.name == BATCH else f"dynamic dimension {dim.name}"
        instead = "use --max-batch 1" if dim.name == BATCH else "leave out its --dynamic"
        return UnfinishedError(
            f"the model makes its {dimension} a constant{_where_specialised(attempt)}: {constraint}",
            expected=f"a forward that takes any {dim.name} of {dim.minimum}..{dim.maximum}",
            fix=f"make that code independent of the size, or {instead}",
        )
    return UnfinishedError(
        f"the model cannot be exported: {_first_paragraph(error)}{user_line(error)}",
        expected="a forward without data-dependent Python control flow",
        fix="change that code (torch.where, torch.cond), or pass --factory with a module that exports",
    )


def _constraint(error: Exception) -> str:
    line = next(line for line in str(error).splitlines() if _SPECIALISED in line)
    return line.strip(" -").split(". ")[0]


def _first_paragraph(error: Exception) -> str:
    """Torch's own reason without its advice, which names switches of torch that the user does not set here."""
    lines = [line.strip() for line in str(error).strip().splitlines()]
    paragraph = " ".join(lines[: lines.index("")] if "" in lines else lines)
    return f"{type(error).__name__}: {paragraph[:_REASON_LENGTH]}"


def _where_specialised(attempt: Callable[[], object]) -> str:
    """The user's line that was running when torch gave the batch a single value; found by exporting once more."""
    watch = _SpecialisationWatch()
    logger = logging.getLogger(_SHAPES_LOGGER)
    level = logger.level
    logger.addHandler(watch)
    logger.setLevel(logging.INFO)
    try:
        attempt()
    except Exception:  # noqa: BLE001 - the first attempt's error is the one reported
        return watch.place
    finally:
        logger.removeHandler(watch)
        logger.setLevel(level)
    return ""


class _SpecialisationWatch(logging.Handler):
    """Notes the running line of the user's code when torch logs that a symbol got a single value."""

    place = ""

    def emit(self, record: logging.LogRecord) -> None:
        if not self.place and "set_replacement" in str(record.msg):
            self.place = _place(traceback.extract_stack())


def _place(frames: Iterable[traceback.FrameSummary]) -> str:
    for frame in reversed(list(frames)):
        if _is_users(frame.filename):
            return f" (in {frame.filename}:{frame.lineno}, {frame.name}: {frame.line})"
    return ""


def _is_users(filename: str) -> bool:
    import torch

    path = Path(filename)
    installed = Path(sysconfig.get_path("purelib"))
    if not path.is_absolute() or path.is_relative_to(Path(__file__).parents[1]):
        return False
    if path.is_relative_to(sysconfig.get_path("stdlib")) and not path.is_relative_to(installed):
        return False
    return not path.is_relative_to(Path(torch.__file__).parent)
