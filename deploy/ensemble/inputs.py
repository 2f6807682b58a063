"""What an ensemble is asked with: bytes as a client would send them, each with the name that reports call it.

Owns the value alone. Made by images and texts, asked by proof.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, TypeVar

import numpy as np

Kind = Literal["image", "text"]
_OWN = 16

T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class NamedInput:
    """One encoded image or text, and what reports call it."""

    name: str
    data: bytes


def spread(found: Sequence[T]) -> tuple[T, ...]:
    """At most 16 of what the user gave, spread evenly."""
    chosen = np.unique(np.linspace(0, len(found) - 1, min(_OWN, len(found))).round().astype(int))
    return tuple(found[index] for index in chosen)
