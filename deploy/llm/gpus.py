"""GPUs by the names people order them by, and their memory.

Owns the table, from NVIDIA's data sheets. Called by `sizing`.
"""

from dataclasses import dataclass
from difflib import get_close_matches

from deploy.errors import UsageError
from deploy.targets import Target

_GB = 1_000_000_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """One part: its compute capability as digits, and its memory in bytes."""

    name: str
    sm: int
    memory: int


# In GB as the data sheets have it. What CUDA reports is a little less, or more where the sheet means GiB.
_SHEETS = {
    75: {"T4": 16},
    80: {"A30": 24, "A100-40GB": 40, "A100-80GB": 80},
    86: {"A10": 24, "A40": 48, "RTX-A6000": 48},
    89: {"L4": 24, "L40S": 48},
    90: {"H100-80GB": 80, "H200": 141},
    100: {"B200": 180, "GB200": 186},
    103: {"B300": 270, "GB300": 279},
    120: {"RTX-PRO-6000": 96},
}
PARTS = tuple(
    Part(name=name, sm=sm, memory=gigabytes * _GB) for sm, parts in _SHEETS.items() for name, gigabytes in parts.items()
)


def find_part(target: Target, name: str | None) -> Part:
    """The part called `name`, by default the target's with the least memory.

    Raises UsageError if there is no such part, or it is not of the target's compute capability.
    """
    own = [part for part in PARTS if part.sm == target.sm]
    if not own:
        raise UsageError(f"no part is known for {target.name}", expected="a GPU target in the table of parts")
    if name is None:
        return min(own, key=lambda part: part.memory)
    found = next((part for part in PARTS if part.name.lower() == name.lower()), None)
    if found is None or found.sm != target.sm:
        near = get_close_matches(name, [part.name for part in own]) or [part.name for part in own]
        what = f"{found.name} has compute capability {found.sm / 10}" if found else f"there is no part {name!r}"
        raise UsageError(
            f"{what}, and the target is {target.name}",
            expected=f"one of {', '.join(near)}",
            fix="change --gpu or --target",
        )
    return found
