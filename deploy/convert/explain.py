"""What is said when a model cannot be exported: which line of the user's code, and why, in one message.

Owns the reading of torch's errors; decides nothing. Called by export.
"""

from __future__ import annotations

import gc
import logging
import re
import signal
import sys
import sysconfig
import threading
import traceback
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from deploy.checkpoint.pretrained_folder import SEQUENCE, TOKENS
from deploy.convert.advice import advise_export
from deploy.errors import UnfinishedError
from deploy.spec import BATCH, Dim

_SHAPES_LOGGER = "torch.fx.experimental.symbolic_shapes"
_SPECIALISED = "specialized it to be a constant"
_DATA_DEPENDENT = "GuardOnDataDependentSymNode"
_RECURRENT = re.compile(r"aten\.(lstm|gru|rnn_tanh|rnn_relu)\.|nn/modules/rnn\.py")
_MOST_PLACES = 3
SIZES_BOUND = "Constraints violated"
# FlexAttention counts a mask's blocks of 128, and torch takes their number for a constant.
_BLOCKS = "; create_block_mask takes any length in one block: BLOCK_SIZE=LONGEST"
_BLOCK_COUNTS = re.compile(r"// 128|<= 128|max=128|min=129")
_SUGGESTED = re.compile(r"^  (\w+) = (.+)$", re.MULTILINE)
_REASON_LENGTH = 300
# A draft may take for ever over what follows from each size: Reformer's had not ended after a minute and a half.
_DRAFT_SECONDS = 60.0
_FRAME = re.compile(r'File "(.+)", line (\d+), in (\S+)\n(.*)')


def user_line(error: BaseException) -> str:
    """` (in FILE:LINE, FUNCTION: CODE)` for the innermost line of the error's stack that is the user's, else empty."""
    return _place(traceback.extract_tb(error.__traceback__))


def traced_line(stack: str) -> str:
    """The same of the stack that torch keeps beside a traced operator, as text."""
    frames = [
        traceback.FrameSummary(file, int(line), function, line=code.strip())
        for file, line, function, code in _FRAME.findall(stack)
    ]
    return _place(frames)


def explain_export_error(
    error: Exception,
    attempt: Callable[[], object],
    draft: Callable[[], object],
    *,
    dims: Sequence[Dim],
    folder: bool = False,
) -> UnfinishedError:
    """What to raise for an error of `torch.export`. `attempt` exports again where only a second look shows the line.

    `draft` exports without stopping at what depends on data, to name every such line at once. `folder` is whether the
    network is that of a folder of transformers, whose inputs and dims have their names from here.
    """
    length = _one_length(dims) if folder else ""
    if _SPECIALISED in str(error):
        constraint = _constraint(error)
        dim = next((dim for dim in dims if f"({dim.name})" in constraint or f" {dim.name} " in constraint), dims[0])
        dimension = "batch dimension" if dim.name == BATCH else f"dynamic dimension {dim.name}"
        instead = "use --max-batch 1" if dim.name == BATCH else "leave out its --dynamic"
        where = _where_specialised(attempt)
        return UnfinishedError(
            f"the model makes its {dimension} a constant{where}: {constraint}",
            expected=f"a forward that takes any {dim.name} of {dim.minimum}..{dim.maximum}",
            fix=f"{_independent(where, dim)}, or {instead}{length}",
        )
    if SIZES_BOUND in str(error):
        return _explain_sizes(error, dims, length)
    place = user_line(error)
    expected, fix = advise_export(error, place)
    return UnfinishedError(
        f"the model cannot be exported: {_first_paragraph(error)}{place}{_further_places(error, draft)}",
        expected=expected,
        fix=f"{fix}, or pass --factory with a module that exports",
    )


def _independent(where: str, dim: Dim) -> str:
    """How the code at that place is made to take any size. A recurrent layer is written out step by step."""
    if not _RECURRENT.search(where):
        return "make that code independent of the size"
    if dim.name == BATCH:
        return "let the layer take the batch first (batch_first=True): its steps are the first axis else"
    return "pad to one length: torch writes a recurrent layer out step by step, for one number of steps"


def _one_length(dims: Sequence[Dim]) -> str:
    """How a folder of transformers is made to take texts of one length: not all of its networks can be of any."""
    longest = next((dim.maximum for dim in dims if dim.name == SEQUENCE), None)
    return f"; a folder of transformers: --dynamic {TOKENS}:1={longest}..{longest}, texts of one length" * bool(longest)


