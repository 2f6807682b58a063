"""Every error a user can meet, and the exit code each one ends in.

Owns the tree below, and how a message lists names. A verdict of "no" is a value, not an exception. Every room
raises these.

    DeployError
    ├── UsageError       2  wrong use or bad input
    ├── MissingError     3  something is missing on this machine, found before any work
    └── UnfinishedError  4  it could not be finished: conversion, timeout, memory, disk
"""

from collections.abc import Iterable
from enum import IntEnum


class ExitCode(IntEnum):
    """What a process of `deployctl` ends with; pipelines rely on these numbers."""

    OK = 0
    NO = 1
    USAGE = 2
    MISSING = 3
    UNFINISHED = 4
    INTERRUPTED = 130


class DeployError(Exception):
    """A failure that is explained to the user in one message: what was found, expected, and what to do.

    `found` is a full sentence without a trailing full stop; `fix` is an imperative, or empty where nothing helps.
    """

    exit_code: ExitCode = ExitCode.UNFINISHED

    def __init__(self, found: str, *, expected: str = "", fix: str = "") -> None:
        self.found = found
        self.expected = expected
        self.fix = fix
        super().__init__(found, expected, fix)

    def __str__(self) -> str:
        lines = [self.found]
        if self.expected:
            lines.append(f"  expected: {self.expected}")
        if self.fix:
            lines.append(f"  to do:    {self.fix}")
        return "\n".join(lines)

    def plain(self) -> dict[str, str]:
        """The same for machines."""
        return {"found": self.found, "expected": self.expected, "to_do": self.fix}

    def __reduce__(self) -> tuple[object, ...]:
        return _rebuild, (type(self), self.found, self.expected, self.fix)


def _rebuild(kind: type[DeployError], found: str, expected: str, fix: str) -> DeployError:
    return kind(found, expected=expected, fix=fix)


class UsageError(DeployError):
    """Wrong use of a command, or input that cannot be what was asked for."""

    exit_code = ExitCode.USAGE


class MissingError(DeployError):
    """A compiler, an engine, a GPU or a Python extra that this machine lacks."""

    exit_code = ExitCode.MISSING


class UnfinishedError(DeployError):
    """Work that was begun and could not be ended: a crash, a timeout, no memory, no disk."""

    exit_code = ExitCode.UNFINISHED


def after(published: str, error: DeployError) -> DeployError:
    """The same error, which says first which version was published before it and stays; itself if that is empty."""
    if not published:
        return error
    return _rebuild(type(error), f"{published} is published and stays, but {error.found}", error.expected, error.fix)


def listed(names: Iterable[str], limit: int) -> str:
    """The names for a message: the first `limit` of them, and how many more there are."""
    every = list(names)
    more = f" and {len(every) - limit} more" if len(every) > limit else ""
    return ", ".join(every[:limit]) + more


def with_fix(error: UsageError, more: str) -> UsageError:
    """The same refusal with one more way out."""
    return UsageError(error.found, expected=error.expected, fix=f"{error.fix}; or {more}" if error.fix else more)
