"""What a tritonserver's log says about why it is not ready.

Owns the patterns of its messages. Called by server.
"""

import re
from pathlib import Path

# 2.51 writes `E1122 22:58:28.201664 7333 model_lifecycle.cc:642] "message"`.
_ERROR_LINE = re.compile(r'^E\d{4} [\d:.]+ +\d+ [\w.]+:\d+\] "?(?P<message>.*?)"? *$')
_PARSE_LINE = re.compile(r"^\[libprotobuf ERROR [^]]*\] (?P<message>Error parsing .*)$")
_LAST_LINE = re.compile(r"^error: (?P<message>.*)$")
# The words of a model's own failure; what follows them in the log is only its echo.
_TELLING = ("failed to load '", "Poll failed")
_NOISE = ("CudaDriverHelper", "NVML", "DCGM")
_PORT_TAKEN = re.compile(r"Socket '.*' already in use")
_STACK = "\\n\\nAt:"
_TAIL_LINES = 100


def failure_reason(log: Path) -> str:
    """The server's own words for what went wrong: of its models and configs, else its other errors; may be empty."""
    lines = _lines(log)
    errors = [message for message in _messages(_ERROR_LINE, lines) if not any(word in message for word in _NOISE)]
    telling = [message for message in errors if any(word in message for word in _TELLING)]
    chosen = telling + _messages(_PARSE_LINE, lines) or errors or _messages(_LAST_LINE, lines)
    return "; ".join(dict.fromkeys(chosen))


def port_was_taken(log: Path) -> bool:
    """Whether the server ended because another process had one of its ports."""
    return any(_PORT_TAKEN.search(line) for line in _lines(log))


def tail(log: Path, *, lines: int = _TAIL_LINES) -> str:
    """The last lines of the log that belong to no table."""
    return "\n".join([line for line in _lines(log) if line and line[0] not in "|+"][-lines:])


def _lines(log: Path) -> list[str]:
    return log.read_text(errors="replace").splitlines() if log.exists() else []


def _messages(pattern: re.Pattern[str], lines: list[str]) -> list[str]:
    """The messages of the lines that match, without the Python stack that the stub puts behind them."""
    found = (match["message"] for line in lines if (match := pattern.match(line)))
    return [message.partition(_STACK)[0] for message in found]
