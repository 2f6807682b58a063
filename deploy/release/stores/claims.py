"""Who may write a number in a registry, which cannot compare and set a tag: decided by tags that nobody moves.

Owns the decision. Called by oci. A run is called by its version's digest and a word of its own, so that a version whose
publisher died may be published again, and two runs of one version never speak for each other.

    1. Write `<N>-claim-<run>`, then list the tags. Of two versions at least the later one sees the other's claim; who
       sees none has the number.
    2. Of those that see each other all but the smallest write `<N>-yield-<run>`, and never write the number.
    3. The smallest waits until the others have yielded. One that does not has seen nobody, or is dead: then the
       smallest yields too.
"""

import re
import secrets
import time
from dataclasses import dataclass

from deploy.release.stores.registry import Registry

_PATIENCE_SECONDS = 3.0
_PAUSE_SECONDS = 0.2
_DIGITS = 32


@dataclass(frozen=True, slots=True, kw_only=True)
class Claims:
    """The runs that want a number and have not given it up, as `<digest>-<word>`, ascending."""

    wanted: tuple[str, ...]

    @classmethod
    def read(cls, registry: Registry, number: int) -> "Claims":
        """What the registry's tags say now."""
        found: dict[str, set[str]] = {"claim": set(), "yield": set()}
        for tag in registry.tags():
            if matched := re.fullmatch(rf"{number}-(claim|yield)-([0-9a-f]+-[0-9a-f]+)", tag):
                found[matched[1]].add(matched[2])
        return cls(wanted=tuple(sorted(found["claim"] - found["yield"])))

    def others(self, digest: str) -> tuple[str, ...]:
        """Those of other versions."""
        return tuple(run for run in self.wanted if not run.startswith(f"{digest[:_DIGITS]}-"))


def claim(registry: Registry, number: int, digest: str, document: bytes) -> str | None:
    """None if the version of that digest may write the number from now on, else the tag of the claim that keeps it.

    `document` is a manifest that the registry takes for a tag.
    """
    own = f"{digest[:_DIGITS]}-{secrets.token_hex(4)}"
    registry.put_manifest(f"{number}-claim-{own}", document)
    deadline = time.monotonic() + _PATIENCE_SECONDS
    while others := Claims.read(registry, number).others(digest):
        if others[0] < own or time.monotonic() > deadline:
            registry.put_manifest(f"{number}-yield-{own}", document)
            return f"{number}-claim-{others[0]}"
        time.sleep(_PAUSE_SECONDS)
    return None
