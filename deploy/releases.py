"""Triton's releases: what each one ships, loads and gets wrong, and how each of these facts is known.

Owns the schema of `data/targets.json`; `targets` makes places to run out of it. What is not known is None there, never
a guess, and what is taken to be so says `assumed`. Called by targets and whoever explains a target.
"""

from functools import cache
from importlib.resources import files
from typing import Any, Literal

from deploy.records import Record

How = Literal["read", "experiment", "thread", "source-reading", "assumed", "unknown"]
HOWS: dict[How, str] = {
    "read": "stated by the project's own documentation, code or release page",
    "experiment": "run by us",
    "thread": "said by others in public, not checked by us",
    "source-reading": "a consequence of the code as we read it, not run",
    "assumed": "not known; taken to be as its source says, which errs on the safe side",
    "unknown": "looked for and not found",
}

Value = bool | int | str | tuple[str, ...] | None


class Fact(Record):
    """One thing known of a release; `source` is a key of the data's sources. An unknown one has the value None."""

    value: Value
    how: How
    source: str


class Bug(Record):
    """A defect of some releases, how it is known, and what deployctl or its user does about it."""

    says: str
    how: How
    source: str
    remedy: str


class Gpu(Record):
    """An NVIDIA compute capability (`sm` 90 is 9.0), its architecture's name, and parts that have it."""

    sm: int
    architecture: str
    parts: str


class Release(Record):
    """One release by its number `YY.MM`, its facts by name, and the ids of its known bugs."""

    triton: str
    bugs: tuple[str, ...]
    facts: dict[str, Fact]

    def value(self, name: str) -> Any:
        """The fact's bare value, None where it is not known."""
        return self.facts[name].value

    def admits(self, gpu: Gpu) -> bool:
        """Whether the release runs on such a GPU."""
        return gpu.architecture in self.value("architectures") and gpu.sm >= _as_sm(
            self.value("min_compute_capability")
        )

    def summary(self) -> str:
        """Which facts are known in which way, in one line."""
        by_how = {how: [name for name, fact in self.facts.items() if fact.how == how] for how in HOWS}
        return "; ".join(f"{how}: {', '.join(names)}" for how, names in by_how.items() if names)


class Releases(Record):
    """The whole of the data file. `local` is the target that needs no release; `sources` says where facts come from."""

    sources: dict[str, str]
    bugs: dict[str, Bug]
    gpus: tuple[Gpu, ...]
    local: dict[str, Any]
    releases: tuple[Release, ...]


@cache
def read_releases() -> Releases:
    """The table of `data/targets.json`, releases from the oldest to the newest."""
    return Releases.model_validate_json(files("deploy").joinpath("data/targets.json").read_text())


def _as_sm(capability: str) -> int:
    """`"7.5"` as 75."""
    return int(capability.replace(".", ""))