def _explain_sizes(error: Exception, dims: Sequence[Dim], length: str) -> UnfinishedError:
    """What to say of a model that takes some of the sizes that were asked for, and which those are.

    `length` is what is added for texts.
    """
    text = str(error)
    equal = re.search(r"The values of (\w+) = .* and (\w+) = .* must always be equal", text)
    if equal:
        first, second = equal.groups()
        return UnfinishedError(
            f"the model takes {first} and {second} of one size only",
            expected="one dim for sizes that are always equal",
            fix=f"give both axes one name in --dynamic, such as NAME:AXIS@{second}",
        )
    found = dict(_SUGGESTED.findall(text))
    whole = {name: size for name, size in found.items() if not name.startswith("_")}
    words = [_sizes_in_words(name, size, found) for name, size in whole.items()]
    if f"({BATCH})" in text:
        return UnfinishedError(
            f"the model does not take every batch up to --max-batch: {'; '.join(words) or _first_paragraph(error)}",
            expected="a forward that does the same for any number of rows",
            fix="take out what depends on the number of rows, or use --max-batch within those bounds, or of 1",
        )
    return UnfinishedError(
        f"the model does not take every size that --dynamic asks for: {'; '.join(words) or _first_paragraph(error)}",
        expected="bounds within which its forward takes every size",
        fix="narrow the bounds (NAME:AXES=MIN..MAX), pad or crop inside the forward, or leave out --dynamic"
        + _BLOCKS * bool(_BLOCK_COUNTS.search(text))
        + length,
    )


def _sizes_in_words(name: str, size: str, found: Mapping[str, str]) -> str:
    limits = re.fullmatch(r"Dim\('\w+'(?:, min=(\d+))?(?:, max=(\d+))?\)", size)
    if limits:
        low, high = limits.groups()
        return f"{name} is {' and '.join(filter(None, (low and f'at least {low}', high and f'at most {high}')))}"
    multiple = re.fullmatch(rf"(\d+)\*_{name}", size)
    return f"{name} is a multiple of {multiple[1]}" if multiple else f"{name} is {size}"


def _further_places(error: Exception, draft: Callable[[], object]) -> str:
    """The user's other lines that depend on the data, which would fail next; empty where there is none."""
    if type(error).__name__ != _DATA_DEPENDENT:
        return ""
    try:
        from torch._logging.structured import INTERN_TABLE

        report: Any = getattr(_in_time(lambda: _without_its_trace(draft)), "_report", None)
        stacks = [one.data["user_stack"] for one in report.failures if one.failure_type.name == "DATA_DEPENDENT_ERROR"]
        # The report has only those names of files that torch had not logged before.
        files = {number: name for name, number in INTERN_TABLE.items()} | report.str_to_filename
        places = [_drafted(stack, files) for stack in stacks]
    except Exception:  # noqa: BLE001 - a draft is help beside the error that is reported, and may fail in its own ways
        return ""
    others = [place for place in dict.fromkeys(places) if place and place not in user_line(error)]
    return f", and then at {'; '.join(others[:_MOST_PLACES])}" if others else ""


class _TooLong(BaseException):
    """Not an Exception: torch catches those on its way out."""


def _in_time(call: Callable[[], object]) -> object:
    """What it gives, or None once it has taken `_DRAFT_SECONDS`; without a limit outside of the main thread."""
    if threading.current_thread() is not threading.main_thread():
        return call()

    def stop(*_: object) -> None:
        raise _TooLong

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, _DRAFT_SECONDS)
    try:
        return call()
    except _TooLong:
        return None
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def _without_its_trace(draft: Callable[[], object]) -> object:
    """What it gives. A draft never closes the file that torch traces it in: dropped here, where nobody is warned."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)
        try:
            return draft()
        finally:
            gc.collect()


def _drafted(stack: Sequence[Mapping[str, Any]], files: Mapping[int, str]) -> str:
    """FILE:LINE, FUNCTION: CODE of the innermost frame that is the user's, as a draft's report has it."""
    for frame in reversed(stack):
        file = files[frame["filename"]]
        if _is_users(file):
            return f"{file}:{frame['line']}, {frame['name']}: {frame['loc']}"
    return ""


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
            self.place = _running_operator() + _place(traceback.extract_stack())


def _running_operator() -> str:
    """` by torch's OPERATOR` for the outermost operator that is being traced here, empty outside of any."""
    import torch

    name, frame = "", sys._getframe()
    while frame.f_back is not None:
        frame = frame.f_back
        running = frame.f_locals.get("func")
        if isinstance(running, torch._ops.OpOverload):
            name = f" by torch's {running}"
    return name


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
